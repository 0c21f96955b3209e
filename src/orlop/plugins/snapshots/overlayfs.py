"""Snapshots as layers of overlayfs: each keeps what it changes, the kernel stacks them.

    <root>/<number>/fs      upper directory while active, a lower one once committed
    <root>/<number>/work    overlayfs's own, for active snapshots

    kind      parents   mounts
    active    none      bind <own fs>            rw,rbind
    view      none      bind <own fs>            ro,rbind
    active    some      overlay                  workdir=…,upperdir=…,lowerdir=<nearest parent>:…:<bottom>
    view      one       bind <parent's fs>       ro,rbind
    view      more      overlay                  lowerdir=<nearest parent>:…:<bottom>

To an overlay's options are added the configured ones, `userxattr` in a user namespace, and `index=off` where the kernel
knows it (a lower directory that two mounts share is refused else). With id mapping labels each mount begins with
`uidmap=` and `gidmap=`. These shapes are containerd's (plugins/snapshots/overlay), to the order of the options.
"""

import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orlop.base import failpoints
from orlop.base.errdefs import OrlopError, UnimplementedError
from orlop.base.platforms import default_string
from orlop.core.kinds import SNAPSHOTTER
from orlop.core.mount import Mount
from orlop.core.mount.perform import temp_mount
from orlop.core.plugin import Context, Registration, SkipPlugin
from orlop.core.snapshots import Kind, Snapshot, Snapshotter, Usage
from orlop.core.snapshots.directories import Directories, usage
from orlop.linux import probe
from orlop.plugins.snapshots import root_of
from orlop.plugins.snapshots.mapping import ONLY_REMAP_IDS, REMAP_IDS, map_options, mapped_root

NAME: Final = "overlayfs"
UPPERDIR_LABEL: Final = "containerd.io/snapshot/overlay.upperdir"
REBASE: Final = "rebase"


@dataclass(slots=True)
class Config:
    """The plug-in's section of the configuration.

    Attributes:
        mount_options: added to the options of overlays, not of bind mounts.
        upperdir_label: show clients the upper directory, in the label `UPPERDIR_LABEL`.
        slow_chown: where this host cannot map ids, let clients change the owners of all files instead of refusing.
        async_remove: what is removed is always unlinked later here; kept so that containerd's files are understood.
    """

    mount_options: list[str] = field(default_factory=list)
    upperdir_label: bool = False
    slow_chown: bool = False
    async_remove: bool = True


class Overlayfs(Snapshotter):
    """Args:
    root: made if it is missing; on a file system that overlayfs can stand on.
    options: of every overlay, after the layers.
    capabilities: what this host can do; see `capabilities_here`.
    show_upper: see `Config.upperdir_label`.
    slow_chown: see `Config.slow_chown`.
    """

    quick = frozenset({"prepare", "mounts"})
    stacked = True
    shares = True

    def __init__(
        self,
        root: Path,
        *,
        options: Sequence[str] = (),
        capabilities: Sequence[str] = (REBASE,),
        show_upper: bool = False,
        slow_chown: bool = False,
    ) -> None:
        self._show_upper = show_upper
        self._slow_chown = slow_chown
        self._directories = Directories(root)
        self._directories.create_root()
        self._options = tuple(options)
        self.capabilities = tuple(capabilities)
        self.exports = {"root": os.fspath(root)}

    def prepare(self, snapshot: Snapshot) -> None:
        owner = self._mapped_root(snapshot) or self._owner_below(snapshot)
        self._directories.make(snapshot.number, work=snapshot.kind == Kind.ACTIVE, owner=owner)

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        options = self._map_options(snapshot)
        files, parents = self._directories.files, snapshot.parents
        if not parents:
            access = "ro" if snapshot.kind == Kind.VIEW else "rw"
            return [Mount(type="bind", source=files(snapshot.number), options=(*options, access, "rbind"))]
        if snapshot.kind == Kind.ACTIVE:
            work = self._directories.work(snapshot.number)
            options = (*options, f"workdir={work}", f"upperdir={files(snapshot.number)}")
        elif len(parents) == 1:
            return [Mount(type="bind", source=files(parents[0]), options=(*options, "ro", "rbind"))]
        lower = ":".join(map(files, parents))
        return [Mount(type="overlay", source="overlay", options=(*options, f"lowerdir={lower}", *self._options))]

    def usage(self, snapshot: Snapshot) -> Usage:
        return usage(self._directories.files(snapshot.number))

    def home(self, number: int) -> Path:
        return self._directories.home(number)

    def lacks(self, number: int, kind: Kind) -> Sequence[Path]:
        return self._directories.lacks(number, work=kind == Kind.ACTIVE)

    def complete(self, snapshot: Snapshot) -> bool:
        owner = self._mapped_root(snapshot) or self._owner_below(snapshot)
        self._directories.complete(snapshot.number, work=snapshot.kind == Kind.ACTIVE, owner=owner)
        return True

    def opened(self, number: int) -> contextlib.AbstractContextManager[str]:
        return contextlib.nullcontext(self._directories.files(number))

    def numbers(self) -> list[int]:
        return self._directories.numbers()

    def sync(self, numbers: Sequence[int]) -> None:
        self._directories.sync()

    def locate(self, path: str) -> int | None:
        return self._directories.locate(path)

    def untouched(self, snapshot: Snapshot) -> bool:
        owner = self._mapped_root(snapshot) or self._owner_below(snapshot)
        return self._directories.is_fresh(snapshot.number, owner)

    def shown_labels(self, number: int, kind: Kind) -> Mapping[str, str]:
        return {UPPERDIR_LABEL: self._directories.files(number)} if self._show_upper else {}

    def _owner_below(self, snapshot: Snapshot) -> tuple[int, int] | None:
        """The merged root directory is the upper one, so it must belong to whom the one below belongs."""
        if not snapshot.parents:
            return None
        status = os.stat(self._directories.files(snapshot.parents[0]))
        owner = (status.st_uid, status.st_gid)
        return owner if owner != (os.geteuid(), os.getegid()) else None

    def _mapped_root(self, snapshot: Snapshot) -> tuple[int, int] | None:
        """What root of the id mapping in the labels is on the host.

        Raises:
            InvalidArgumentError: the mapping is malformed or has no root.
            UnimplementedError: this host cannot map ids of an overlay's layers.
        """
        maps = map_options(snapshot.labels)
        if not maps:
            return None
        if REMAP_IDS not in self.capabilities:
            if self._slow_chown:
                return None
            raise UnimplementedError(f"snapshotter {NAME}: id mapping by label: this host has no id-mapped layers")
        return mapped_root(NAME, maps)

    def _map_options(self, snapshot: Snapshot) -> tuple[str, ...]:
        return map_options(snapshot.labels) if REMAP_IDS in self.capabilities else ()


