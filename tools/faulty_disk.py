"""A disk that fails on command, for kernels without device mapper: an ext4 on a loop device over one file of a FUSE
file system of our own, which answers EIO while it is told to.

    with FaultyDisk(directory, 64 << 20) as disk:
        … disk.target …
        with disk.failing(writes=True):
            …

The file system has no journal and goes on after errors, as a disk that comes back is to be found again; what was not
written in between is lost, which is the point. The server is a process of its own: who uses the disk must not be who
serves it. Source: linux/fuse.h, protocol 7.31.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

from tools import daemons, residue

_NAME: Final = b"disk"
_ROOT, _FILE = 1, 2
_READS, _WRITES = 0, 1
_BLOCK: Final = 1 << 17

# fuse_in_header; fuse_out_header; fuse_attr; fuse_read_in and fuse_write_in, which begin alike
_IN: Final = struct.Struct("=IIQQIIII")
_OUT: Final = struct.Struct("=IiQ")
_ATTR: Final = struct.Struct("=6Q10I")
_IO: Final = struct.Struct("=QQIIQII")


class FaultyDisk:
    """A mounted file system below `directory`; all is gone when the context ends.

    Attributes:
        target: where it is mounted.
    """

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self._fuse, self._control = directory / "fuse", directory / "control"
        self._size = size_bytes
        self.target = directory / "disk"
        self._server: subprocess.Popen[bytes] | None = None
        self._loop = ""

    def __enter__(self) -> Self:
        self._fuse.mkdir()
        self.target.mkdir()
        self._control.write_bytes(bytes(mmap.PAGESIZE))
        command = [sys.executable, "-m", "tools.faulty_disk", str(self._fuse), str(self._size), str(self._control)]
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent)
        try:
            assert self._server.stdout is not None
            if not self._server.stdout.readline():
                raise RuntimeError("the disk's server did not start")
            self._loop = _run("losetup", "--find", "--show", self._fuse / os.fsdecode(_NAME))
            _run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", self._loop)
            _run("mount", "-o", "errors=continue", self._loop, self.target)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._control.exists():
            self._fail(reads=False, writes=False)
        residue.remove(residue.find(self.target))
        residue.unmount(os.fspath(self.target))
        if self._loop:
            _run("losetup", "--detach", self._loop)
        residue.unmount(os.fspath(self._fuse))
        if self._server is not None:
            self._server.kill()
            self._server.communicate()
        self._control.unlink(missing_ok=True)
        self._fuse.rmdir()
        self.target.rmdir()

    @contextlib.contextmanager
    def failing(self, *, reads: bool = False, writes: bool = False) -> Iterator[None]:
        """While the block runs, what the disk is asked for fails with EIO. What is in the page cache can be read."""
        self._fail(reads=reads, writes=writes)
        try:
            yield
        finally:
            self._fail(reads=False, writes=False)

    def forget(self, file: Path) -> None:
        """Take a file out of the page cache, so that reading it asks the disk."""
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)

    def _fail(self, *, reads: bool, writes: bool) -> None:
        with open(self._control, "r+b") as control:
            control.write(bytes((reads, writes)))


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, check=False, env=daemons.environment(), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


# -- the server ---------------------------------------------------------------------------------------------------


def serve(target: str, size: int, control: str) -> None:
    """Serve a file of `size` bytes, at first zeros, until it is unmounted; say on stdout when it can be used."""
    from orlop.linux.mount import mount

    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mount("faulty", target, "fuse", 0, f"fd={device},rootmode=40000,user_id=0,group_id=0")
    print("mounted", flush=True)
    data = os.memfd_create("disk")
    os.truncate(data, size)
    with open(control, "rb") as file, mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ) as failing:
        server = _Server(data, size, failing)
        while True:
            try:
                request = os.read(device, (1 << 20) + 4096)
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                raise
            answer = server.answer(request)
            if answer is not None:
                with contextlib.suppress(FileNotFoundError):  # whoever asked has been interrupted
                    os.write(device, answer)


class _Server:
    def __init__(self, data: int, size: int, failing: mmap.mmap) -> None:
        self._data, self._size, self._failing = data, size, failing
        self._calls: dict[int, Callable[[int, bytes], bytes]] = {
            1: self._lookup,
            3: lambda node, _body: struct.pack("=QII", 1000, 0, 0) + self._attr(node),  # GETATTR
            4: lambda node, _body: struct.pack("=QII", 1000, 0, 0) + self._attr(node),  # SETATTR
            14: lambda _node, _body: struct.pack("=QII", 0, 1, 0),  # OPEN: FOPEN_DIRECT_IO
            15: self._read,
            16: self._write,
            17: lambda _node, _body: struct.pack("=5Q4I24x", 1 << 20, 1 << 20, 1 << 20, 2, 0, 4096, 255, 4096, 0),
            18: lambda _node, _body: b"",  # RELEASE
            20: self._sync,
            25: lambda _node, _body: b"",  # FLUSH
            26: self._init,
        }

    def answer(self, request: bytes) -> bytes | None:
        _length, opcode, unique, node, *_ = _IN.unpack_from(request)
        if opcode in (2, 42, 36):  # FORGET, BATCH_FORGET, INTERRUPT have no answer
            return None
        try:
            call = self._calls.get(opcode)
            if call is None:
                raise OSError(errno.ENOSYS, "not there")
            body = call(node, request[_IN.size :])
        except OSError as error:
            return _OUT.pack(_OUT.size, -(error.errno or errno.EIO), unique)
        return _OUT.pack(_OUT.size + len(body), 0, unique) + body

    def _init(self, _node: int, body: bytes) -> bytes:
        readahead = struct.unpack_from("=3I", body)[2]
        return struct.pack("=IIIIHHIIHHI28x", 7, 31, readahead, 0, 16, 12, _BLOCK, 1, 0, 0, 0)

    def _lookup(self, _node: int, body: bytes) -> bytes:
        if body.rstrip(b"\0") != _NAME:
            raise OSError(errno.ENOENT, "no such file")
        return struct.pack("=4Q2I", _FILE, 0, 1000, 1000, 0, 0) + self._attr(_FILE)

    def _attr(self, node: int) -> bytes:
        directory = node == _ROOT
        size = 0 if directory else self._size
        mode = stat.S_IFDIR | 0o755 if directory else stat.S_IFREG | 0o600
        return _ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _read(self, _node: int, body: bytes) -> bytes:
        self._maybe_fail(_READS)
        _, offset, length, *_ = _IO.unpack_from(body)
        return os.pread(self._data, length, offset)

    def _write(self, _node: int, body: bytes) -> bytes:
        self._maybe_fail(_WRITES)
        _, offset, length, *_ = _IO.unpack_from(body)
        return struct.pack("=II", os.pwrite(self._data, body[_IO.size : _IO.size + length], offset), 0)

    def _sync(self, _node: int, _body: bytes) -> bytes:
        self._maybe_fail(_WRITES)
        return b""

    def _maybe_fail(self, what: int) -> None:
        if self._failing[what]:
            raise OSError(errno.EIO, "told to fail")


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
