"""Hashing, compressing and writing on threads."""

import gzip
import hashlib
import os
import threading
from collections.abc import Callable

import pytest

from orlop.core.diff.output import Output
from orlop.core.diff.stream import Compression

DATA = [os.urandom(1000) * 50, b"x", b"", os.urandom(2 << 20)]


def written(compression, path):
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        output = Output(fd, compression)
        output.start()
        for piece in DATA:
            output.write(piece)
        digest = output.finish()
        assert output.written == os.fstat(fd).st_size
    finally:
        os.close(fd)
    return digest, path.read_bytes()


@pytest.mark.parametrize("compression", list(Compression))
def test_what_is_written_can_be_read_and_is_the_same_again(compression, tmp_path):
    from backports import zstd

    expand: dict[Compression, Callable[[bytes], bytes]] = {
        Compression.NONE: bytes,
        Compression.GZIP: gzip.decompress,
        Compression.ZSTD: zstd.decompress,
    }
    digest, data = written(compression, tmp_path / "one")
    assert expand[compression](data) == b"".join(DATA)
    assert digest == f"sha256:{hashlib.sha256(b''.join(DATA)).hexdigest()}"
    assert written(compression, tmp_path / "two") == (digest, data)


def test_who_writes_is_told_that_nobody_reads():
    read_end, write_end = os.pipe()
    os.close(read_end)
    output = Output(write_end, Compression.NONE)
    output.start()
    try:
        with pytest.raises(BrokenPipeError):
            flood(output)
    finally:
        with pytest.raises(BrokenPipeError):
            output.finish()
        os.close(write_end)
    assert not any(thread.name in ("update", "_store") for thread in threading.enumerate())


def flood(output):
    for _ in range(100):
        output.write(bytes(1 << 20))
