"""Whether somebody listens on a socket, and who may begin to."""

import socket

from orlop.linux.unix_sockets import alone, refuses


def test_a_socket_refuses_when_its_listener_has_gone(tmp_path):
    path = tmp_path / "socket"
    assert not refuses(path)  # nothing is there
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert refuses(path)
        listener.listen(1)
        assert not refuses(path)
    assert refuses(path)
    (tmp_path / "file").touch()
    assert refuses(tmp_path / "file")  # as connect(2) has it


def test_only_one_is_alone(tmp_path):
    path = tmp_path / "socket"
    with alone(path) as first:
        with alone(path) as second:
            assert (first, second) == (True, False)
    with alone(path) as third:
        assert third
