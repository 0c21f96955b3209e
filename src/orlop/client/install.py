"""Programs out of an image onto this host, as `Image.install`.

Only files and links directly in `bin` (and `lib`) are taken, and links only where they stay there: an image need not be
trusted with more than what its programs will do when they are run. A file is whole before it has its name.

Source: Install in containerd's client/install.go.
"""

import os
import posixpath
import tarfile
import tempfile
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, cast

from orlop.base.errdefs import AlreadyExistsError, DataLossError, InvalidArgumentError, NotFoundError
from orlop.client.content import Content
from orlop.client.introspection import Introspection
from orlop.client.session import Session
from orlop.core.diff.errors import ArchiveError
from orlop.core.diff.stream import uncompressed

if TYPE_CHECKING:
    from orlop.client.images import Image


async def install(session: Session, image: "Image", path: str, *, libraries: bool, replace: bool) -> list[str]:
    """Install an image's programs; see `Image.install`."""
    target = path or await _opt_path(session)
    directories = ("bin", "lib") if libraries else ("bin",)
    installed = []
    for layer in (await image.manifest()).layers:
        with tempfile.TemporaryFile(prefix="orlop-install-") as file:
            async for chunk in Content(session).chunks(layer.digest):
                await session.blocking(file.write, chunk)
            file.seek(0)
            installed += await session.blocking(_install_layer, file, target, directories, replace, str(layer.digest))
    return installed


async def _opt_path(session: Session) -> str:
    found = await Introspection(session).plugins(["id==opt"])
    if len(found) != 1:
        raise NotFoundError("opt service not enabled", hint="say where to with --path")
    path = found[0].exports.get("path", "")
    if not path:
        raise NotFoundError("opt path not exported", hint="say where to with --path")
    return path


def _install_layer(file: IO[bytes], target: str, directories: tuple[str, ...], replace: bool, digest: str) -> list[str]:
    installed = []
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", _Plain(uncompressed(file.read))), mode="r|") as archive:
            for member in archive:
                name = posixpath.normpath(member.name)
                if posixpath.dirname(name) in directories and not member.isdir():
                    _install(archive, member, target, name, replace)
                    installed.append(os.path.join(target, name))
    except (tarfile.TarError, ArchiveError) as error:
        raise DataLossError(f"install layer {digest}: {error}") from error
    return installed


def _install(archive: tarfile.TarFile, member: tarfile.TarInfo, target: str, name: str, replace: bool) -> None:
    place = os.path.join(target, name)
    if not replace and os.path.lexists(place):
        raise AlreadyExistsError(f"cannot replace {name} in {target}")
    os.makedirs(os.path.dirname(place), exist_ok=True)
    beside = f"{place}.orlop-{os.getpid()}"
    try:
        if member.isreg():
            source = archive.extractfile(member)
            assert source is not None
            with open(beside, "xb") as file:
                while data := source.read(1 << 20):
                    file.write(data)
            os.chmod(beside, member.mode & 0o755)
        elif member.issym() and "/" not in member.linkname:
            os.symlink(member.linkname, beside)
        elif member.islnk() and posixpath.dirname(posixpath.normpath(member.linkname)) == posixpath.dirname(name):
            os.link(os.path.join(target, posixpath.normpath(member.linkname)), beside, follow_symlinks=False)
        else:
            raise InvalidArgumentError(f"install {name}: it is neither a file nor a link to one beside it")
        os.replace(beside, place)
    except BaseException:
        if os.path.lexists(beside):
            os.unlink(beside)
        raise


class _Plain:
    """Chunks as a file to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            self._rest += chunk
        data, self._rest = self._rest[:size], self._rest[size:]
        return data
