"""A daemon that dies at a fail point when told to, and the promises that its answers made."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Final

import orlop
from orlop.base import failpoints
from orlop.base.errdefs import AlreadyExistsError, ResourceExhaustedError
from tools import residue
from tools.crash.elsewhere import Elsewhere
from tools.daemons import Orlopd, Registry
from tools.filesystems import mounted
from tools.images import Image

NAMESPACE: Final = f"crash-{os.getpid()}"
"""Cgroups have names of namespaces, and there is one tree of them on a host."""
OTHER: Final = f"other-{os.getpid()}"
EXPIRE: Final = "containerd.io/gc.expire"
TIMEOUT_S: Final = 30.0
"""Of a call, and of each thing that is waited for."""

CONFIG: Final = """
[plugins."io.containerd.gc.v1.scheduler"]
pause_threshold = 0.000001
mutation_threshold = 0
"""
"""After the collection at each start there is one when a call asks for it: how often points are passed is the same in
each run."""

BTRFS_BYTES: Final = 256 << 20
OFF: Final = 'disabled_plugins = ["io.containerd.content.v1.content"]\n'

Check = Callable[[orlop.Client], object]


class Where(StrEnum):
    """What a daemon lies on."""

    HERE = "here"
    ELSEWHERE = "elsewhere"
    """Its blobs lie in another daemon's content store."""
    BTRFS = "btrfs"
    """One of its snapshotters has a file system of its own."""


class StageError(Exception):
    """What must hold does not; the text says what."""


