"""Unix sockets of the doors."""

import os
import socket
import stat

import pytest

from orlop.base.errdefs import AlreadyExistsError, InvalidArgumentError
from orlop.server.doors import sockets


def listen(path):
    return sockets.listen(path, uid=os.geteuid(), gid=os.getegid())


def test_a_new_socket_has_its_mode_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        with listen(tmp_path / "x.sock"):
            assert stat.S_IMODE((tmp_path / "x.sock").stat().st_mode) == 0o660
    finally:
        os.umask(before)


def test_a_stale_socket_is_taken_over_and_a_live_one_is_refused(tmp_path):
    path = tmp_path / "x.sock"
    listen(path).close()
    assert path.exists()
    with listen(path), pytest.raises(AlreadyExistsError, match="another daemon"):
        listen(path)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "x.sock"
    path.write_text("precious")
    with pytest.raises(InvalidArgumentError, match="no socket"):
        listen(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("address", ["relative.sock", "", f"/{'x' * 120}"])
def test_addresses_that_cannot_work_are_refused(address):
    with pytest.raises(InvalidArgumentError):
        sockets.path_of(address)


def test_the_scheme_is_optional():
    assert sockets.path_of("unix:///run/x.sock") == sockets.path_of("/run/x.sock")
    assert socket.AF_UNIX
