"""Snapshots whose layers are not extracted: each is one EROFS image, a tar with an index, mounted and stacked.

    <root>/<number>/fs              upper directory while active; a layer too, if its files were written one by one
    <root>/<number>/work            overlayfs's own, for active snapshots
    <root>/<number>/layer.erofs     the layer, put there by a differ (`Snapshotter.image`); `fs` is empty then
    <root>/mounted/<number>         where that is mounted; only there while it is

    kind      parents   mounts
    active    none      bind <own fs>               rw,rbind
    view      none      bind <own fs>               ro,rbind
    active    some      overlay                     workdir=…,upperdir=…,lowerdir=<nearest parent>:…:<bottom>
    view      one       bind <the parent's layer>   ro,rbind
    view      more      overlay                     lowerdir=<nearest parent>:…:<bottom>

So clients and shims perform what they know from overlayfs. The images below are mounted here, when mounts are asked
for: once each, however many use them. What is mounted stays over the end of a killed daemon and is found again by the
next; a boot leaves an empty directory, which the start removes. An image is unmounted when its snapshot is removed, and
all are at a clean stop: an overlay holds on to what it was mounted from, so running containers notice neither.

`_lock` guards what is mounted. It is held for the time of some system calls.
"""

import asyncio
import contextlib
import os
import stat
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orlop.base import failpoints
from orlop.base.errdefs import DataLossError, FailedPreconditionError, OrlopError
from orlop.base.platforms import default, default_string, format_all, with_erofs
from orlop.core.diff import erofs
from orlop.core.kinds import SNAPSHOTTER
from orlop.core.mount import Mount
from orlop.core.mount.perform import as_error, temp_mount, unmount
from orlop.core.plugin import Context, Registration, SkipPlugin
from orlop.core.snapshots import Kind, Snapshot, Snapshotter, Usage
from orlop.core.snapshots.directories import Directories, usage
from orlop.linux import mount as mnt
from orlop.linux import probe
from orlop.plugins.snapshots import root_of

NAME: Final = "erofs"
IMAGE: Final = "layer.erofs"
MOUNTED: Final = "mounted"
_BLOCK_BYTES: Final = 512  # unit of st_blocks, stat(3type)


@dataclass(slots=True)
class Config:
    """The plug-in's section of the configuration.

    Attributes:
        mount_options: added to the options of overlays, not of bind mounts.
    """

    mount_options: list[str] = field(default_factory=list)


class Erofs(Snapshotter):
    """Args:
    root: made if it is missing; on a file system that overlayfs and EROFS can stand on (`verdict`).
    options: of every overlay, after the layers.
    """

    quick = frozenset({"prepare"})
    stacked = True

    def __init__(self, root: Path, *, options: Sequence[str] = ()) -> None:
        self._directories = Directories(root)
        self._directories.create_root()
        self._options = tuple(options)
        self._mounted = os.path.join(root, MOUNTED)
        self._lock = threading.Lock()
        self.exports = {"root": os.fspath(root)}
        os.makedirs(self._mounted, 0o700, exist_ok=True)
        for number in self._mount_points():
            if not os.path.ismount(self._point(number)):
                with contextlib.suppress(OSError):  # not empty, then not ours
                    os.rmdir(self._point(number))

    def close(self) -> None:
        """Unmount every image; what is in use goes on with its users."""
        with self._lock:
            for number in self._mount_points():
                self._unmount(number)

    def prepare(self, snapshot: Snapshot) -> None:
        owner = None
        if snapshot.parents:  # the merged root directory is the upper one
            status = os.stat(self._directories.files(snapshot.parents[0]))
            owner = (status.st_uid, status.st_gid)
        self._directories.make(snapshot.number, work=snapshot.kind == Kind.ACTIVE, owner=owner)

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        files, parents = self._directories.files, snapshot.parents
        if not parents:
            access = "ro" if snapshot.kind == Kind.VIEW else "rw"
            return [Mount(type="bind", source=files(snapshot.number), options=(access, "rbind"))]
        layers = [self._layer(number) for number in parents]
        if snapshot.kind == Kind.VIEW and len(layers) == 1:
            return [Mount(type="bind", source=layers[0], options=("ro", "rbind"))]
        options: tuple[str, ...] = ()
        if snapshot.kind == Kind.ACTIVE:
            options = (f"workdir={self._directories.work(snapshot.number)}", f"upperdir={files(snapshot.number)}")
        lower = ":".join(layers)
        return [Mount(type="overlay", source="overlay", options=(*options, f"lowerdir={lower}", *self._options))]

    def commit(self, snapshot: Snapshot) -> None:
        if os.path.exists(self._image(snapshot.number)) and os.listdir(self._directories.files(snapshot.number)):
            raise FailedPreconditionError(
                f"snapshotter {NAME}: snapshot number {snapshot.number} holds both a layer's image and files"
            )

    def usage(self, snapshot: Snapshot) -> Usage:
        found = usage(self._directories.files(snapshot.number))
        with contextlib.suppress(FileNotFoundError):
            found += Usage(os.stat(self._image(snapshot.number)).st_blocks * _BLOCK_BYTES, 1)
        return found

    def home(self, number: int) -> Path:
        return self._directories.home(number)

    @contextlib.contextmanager
    def opened(self, number: int) -> Iterator[str]:
        """An image is mounted once more: who has it mounted already may see what it once was."""
        image = self._image(number)
        if not os.path.exists(image):
            yield self._directories.files(number)
            return
        _check(image)
        with temp_mount(
            [Mount(type="erofs", source=image, options=("ro",))], os.fspath(self._directories.root)
        ) as path:
            yield path

    def exchanged(self, number: int) -> None:
        self.remove(number)  # what is mounted is the old image; who uses it keeps it

    def remove(self, number: int) -> None:
        with self._lock:
            self._unmount(number)

    def numbers(self) -> list[int]:
        return sorted({*self._directories.numbers(), *self._mount_points()})

    def sync(self, numbers: Sequence[int]) -> None:
        self._directories.sync()

    def locate(self, path: str) -> int | None:
        return self._directories.locate(path)

    def image(self, number: int) -> str | None:
        return self._image(number)

    def _image(self, number: int) -> str:
        return os.path.join(self._directories.home(number), IMAGE)

    def _point(self, number: int) -> str:
        return f"{self._mounted}/{number}"

    def _mount_points(self) -> list[int]:
        with os.scandir(self._mounted) as entries:
            return [int(entry.name) for entry in entries if entry.name.isascii() and entry.name.isdecimal()]

    def _layer(self, number: int) -> str:
        """The directory that shows a committed snapshot's own layer; mounted, if it is an image.

        Raises:
            DataLossError: the image is not as long as it says.
            OrlopError: the kernel refuses to mount it.
        """
        image = self._image(number)
        if not os.path.exists(image):
            return self._directories.files(number)
        point = self._point(number)
        with self._lock:
            if not os.path.ismount(point):
                _check(image)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(point, 0o700)
                try:
                    mnt.mount(image, point, "erofs", mnt.MS_RDONLY)
                except OSError as error:
                    os.rmdir(point)
                    raise as_error(f"snapshotter {NAME}: mount {image}", error) from error
                failpoints.reach("erofs.layer.mounted")
        return point

    def _unmount(self, number: int) -> None:
        point = self._point(number)
        if os.path.ismount(point):
            unmount(point, detach=True)
            failpoints.reach("erofs.layer.unmounted")
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(point)


