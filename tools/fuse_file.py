"""One file of a FUSE file system of our own, for disks that fail or forget on command: a loop device sits on it.

What the disk does with reads, writes and syncs is a `Medium`; this speaks the protocol. Who serves must be a process of
its own: who uses the disk must not wait for itself. Source: linux/fuse.h, protocol 7.31.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, Self

from tools import daemons, residue

NAME: Final = "disk"
_ROOT, _FILE = 1, 2
_BLOCK: Final = 1 << 17

# fuse_in_header; fuse_out_header; fuse_attr; fuse_read_in and fuse_write_in, which begin alike
_IN: Final = struct.Struct("=IIQQIIII")
_OUT: Final = struct.Struct("=IiQ")
_ATTR: Final = struct.Struct("=6Q10I")
_IO: Final = struct.Struct("=QQIIQII")


class Medium(Protocol):
    """What is asked of the file; an `OSError` becomes the answer. One request at a time."""

    size_bytes: int

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: bytes) -> None: ...

    def sync(self) -> None: ...


class LoopDevice:
    """A context manager: a server in a process of its own, and a loop device over what it serves.

    Attributes:
        path: the device.
    """

    def __init__(self, directory: Path, module: str, *arguments: str) -> None:
        """`module` is run with the mount point and the arguments, and calls `serve`."""
        self._target = directory / "fuse"
        self._command: Sequence[str] = [sys.executable, "-m", module, str(self._target), *arguments]
        self._server: subprocess.Popen[bytes] | None = None
        self.path = ""

    def __enter__(self) -> Self:
        self._target.mkdir()
        self._server = subprocess.Popen(self._command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent)
        try:
            assert self._server.stdout is not None
            if not self._server.stdout.readline():
                raise RuntimeError("the disk's server did not start")
            self.path = run("losetup", "--find", "--show", self._target / NAME)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.path:
            run("losetup", "--detach", self.path)
        residue.unmount(os.fspath(self._target))
        if self._server is not None:
            self._server.kill()
            self._server.communicate()
        self._target.rmdir()


def run(*command: str | Path) -> str:
    """Run a program to its end; what it said.

    Raises:
        RuntimeError: it failed; the text has its stderr.
    """
    done = subprocess.run(command, check=False, env=daemons.environment(), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


# -- the server ---------------------------------------------------------------------------------------------------


def serve(target: str, medium: Medium) -> None:
    """Serve the medium until it is unmounted; say on stdout when it can be used."""
    from orlop.linux.mount import mount

    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mount("medium", target, "fuse", 0, f"fd={device},rootmode=40000,user_id=0,group_id=0")
    print("mounted", flush=True)
    server = _Server(medium)
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
    def __init__(self, medium: Medium) -> None:
        self._medium = medium
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
        if body.rstrip(b"\0") != os.fsencode(NAME):
            raise OSError(errno.ENOENT, "no such file")
        return struct.pack("=4Q2I", _FILE, 0, 1000, 1000, 0, 0) + self._attr(_FILE)

    def _attr(self, node: int) -> bytes:
        directory = node == _ROOT
        size = 0 if directory else self._medium.size_bytes
        mode = stat.S_IFDIR | 0o755 if directory else stat.S_IFREG | 0o600
        return _ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _read(self, _node: int, body: bytes) -> bytes:
        _, offset, length, *_ = _IO.unpack_from(body)
        return self._medium.read(offset, length)

    def _write(self, _node: int, body: bytes) -> bytes:
        _, offset, length, *_ = _IO.unpack_from(body)
        self._medium.write(offset, body[_IO.size : _IO.size + length])
        return struct.pack("=II", length, 0)

    def _sync(self, _node: int, _body: bytes) -> bytes:
        self._medium.sync()
        return b""
