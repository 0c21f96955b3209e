"""Programs out of an image onto this host, as `Image.install`.

Only files and links directly in `bin` (and `lib`) are taken, and links only where they stay there: an image need not be
trusted with more than what its programs will do when they are run. A file is whole before it has its name.

Source: Install in containerd's client/install.go.
"""

import os
import posixpath
import tempfile
from typing import IO, TYPE_CHECKING, Final

from orlop.base.errdefs import AlreadyExistsError, DataLossError, InvalidArgumentError, NotFoundError
from orlop.client.content import Content
from orlop.client.introspection import Introspection
from orlop.client.session import Session
from orlop.core.diff.errors import ArchiveError
from orlop.core.diff.stream import uncompressed
from orlop.core.diff.tar import DIRECTORY, LINK, REGULAR, SYMLINK, Entry, Reader

if TYPE_CHECKING:
    from orlop.client.images import Image

WHITEOUT: Final = ".wh."


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
        archive = Reader(uncompressed(file.read))
        for entry in archive:
            name = posixpath.normpath(os.fsdecode(entry.name))
            parent, base = posixpath.split(name)
            # What a layer takes away of another layer is passed over: the host's programs are not the image's.
            if parent in directories and entry.type != DIRECTORY and not base.startswith(WHITEOUT):
                _install(archive, entry, target, name, replace)
                installed.append(os.path.join(target, name))
    except ArchiveError as error:
        raise DataLossError(f"install layer {digest}: {error}") from error
    return installed


def _install(archive: Reader, entry: Entry, target: str, name: str, replace: bool) -> None:
    place = os.path.join(target, name)
    if not replace and os.path.lexists(place):
        raise AlreadyExistsError(f"cannot replace {name} in {target}")
    os.makedirs(os.path.dirname(place), exist_ok=True)
    beside = f"{place}.orlop-{os.getpid()}"
    link = os.fsdecode(entry.link)
    try:
        if entry.type == REGULAR and entry.segments is None:
            with open(beside, "xb") as file:
                for piece in archive.pieces(entry.size):
                    file.write(piece)
            os.chmod(beside, entry.mode & 0o755)
        elif entry.type == SYMLINK and "/" not in link:
            os.symlink(link, beside)
        elif entry.type == LINK and posixpath.dirname(posixpath.normpath(link)) == posixpath.dirname(name):
            os.link(os.path.join(target, posixpath.normpath(link)), beside, follow_symlinks=False)
        else:
            raise InvalidArgumentError(f"install {name}: it is neither a file nor a link to one beside it")
        os.replace(beside, place)
    except BaseException:
        if os.path.lexists(beside):
            os.unlink(beside)
        raise
