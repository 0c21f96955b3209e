"""Standard streams over real FIFOs; the daemon's side is played by the test."""

import os
import threading
from pathlib import Path

import pytest

from orlop.base.errdefs import InvalidArgumentError
from orlop.client.io import Capture, FifoIO, LogIO, NullIO


def test_output_and_input_pass(tmp_path: Path) -> None:
    io = Capture(stdin=b"question", directory=str(tmp_path))
    streams = io.open("c1")
    ended = threading.Event()
    stdin = os.open(streams.stdin, os.O_RDONLY | os.O_NONBLOCK)
    stdout = os.open(streams.stdout, os.O_WRONLY)
    stderr = os.open(streams.stderr, os.O_WRONLY)
    io.start(ended.set)
    os.write(stdout, b"out")
    os.write(stderr, b"err")
    assert ended.wait(10)
    assert os.read(stdin, 100) == b"question"
    for fd in (stdin, stdout, stderr):
        os.close(fd)
    io.wait()
    assert (bytes(io.stdout), bytes(io.stderr)) == (b"out", b"err")
    io.close()
    assert list(tmp_path.iterdir()) == []


def test_more_than_a_pipe_holds(tmp_path: Path) -> None:
    io = Capture(directory=str(tmp_path))
    streams = io.open("c1")
    assert streams.stdin == ""
    data = os.urandom(3 << 20)
    stdout = os.open(streams.stdout, os.O_WRONLY)
    os.close(os.open(streams.stderr, os.O_WRONLY))
    io.start(lambda: None)
    with open(stdout, "wb") as file:
        file.write(data)
    io.wait()
    io.close()
    assert bytes(io.stdout) == data


def test_a_closed_process_is_let_go_of(tmp_path: Path) -> None:
    """Nobody ever opened the daemon's side: close() must not wait for that."""
    io = Capture(stdin=b"x" * (1 << 20), directory=str(tmp_path))
    io.open("c1")
    io.start(lambda: None)
    io.close()
    io.close()
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_gone_does_not_stop_the_container(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    io = FifoIO(stdout=write, directory=str(tmp_path))
    streams = io.open("c1")
    stdout = os.open(streams.stdout, os.O_WRONLY)
    io.start(lambda: None)
    with open(stdout, "wb") as file:
        file.write(b"x" * (1 << 20))
    io.wait()
    io.close()
    os.close(write)


def test_detached_fifos_stay(tmp_path: Path) -> None:
    io = Capture(directory=str(tmp_path))
    streams = io.open("c1")
    io.start(lambda: None)
    io.detach()
    io.close()
    assert os.path.exists(streams.stdout)


def test_fifos_are_private(tmp_path: Path) -> None:
    io = Capture(directory=str(tmp_path))
    streams = io.open("../../evil")
    assert os.path.dirname(os.path.dirname(streams.stdout)) == str(tmp_path)
    assert os.stat(os.path.dirname(streams.stdout)).st_mode & 0o777 == 0o700
    io.close()


def test_logs_and_nothing() -> None:
    assert NullIO().open("x").stdout == ""
    assert LogIO("/var/log/x").open("x").stdout == "file:///var/log/x"
    assert LogIO("binary:///bin/logger?x=y").open("x").stderr == "binary:///bin/logger?x=y"
    with pytest.raises(InvalidArgumentError, match="http"):
        LogIO("http://x")
