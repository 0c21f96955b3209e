"""Bundles on disk.

    <state>/<namespace>/<id>/         0700, or 0710 for the group of a remapped root (user namespaces)
        config.json                   the runtime spec, byte for byte as the client gave it
        rootfs/                       where the shim mounts
        work -> <root>/<namespace>/<id>
        bootstrap.json                how to reach the shim: {"version", "address", "protocol"}
        address                       the same for tools of older releases
        shim-binary-path              which shim serves this bundle
        sandbox                       id of the sandbox that the task is in, if it is in one
        log                           FIFO for the shim's log, foreign shims only

`.<id>.<number>` beside bundles and work directories is one that is being deleted. Whatever the shim keeps beside these
is the shim's own.
"""

import contextlib
import itertools
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orlop.base import failpoints, identifiers, json_text
from orlop.base.errdefs import InternalError, InvalidArgumentError, UnknownError
from orlop.core import trees
from orlop.core.mount import disk
from orlop.core.mount.perform import unmount_all

log: Final = logging.getLogger(__name__)

SPEC_TYPE_PREFIX: Final = "types.containerd.io/opencontainers/runtime-spec/"
# As in containerd; our supervisor reads it, too.
SANDBOX_FILE: Final = "sandbox"
_serial: Final = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """How to reach a shim, as it said on starting. Source: BootstrapParams in containerd's pkg/shim."""

    address: str
    version: int = 2
    protocol: str = "ttrpc"

    @classmethod
    def parse(cls, output: bytes) -> "Bootstrap":
        """Read what a shim printed: JSON, or just an address for protocol version 2.

        Raises:
            InvalidArgumentError: neither of the two.
        """
        text = output.decode(errors="replace").strip()
        if not text.startswith("{"):
            if "://" not in text:
                raise InvalidArgumentError(f"shim printed no address: {text[:200]!r}")
            return cls(address=text)
        try:
            table = json.loads(text)
            return cls(address=str(table["address"]), version=int(table["version"]), protocol=str(table["protocol"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidArgumentError(f"shim printed no usable bootstrap: {text[:200]!r}") from error

    @classmethod
    def of_task_api(cls, address: str, version: int) -> "Bootstrap":
        """Read where a sandbox's controller says that tasks are to be created: `ttrpc+unix://…`.

        Raises:
            UnknownError: it is none, in containerd's words.
        """
        protocol, plus, rest = address.partition("+")
        if not plus:
            raise UnknownError(
                "failed to start shim: the scheme of sandbox address should be in  the form of"
                " <protocol>+<unix|vsock|tcp>, i.e. ttrpc+unix or grpc+vsock"
            )
        return cls(address=rest, version=version or 2, protocol=protocol)

    def encode(self) -> bytes:
        """As `bootstrap.json` holds it."""
        return json.dumps({"version": self.version, "address": self.address, "protocol": self.protocol}).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """One bundle; making the value touches nothing."""

    namespace: str
    id: str
    path: Path

    @property
    def rootfs(self) -> Path:
        return self.path / "rootfs"

    @property
    def work(self) -> Path:
        """Where large things of the task lie: on disk, and gone with the bundle."""
        return self.path / "work"

    @property
    def sandbox(self) -> str:
        """The sandbox that the task is in; empty for none."""
        try:
            return (self.path / SANDBOX_FILE).read_text()
        except OSError:
            return ""

    def write(self, name: str, data: bytes) -> None:
        """Put a small file into the bundle, whole or not at all.

        Raises:
            ResourceExhaustedError, InternalError: it cannot be; names task, file and file system.
        """
        scratch = self.path / f".{name}"
        with disk.in_words(f'task "{self.id}": write {self.path / name}', self.path):
            try:
                scratch.write_bytes(data)
                scratch.replace(self.path / name)
                failpoints.reach("task.bundle.noted")
            except OSError:
                with contextlib.suppress(OSError):  # goes with the bundle
                    scratch.unlink()
                raise

    def bootstrap(self) -> Bootstrap | None:
        """How to reach the shim, or None when the bundle does not say (its start was cut short)."""
        for name in ("bootstrap.json", "address"):
            try:
                return Bootstrap.parse((self.path / name).read_bytes())
            except (FileNotFoundError, InvalidArgumentError):
                continue
        return None

    def save(self, bootstrap: Bootstrap, binary: Path) -> None:
        """Record how to reach the shim, so that the next daemon and containerd's tools find it."""
        self.write("bootstrap.json", bootstrap.encode())
        self.write("address", bootstrap.address.encode())
        self.write("shim-binary-path", os.fsencode(binary))

    def binary(self) -> Path | None:
        """The shim that serves this bundle, if it is recorded."""
        try:
            return Path(os.fsdecode((self.path / "shim-binary-path").read_bytes()))
        except FileNotFoundError:
            return None

    def is_mounted(self) -> bool:
        """Whether something is mounted at `rootfs`."""
        return self.rootfs.is_mount()

    def hide(self, hidden: list[Path]) -> None:
        """Rename the bundle and its work directory out of sight: quick, and as good as gone.

        Args:
            hidden: gets what was renamed, also when this raises; for `remove_hidden`.

        Raises:
            InternalError: a directory cannot be renamed; names the path.
        """
        try:
            with contextlib.suppress(OSError):
                _hide(Path(os.readlink(self.work)), hidden)
            _hide(self.path, hidden)
        except OSError as error:
            raise InternalError(f'task "{self.id}": delete bundle {self.path}: {error}') from error

    def delete(self) -> None:
        """Unmount what is below, then remove the bundle and its work directory; what is not there is fine.

        Raises:
            InternalError: a mount cannot be undone or a directory not removed; names the path.
        """
        work = None
        with contextlib.suppress(OSError):
            work = Path(os.readlink(self.work))
        try:
            unmount_all(os.fspath(self.rootfs))
            try:
                _remove(self.path)
            finally:  # which tells of the work directory, and may be out of sight by now
                if work is not None:
                    _remove(work)
        except OSError as error:
            raise InternalError(f'task "{self.id}": delete bundle {self.path}: {error}') from error


class Bundles:
    """The bundles of one daemon, below a state and a root directory."""

    def __init__(self, state: Path, root: Path) -> None:
        self.state = state
        self.root = root

    def get(self, namespace: str, task_id: str) -> Bundle:
        """The bundle of that name, whether it is there or not."""
        return Bundle(namespace=namespace, id=task_id, path=self.state / namespace / task_id)

    def create(self, namespace: str, task_id: str, spec_type: str, spec: bytes) -> Bundle:
        """Make a bundle; a stale one of that name (no task has it) is removed first.

        Raises:
            InvalidArgumentError: the id is not valid, or the spec is not JSON.
            ResourceExhaustedError: the file system of the bundles is full.
            InternalError: it cannot be made.
        """
        identifiers.validate(task_id)
        bundle = self.get(namespace, task_id)
        work = self.root / namespace / task_id
        try:
            bundle.path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            work.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            if bundle.path.exists():
                bundle.delete()
            if work.exists():
                _remove(work)
            with contextlib.ExitStack() as undo:
                bundle.path.mkdir(mode=0o700)
                undo.callback(_remove, bundle.path)
                failpoints.reach("task.bundle.made")
                if spec_type.startswith(SPEC_TYPE_PREFIX):
                    _open_to_mapped_root(bundle.path, spec, task_id)
                bundle.rootfs.mkdir(mode=0o711)
                work.mkdir(mode=0o711)
                undo.callback(_remove, work)
                bundle.work.symlink_to(work)
                if spec:
                    (bundle.path / "config.json").write_bytes(spec)
                failpoints.reach("task.bundle.filled")
                undo.pop_all()
        except OSError as error:
            what = f'task "{task_id}": create bundle {bundle.path}'
            # of two names the second is what was to be made
            raise disk.failure(what, error.filename2 or error.filename or bundle.path.parent, error) from error
        return bundle

    def swept(self) -> list[Bundle]:
        """Every bundle on disk, at a start: deletions that were cut short are finished on the way, and work directories
        without a bundle, as a boot leaves them, removed.
        """
        self.sweep_hidden()
        for namespace in _directories(self.state):
            for path in _directories(namespace):
                if path.name.startswith("."):
                    with contextlib.suppress(OSError):  # tried again at the next start
                        unmount_all(os.fspath(path / "rootfs"))
                        trees.remove(path)
        found = self.found()
        known = {(bundle.namespace, bundle.id) for bundle in found}
        for path in self.works():
            if (path.parent.name, path.name) not in known:
                self.discard_work(path)
        self.sweep_hidden()
        return found

    def found(self) -> list[Bundle]:
        """Every bundle on disk that is not being deleted."""
        return [
            Bundle(namespace=namespace.name, id=path.name, path=path)
            for namespace in _directories(self.state)
            for path in _directories(namespace)
            if not path.name.startswith(".")
        ]

    def namespaces(self) -> list[str]:
        """Those that have had tasks since the machine was started."""
        return [path.name for path in _directories(self.state)]

    def works(self) -> list[Path]:
        """Every work directory that is not being deleted."""
        return [
            path
            for namespace in _directories(self.root)
            for path in _directories(namespace)
            if not path.name.startswith(".")
        ]

    def discard_work(self, path: Path) -> None:
        """Rename a work directory out of sight; for `sweep_hidden`, or the next start."""
        with contextlib.suppress(OSError):
            _hide(path, [])

    def sweep_hidden(self) -> None:
        """Remove work directories that were renamed out of sight."""
        for namespace in _directories(self.root):
            remove_hidden(path for path in _directories(namespace) if path.name.startswith("."))


def _directories(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.is_symlink())
    except FileNotFoundError:
        return []


def remove_hidden(hidden: Iterable[Path]) -> None:
    """Remove what `Bundle.hide` has renamed; what cannot be is logged, and tried again at the next start."""
    for path in hidden:
        try:
            trees.remove(path)
            failpoints.reach("task.bundle.removed")
        except OSError as error:
            log.warning("hidden bundle is left", extra={"path": str(path), "error": str(error)})


def _remove(path: Path) -> None:
    """Rename out of sight, then remove, so that a crash leaves nothing that looks whole."""
    hidden: list[Path] = []
    try:
        _hide(path, hidden)
    finally:
        for one in hidden:
            trees.remove(one)


def _hide(path: Path, done: list[Path]) -> None:
    """Rename to a hidden name that no other has, which is appended to `done`; nothing if it is not there."""
    hidden = path.with_name(f".{path.name}.{next(_serial)}")
    try:
        path.rename(hidden)
    except FileNotFoundError:
        return
    except OSError:
        if not hidden.exists():
            raise
        trees.remove(hidden)  # an earlier daemon's
        path.rename(hidden)
    done.append(hidden)
    failpoints.reach("task.bundle.hidden")


def _open_to_mapped_root(path: Path, spec: bytes, task_id: str) -> None:
    """Let the group of a remapped root enter the bundle. Source: prepareBundleDirectoryPermissions in containerd."""
    try:
        table = json_text.loads(spec)
        mappings = (table.get("linux") or {}).get("gidMappings") or []
        gid = next((int(m["hostID"]) for m in mappings if int(m["containerID"]) == 0), 0)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise InvalidArgumentError(f'task "{task_id}": runtime spec cannot be read: {error}') from error
    if gid:
        os.chown(path, -1, gid)
        path.chmod(0o710)