def _check(image: str) -> None:
    """The kernel mounts a file that is cut and then reads zeros or fails; so its length is compared first.

    Raises:
        DataLossError: it has not the length that its superblock says, or no superblock.
    """
    with open(image, "rb") as file:
        head = file.read(erofs.HEAD)
        size = os.fstat(file.fileno()).st_size
    if damage := erofs.damage(head, size):
        raise DataLossError(f"snapshotter {NAME}: {image} is incomplete: {damage}")


def verdict(root: Path) -> probe.Verdict:
    """Whether images on the file system of `root` can be mounted here and stacked; tried with a small one.

    A file-backed mount takes Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE, its blocks 6.4, and a file system whose
    files can be one (not tmpfs, not overlayfs).
    """
    words = b"words\n"
    with tempfile.TemporaryDirectory(prefix=probe.SCRATCH, dir=root) as scratch:
        image, upper, work = (os.path.join(scratch, name) for name in ("image", "upper", "work"))
        with open(image, "wb") as file:
            file.write(_small_image(words))
        for path in (upper, work):
            os.mkdir(path)
        try:
            with temp_mount([Mount(type="erofs", source=image, options=("ro",))], scratch) as lower:
                options = (f"workdir={work}", f"upperdir={upper}", f"lowerdir={lower}")
                overlay = Mount(type="overlay", source="overlay", options=options)
                with temp_mount([overlay], scratch) as merged, open(os.path.join(merged, "file"), "rb") as file:
                    failpoints.reach("erofs.probe.mounted")
                    if file.read() != words:
                        return probe.Verdict(False, "an EROFS image over overlayfs gives wrong data")
        except (OrlopError, OSError) as error:
            return probe.Verdict(False, f"cannot mount an EROFS image from a file on {root}: {error}")
    return probe.Verdict(True)


def _small_image(words: bytes) -> bytes:
    root = erofs.Node(stat.S_IFDIR | 0o755, 0, 0, 0)
    file = erofs.Node(stat.S_IFREG | 0o644, 0, 0, 0)
    file.size, file.block = len(words), erofs.DATA // erofs.BLOCK
    root.children = {b"file": file}
    metadata = erofs.Metadata(root, file.block + 1)
    image = bytearray(erofs.DATA) + words.ljust(erofs.BLOCK, b"\0") + b"".join(metadata.pieces())
    head = metadata.superblock()
    image[erofs.SUPER_OFFSET : erofs.SUPER_OFFSET + len(head)] = head
    return bytes(image)


def _init(context: Context) -> Erofs:
    root = root_of(context, NAME)
    allowed = probe.mount_allowed()
    if not allowed:
        raise SkipPlugin(allowed.reason)
    directories = Directories(root)
    directories.create_root()
    directories.remove_scratch(probe.SCRATCH)
    works = verdict(root)
    if not works:
        raise SkipPlugin(works.reason)
    options = list(context.config.mount_options)
    known = (option.partition("=")[0] for option in options)
    if "index" not in known and probe.overlay_index_off(os.fspath(root)):
        options.append("index=off")
    snapshotter = Erofs(root, options=options)
    context.on_close(lambda: asyncio.to_thread(snapshotter.close))
    context.exports.update(snapshotter.exports)
    context.platforms += [default_string(), format_all(with_erofs(default()))]
    return snapshotter


REGISTRATION: Final = Registration(kind=SNAPSHOTTER, id=NAME, config=Config, init=_init)
