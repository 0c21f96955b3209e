"""Snapshots whose layers are not extracted: each is one EROFS image, a tar with an index, mounted and stacked.

    <root>/<number>/fs              upper directory while active; a layer too, if its files were written one by one
    <root>/<number>/work            overlayfs's own, for active snapshots
    <root>/<number>/layer.erofs     the layer, put there by a differ (`Snapshotter.image`); `fs` is empty then
    <root>/mounted/<number>         where that is mounted; only there while it is
    <root>/mapped/<number>/<map>    the layer with ids mapped, for snapshots with such labels; as `mounted`

    kind      parents   mounts
    active    none      bind <own fs>               rw,rbind
    view      none      bind <own fs>               ro,rbind
    active    some      overlay                     workdir=…,upperdir=…,lowerdir=<nearest parent>:…:<bottom>
    view      one       bind <the parent's layer>   ro,rbind
    view      more      overlay                     lowerdir=<nearest parent>:…:<bottom>

So clients and shims perform what they know from overlayfs. The images below are mounted here, when mounts are asked
for: once each, however many use them, and once more for each mapping of ids. What is mounted stays over the end of a
killed daemon and is found again by the next; a boot leaves empty directories, which the start removes. An image is
unmounted when its snapshot is removed, and all are at a clean stop: an overlay holds on to what it was mounted from, so
running containers notice neither.

`_lock` guards what is mounted. It is held for the time of some system calls, and for a new mapping of a small process.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import stat
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orlop.base import failpoints, platforms
from orlop.base.errdefs import DataLossError, FailedPreconditionError, OrlopError, UnimplementedError
from orlop.core.diff import erofs
from orlop.core.kinds import SNAPSHOTTER
from orlop.core.mount import Mount, idmap
from orlop.core.mount.options import parse
from orlop.core.mount.perform import TEMPORARY, mount_all, temp_mount, unmount
from orlop.core.plugin import Context, Registration, SkipPlugin
from orlop.core.snapshots import Kind, Snapshot, Snapshotter, Usage
from orlop.core.snapshots.directories import Directories, usage
from orlop.linux import probe
from orlop.plugins.snapshots import root_of
from orlop.plugins.snapshots.mapping import ONLY_REMAP_IDS, REMAP_IDS, map_options, mapped_root

log: Final = logging.getLogger(__name__)

NAME: Final = "erofs"
IMAGE: Final = "layer.erofs"
MOUNTED: Final = "mounted"
MAPPED: Final = "mapped"
_MAX_USER_NAMESPACES: Final = Path("/proc/sys/user/max_user_namespaces")
_BLOCK_BYTES: Final = 512  # unit of st_blocks, stat(3type)


@dataclass(slots=True)
class Config:
    """The plug-in's section of the configuration.

    Attributes:
        mount_options: added to the options of overlays, not of bind mounts.
        over_loop: mount images over loop devices also where the kernel can mount them from their files.
    """

    mount_options: list[str] = field(default_factory=list)
    over_loop: bool = False


class Erofs(Snapshotter):
    """Args:
    root: made if it is missing; on a file system that overlayfs and EROFS can stand on (`verdict`).
    options: of every overlay, after the layers.
    over_loop: mount images over loop devices, which go with their mounts.
    maps_ids: whether this host can map the ids of layers; see `maps_ids`.
    """

    quick = frozenset({"prepare"})
    stacked = True
    shares = True

    def __init__(
        self, root: Path, *, options: Sequence[str] = (), over_loop: bool = False, maps_ids: bool = False
    ) -> None:
        self._over_loop = over_loop
        self.capabilities = (REMAP_IDS, ONLY_REMAP_IDS) if maps_ids else ()
        self._directories = Directories(root)
        self._directories.create_root()
        self._options = tuple(options)
        self._mounted = os.path.join(root, MOUNTED)
        self._mapped = os.path.join(root, MAPPED)
        self._lock = threading.Lock()
        self.exports = {"root": os.fspath(root), "images": "loop" if over_loop else "file"}
        for directory in (self._mounted, self._mapped):
            os.makedirs(directory, 0o700, exist_ok=True)
        for left in root.glob(f"{TEMPORARY}*"):  # of a check whose daemon was killed
            with contextlib.suppress(OSError, OrlopError):
                unmount(os.fspath(left), detach=True)
                left.rmdir()
        for number in self._numbers_mounted():
            for point in self._points(number):
                _rmdir(point)
            _rmdir(f"{self._mapped}/{number}")

    def close(self) -> None:
        """Unmount every image; what is in use goes on with its users."""
        with self._lock:
            for number in self._numbers_mounted():
                self._unmount(number)

    def prepare(self, snapshot: Snapshot) -> None:
        owner = self._owner(snapshot)
        self._directories.make(snapshot.number, work=snapshot.kind == Kind.ACTIVE, owner=owner)

    def _owner(self, snapshot: Snapshot) -> tuple[int, int] | None:
        """Whom the root directory of a new snapshot belongs to, if not us."""
        if maps := map_options(snapshot.labels):
            if REMAP_IDS not in self.capabilities:
                raise UnimplementedError(f"snapshotter {NAME}: id mapping by label: this host has no id-mapped layers")
            return mapped_root(NAME, maps)
        if snapshot.parents:  # the merged root directory is the upper one
            status = os.stat(self._directories.files(snapshot.parents[0]))
            return status.st_uid, status.st_gid
        return None

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        files, parents = self._directories.files, snapshot.parents
        maps = map_options(snapshot.labels)
        if not parents:
            access = "ro" if snapshot.kind == Kind.VIEW else "rw"
            return [Mount(type="bind", source=files(snapshot.number), options=(*maps, access, "rbind"))]
        layers = [self._layer(number) for number in parents]
        if maps:
            layers = self._map(parents, layers, maps)
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
        mount = _mount_of(image, over_loop=self._over_loop)
        with temp_mount([mount], os.fspath(self._directories.root)) as path:
            yield path

    def exchanged(self, number: int) -> None:
        self.remove(number)  # what is mounted is the old image; who uses it keeps it

    def remove(self, number: int) -> None:
        with self._lock:
            self._unmount(number)

    def numbers(self) -> list[int]:
        return sorted({*self._directories.numbers(), *self._numbers_mounted()})

    def sync(self, numbers: Sequence[int]) -> None:
        self._directories.sync()

    def locate(self, path: str) -> int | None:
        return self._directories.locate(path)

    def untouched(self, snapshot: Snapshot) -> bool:
        fresh = self._directories.is_fresh(snapshot.number, self._owner(snapshot))
        return fresh and not os.path.exists(self._image(snapshot.number))

    def image(self, number: int) -> str | None:
        return self._image(number)

    def _image(self, number: int) -> str:
        return os.path.join(self._directories.home(number), IMAGE)

    def _point(self, number: int) -> str:
        return f"{self._mounted}/{number}"

    def _points(self, number: int) -> list[str]:
        """Where a layer is mounted, or was; mapped copies first."""
        mapped = f"{self._mapped}/{number}"
        try:
            names = os.listdir(mapped)
        except FileNotFoundError:
            names = []
        return [*(f"{mapped}/{name}" for name in names), self._point(number)]

    def _numbers_mounted(self) -> set[int]:
        names = (*os.listdir(self._mounted), *os.listdir(self._mapped))
        return {int(name) for name in names if name.isascii() and name.isdecimal()}

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
                    mount_all([_mount_of(image, over_loop=self._over_loop)], point)
                except BaseException:
                    os.rmdir(point)
                    raise
                failpoints.reach("erofs.layer.mounted")
        return point

    def _map(self, numbers: Sequence[int], layers: Sequence[str], maps: tuple[str, ...]) -> list[str]:
        """Directories that show the layers with mapped ids.

        Raises:
            UnimplementedError: this host gives no user namespaces.
        """
        name = hashlib.sha256(",".join(maps).encode()).hexdigest()[:12]
        points = [f"{self._mapped}/{number}/{name}" for number in numbers]
        with self._lock, contextlib.ExitStack() as stack:
            userns_fd = -1
            for layer, point in zip(layers, points, strict=True):
                if _shows(point, layer):
                    continue
                if userns_fd < 0:
                    parsed = parse(maps)
                    userns_fd = stack.enter_context(idmap.user_namespace(parsed.uid_maps, parsed.gid_maps))
                os.makedirs(point, 0o700, exist_ok=True)
                try:
                    idmap.attach_mapped(layer, point, userns_fd, recursive=False)
                except BaseException:
                    _rmdir(point)
                    _rmdir(os.path.dirname(point))
                    raise
        return points

    def _unmount(self, number: int) -> None:
        for point in filter(os.path.lexists, self._points(number)):
            unmount(point, detach=True)
            failpoints.reach("erofs.layer.unmounted")
            _rmdir(point)
        _rmdir(f"{self._mapped}/{number}")


def _shows(point: str, layer: str) -> bool:
    """Whether a copy of the mount that `layer` lies on is at `point`: then both are one directory."""
    try:
        return os.path.samefile(point, layer)
    except FileNotFoundError:
        return False


def _rmdir(path: str) -> None:
    """Remove an empty directory; what is mounted or holds something, and is then not ours, stays."""
    with contextlib.suppress(OSError):
        os.rmdir(path)


def _mount_of(image: str, *, over_loop: bool) -> Mount:
    return Mount(type="erofs", source=image, options=("ro", "loop") if over_loop else ("ro",))


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


def verdict(root: Path, *, over_loop: bool = False) -> probe.Verdict:
    """Whether images on the file system of `root` can be mounted here and stacked; tried with a small one.

    Their blocks take Linux 6.4. A mount straight from a file takes 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE, and a file
    system whose files can be one (not tmpfs, not overlayfs); one `over_loop` takes loop devices.
    """
    words = b"words\n"
    with tempfile.TemporaryDirectory(prefix=probe.SCRATCH, dir=root) as scratch:
        image, upper, work = (os.path.join(scratch, name) for name in ("image", "upper", "work"))
        with open(image, "wb") as file:
            file.write(_small_image(words))
        for path in (upper, work):
            os.mkdir(path)
        try:
            with temp_mount([_mount_of(image, over_loop=over_loop)], scratch) as lower:
                options = (f"workdir={work}", f"upperdir={upper}", f"lowerdir={lower}")
                overlay = Mount(type="overlay", source="overlay", options=options)
                with temp_mount([overlay], scratch) as merged, open(os.path.join(merged, "file"), "rb") as file:
                    failpoints.reach("erofs.probe.mounted")
                    if file.read() != words:
                        return probe.Verdict(False, "an EROFS image over overlayfs gives wrong data")
        except (OrlopError, OSError) as error:
            way = "over a loop device" if over_loop else "from a file"
            return probe.Verdict(False, f"cannot mount an EROFS image {way} on {root}: {error}")
    return probe.Verdict(True)


def maps_ids() -> bool:
    """Whether the ids of layers can be mapped here.

    EROFS and overlayfs can since Linux 5.19, so wherever images can be mounted at all; and a mapping takes a user
    namespace. It is not tried, since that would start a process with every daemon.
    """
    try:
        return int(_MAX_USER_NAMESPACES.read_text()) > 0
    except (OSError, ValueError):
        return False


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


def needs_loop(root: Path, *, over_loop: bool) -> bool:
    """Whether images are mounted over loop devices: straight from their files is better, where that works.

    Args:
        over_loop: do not try without.

    Raises:
        SkipPlugin: neither works.
    """
    straight = None if over_loop else verdict(root)
    if straight:
        return False
    looped = verdict(root, over_loop=True)
    if not looped:
        raise SkipPlugin("; ".join(one.reason for one in (straight, looped) if one is not None))
    log.info(
        "erofs: images are mounted over loop devices", extra={"reason": "set" if straight is None else straight.reason}
    )
    return True


def _init(context: Context) -> Erofs:
    root = root_of(context, NAME)
    allowed = probe.mount_allowed()
    if not allowed:
        raise SkipPlugin(allowed.reason)
    directories = Directories(root)
    directories.create_root()
    directories.remove_scratch(probe.SCRATCH)
    over_loop = needs_loop(root, over_loop=context.config.over_loop)
    options = list(context.config.mount_options)
    known = (option.partition("=")[0] for option in options)
    if "index" not in known and probe.overlay_index_off(os.fspath(root)):
        options.append("index=off")
    snapshotter = Erofs(root, options=options, over_loop=over_loop, maps_ids=maps_ids())
    context.on_close(lambda: asyncio.to_thread(snapshotter.close))
    context.exports.update(snapshotter.exports)
    context.capabilities.extend(snapshotter.capabilities)
    here = platforms.default_string()
    context.platforms += [here, platforms.format_all(platforms.with_erofs(platforms.parse(here)))]
    return snapshotter


REGISTRATION: Final = Registration(kind=SNAPSHOTTER, id=NAME, config=Config, init=_init)