class Stage:
    """One daemon in a directory with a short path; a context manager.

    Args:
        where: what it lies on.

    Attributes:
        promises: what answers have promised, by a word for it; what is promised again, or withdrawn, no longer counts.
    """

    def __init__(self, directory: Path, image: Image, *, where: Where = Where.HERE) -> None:
        self.directory = directory
        self.image = image
        self.points = directory / "points"
        self.promises: dict[str, Check] = {}
        self._stack = contextlib.ExitStack()
        self.elsewhere = Elsewhere(directory / "e") if where is Where.ELSEWHERE else None
        self._where = where
        self._file_system = contextlib.ExitStack()
        self.daemon = Orlopd(
            directory / "d",
            config=self._config(),
            env={failpoints.VARIABLE: str(self.points), "ORLOP_SHIM_LINGER": "1"},
        )

    def _config(self) -> str:
        if self.elsewhere is not None:
            return f"{OFF}{CONFIG}{self.elsewhere.config}"
        if self._where is Where.BTRFS:
            section = '[plugins."io.containerd.snapshotter.v1.btrfs"]'
            return f'{CONFIG}{section}\nroot_path = "{self.snapshots("btrfs")}"\n'
        return CONFIG

    def snapshots(self, snapshotter: str) -> Path:
        """Where a snapshotter has its directories."""
        if snapshotter == "btrfs":
            return self.directory / "btrfs/s"
        return self.daemon.root / "snapshots" / snapshotter

    def _mount(self) -> None:
        if self._where is Where.BTRFS:
            self._file_system.enter_context(mounted(self.directory, "btrfs", BTRFS_BYTES))

    @cached_property
    def pushed(self) -> str:
        """The image's reference at a registry of its own, which begins with the first who asks."""
        registry = self._stack.enter_context(Registry(self.directory / "r"))
        return registry.push(self.image)

    def __enter__(self) -> Stage:
        self.points.mkdir(parents=True, mode=0o700)
        if self.elsewhere is not None:
            self._stack.enter_context(self.elsewhere)
        self._mount()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.disarm()
        self.daemon.close()
        self._file_system.close()
        self._stack.close()
        self.daemon.forget_cgroup(NAMESPACE)
        residue.remove(residue.find(self.directory))
        shutil.rmtree(self.directory)

    # -- the daemon ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it, unless it runs, and return when it has swept and collected."""
        if self.daemon.process is None:
            self.daemon.start()
            self.daemon.forget_notifications()
        with contextlib.suppress(ResourceExhaustedError):  # the disk is full, as it was made
            self.collect()

    def later(self) -> None:
        """As if a day had passed: what clients hold while they do something, and let go of when they are killed."""
        for namespace in (NAMESPACE, OTHER):
            with self.client(namespace) as client:
                for lease in client.leases.list([f'labels."{EXPIRE}"']):
                    client.leases.delete(lease.id)
        self.collect()

    def collect(self) -> None:
        """Have it collect garbage, and wait for that."""
        with self.client("collect") as client:
            with contextlib.suppress(AlreadyExistsError):
                client.leases.create("collect")
            client.leases.delete("collect", synchronous=True)
            client.namespaces.delete("collect")

    def kill(self) -> None:
        """SIGKILL, also if it is dead."""
        self.daemon.kill()

    def afresh(self) -> None:
        """An empty store and a new daemon."""
        self.kill()
        residue.remove(residue.find(self.daemon.directory))
        for directory in (self.daemon.root, self.daemon.state):
            shutil.rmtree(directory, ignore_errors=True)
        if self.elsewhere is not None:
            self.elsewhere.afresh()
        self._file_system.close()
        self._mount()
        self.promises.clear()
        self.start()

    @contextlib.contextmanager
    def client(self, namespace: str = NAMESPACE) -> Iterator[orlop.Client]:
        with orlop.Client(str(self.daemon.address), namespace, timeout_s=TIMEOUT_S) as client:
            yield client

    @contextlib.contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """Its rows, beside it."""
        with contextlib.closing(sqlite3.connect(self.daemon.root / "meta.db", timeout=TIMEOUT_S)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA query_only=ON")
            yield connection

    # -- fail points ---------------------------------------------------------------------------------------------------

    def arm(self, point: str, turn: int = 1, *victims: str) -> None:
        """Have the passage number `turn` of a point from now on end the victims, as `failpoints` has them; by default
        the process that passes it."""
        self._arm(point, "kill", str(turn), *victims)

    def arm_error(self, point: str, turn: int = 1) -> None:
        """Have that passage fail with EIO."""
        self._arm(point, "error", str(turn))

    def _arm(self, *words: str) -> None:
        self.disarm()
        armed = self.points / "armed.new"
        armed.write_text(" ".join(words))
        armed.rename(self.points / "armed")

    def disarm(self) -> None:
        """Let points pass, and forget what was passed."""
        for name in ("armed", "turns", "done", "passed"):
            (self.points / name).unlink(missing_ok=True)

    def passed(self) -> Sequence[str]:
        """Names of the points that were passed, in order."""
        return _lines(self.points / "passed")

    @property
    def struck(self) -> bool:
        """Whether what was armed has been done."""
        return bool(_lines(self.points / "done"))

    def supervisors(self) -> list[int]:
        """Pids of the supervisors of this daemon's namespaces."""
        found = []
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if name.isdigit():
                    words = Path(f"/proc/{name}/cmdline").read_text().split("\0")
                    if "orlop.cmd.shim" in words and str(self.daemon.address) in words:
                        found.append(int(name))
        return found

    # -- promises ------------------------------------------------------------------------------------------------------

    def promise(self, what: str, check: Check) -> None:
        """A call has returned, and so `check` must not fail until this is withdrawn."""
        self.promises[what] = check

    def withdraw(self, *what: str) -> None:
        """What was promised is about to be changed."""
        for one in what:
            self.promises.pop(one, None)

    def broken(self) -> list[str]:
        """The promises that do not hold."""
        found = []
        with self.client() as client:
            for what, check in self.promises.items():
                try:
                    check(client)
                except (AssertionError, orlop.OrlopError) as error:
                    found.append(f"{what}: was answered, and is not so: {error}")
        return found


def until(condition: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Wait for a condition. Raises StageError if it does not come."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise StageError(f"{what} within {timeout_s:.0f} s")
        time.sleep(0.01)


def _lines(file: Path) -> Sequence[str]:
    try:
        return file.read_text().splitlines()
    except FileNotFoundError:
        return []