def options_here(root: Path, configured: Sequence[str] = ()) -> tuple[str, ...]:
    """The options that overlays on the file system of `root` need on this kernel, after the configured ones."""
    options = list(configured)
    if "userxattr" not in options and in_user_namespace() and probe.overlay_userxattr(os.fspath(root)):
        options.append("userxattr")
    if "index" not in (option.partition("=")[0] for option in options) and probe.overlay_index_off(os.fspath(root)):
        options.append("index=off")
    return tuple(options)


def capabilities_here(root: Path, *, slow_chown: bool = False) -> tuple[str, ...]:
    """What clients may ask of overlays on the file system of `root`."""
    only = () if slow_chown else (ONLY_REMAP_IDS,)
    remap = (REMAP_IDS, *only) if _maps_ids(root) else ()
    # Whiteouts that are device nodes are made before the parent is known; a user namespace may not make them.
    rebase = (REBASE,) if probe.native_whiteouts(os.fspath(root)) else ()
    return (*remap, *rebase)


def in_user_namespace() -> bool:
    """Whether root here is somebody else on the host."""
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]


def _maps_ids(root: Path) -> bool:
    """Whether an overlay over id-mapped layers works here (Linux 5.19 and the file system): tried with a file."""
    with contextlib.ExitStack() as undo:
        scratch = undo.enter_context(tempfile.TemporaryDirectory(prefix=probe.SCRATCH, dir=root))
        lower, upper, work = (os.path.join(scratch, name) for name in ("lower", "upper", "work"))
        for path in (lower, upper, work):
            os.mkdir(path)
        with open(os.path.join(lower, "file"), "wb"):
            pass
        options = ("uidmap=0:666:1", "gidmap=0:666:1", f"workdir={work}", f"upperdir={upper}", f"lowerdir={lower}")
        try:
            target = undo.enter_context(temp_mount([Mount(type="overlay", source="overlay", options=options)], scratch))
            failpoints.reach("overlayfs.probe.mounted")
            return os.stat(os.path.join(target, "file")).st_uid == 666
        except (OrlopError, OSError):
            return False


def _init(context: Context) -> Overlayfs:
    config = context.config
    root = root_of(context, NAME)
    directories = Directories(root)
    directories.create_root()
    directories.remove_scratch(probe.SCRATCH)
    verdict = probe.overlay_supported(os.fspath(root))
    if not verdict:
        raise SkipPlugin(verdict.reason)
    snapshotter = Overlayfs(
        root,
        options=options_here(root, config.mount_options),
        capabilities=capabilities_here(root, slow_chown=config.slow_chown),
        show_upper=config.upperdir_label,
        slow_chown=config.slow_chown,
    )
    context.exports.update(snapshotter.exports)
    context.capabilities.extend(snapshotter.capabilities)
    context.platforms.append(default_string())
    return snapshotter


REGISTRATION: Final = Registration(kind=SNAPSHOTTER, id=NAME, config=Config, init=_init)
