"""The trash: what is deleted at once in the database and by name, and unlinked later.

    <root>/trash/<number>~<origin>     <origin> is the path below <root> it came from, each `/` written as `%2F`

Whoever deletes calls `take()` inside the write transaction that removes the last row: the file or directory is renamed
into the trash and the table `trash` says so. Both happen under the writer's lock, so whoever writes the same thing
again finds it whole or finds nothing. If the transaction is lost, the rename is taken back; if the process dies in
between, `recover()` finds an entry without a row when the daemon starts and puts it back to its origin. A row without
an entry means that the rename did not reach the disk: the sweep of the owning store finds what is left over.

On another file system than <root>, where rename(2) answers EXDEV, the entry becomes a neighbour of its origin,
`.trash-<number>~<name>`, and the row says where; such an entry is put back by the same rule.

One thread unlinks, outside the lock, and removes the rows afterwards.
"""

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from orlop.base import failpoints
from orlop.core import trees
from orlop.core.metadata.database import Database, Transaction

log: Final = logging.getLogger(__name__)

DIRECTORY: Final = "trash"
NEIGHBOUR: Final = ".trash-"
# Rows that are removed in one transaction after their entries are gone.
BATCH: Final = 64
RETRY_S: Final = 1.0
RETRY_MAX_S: Final = 300.0
"""After how long what could not be unlinked is tried again: at first, and when that goes on."""


class Trash:
    """A context manager: entering recovers and starts the thread that unlinks; leaving lets it finish its entry.

    Args:
        root: the daemon's root directory; everything that is thrown away lies below it.
        neighbours: directories below `root` that may be file systems of their own.
    """

    def __init__(self, root: Path, db: Database, *, neighbours: tuple[Path, ...] = ()) -> None:
        self.root = root
        self.directory = root / DIRECTORY
        self._db = db
        self._neighbours = list(neighbours)
        self._numbers = itertools.count()
        self._wake = threading.Event()
        self._stop = False
        self._failed = False  # something is left that is to be tried again
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._numbers = itertools.count(self._first_number())
        self.recover()
        self._thread = threading.Thread(target=self._run, name="orlop-trash", daemon=True)
        self._thread.start()
        self._wake.set()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    async def aclose(self) -> None:
        """Leave the context without blocking the event loop."""
        await asyncio.get_running_loop().run_in_executor(None, self.__exit__, None, None, None)

    def take(self, tx: Transaction, path: Path) -> bool:
        """Throw `path`, a file or a directory below the root, away as part of `tx`.

        Call it last in a transaction's function, after the rows are gone. Returns False if there is nothing at `path`.

        Raises:
            OSError: it cannot be renamed; nothing has changed then.
        """
        tx.frees = True
        number = next(self._numbers)
        origin = path.relative_to(self.root).as_posix()
        target = self.directory / f"{number:x}~{origin.replace('%', '%25').replace('/', '%2F')}"
        try:
            os.rename(path, target)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            target = path.with_name(f"{NEIGHBOUR}{number:x}~{path.name}")
            os.rename(path, target)
        tx.on_rollback(lambda: os.rename(target, path))
        failpoints.reach("trash.take.renamed")
        tx.execute(
            "INSERT INTO trash (path, created_at) VALUES (?, ?)", (target.relative_to(self.root).as_posix(), tx.now)
        )
        tx.after_commit(self._wake.set)
        return True

    def recover(self) -> None:
        """Put back what was renamed by a transaction that never became durable. Before anything is served."""
        known = {row["path"] for row in self._db.all("SELECT path FROM trash")}
        for entry in self._entries():
            if entry.relative_to(self.root).as_posix() in known:
                continue
            origin = self._origin(entry)
            if origin is None or os.path.lexists(origin):
                self._db.write_sync(lambda tx, entry=entry: self._adopt(tx, entry))  # type: ignore[misc]
                continue
            log.warning("trash: put back what a lost transaction had taken", extra={"path": str(origin)})
            origin.parent.mkdir(parents=True, exist_ok=True)
            os.rename(entry, origin)
            failpoints.reach("trash.recover.renamed")

    def add_neighbour(self, directory: Path) -> None:
        """Name a directory whose entries may be a file system of their own; its neighbours are recovered at once."""
        self._neighbours.append(directory)
        self.recover()

    def empty(self) -> int:
        """Unlink everything that is in the trash; returns how many entries went. Blocks; not under any lock."""
        gone: list[str] = []
        count = 0
        for row in self._db.all("SELECT path FROM trash ORDER BY created_at"):
            if self._stop:
                break
            path = self.root / row["path"]
            try:
                _unlink(path, lambda: self._stop)
                failpoints.reach("trash.empty.unlinked")
            except trees.StoppedError:
                break
            except OSError as error:
                # Something is mounted inside, or the disk fails: the entry stays and is tried again later.
                log.warning("trash: cannot unlink yet", extra={"path": str(path), "error": str(error)})
                self._failed = True
                continue
            gone.append(row["path"])
            if len(gone) == BATCH:
                count += self._forget(gone)
        return count + self._forget(gone)

    def _forget(self, paths: list[str]) -> int:
        if not paths:
            return 0
        taken, paths[:] = list(paths), []

        def forget(tx: Transaction) -> int:
            tx.frees = True
            for path in taken:
                tx.execute("DELETE FROM trash WHERE path = ?", (path,))
            return len(taken)

        return self._db.write_sync(forget)

    def _run(self) -> None:
        pause_s = RETRY_S
        while True:
            self._wake.wait(pause_s if self._failed else None)
            self._wake.clear()
            if self._stop:
                return
            pause_s = min(2 * pause_s, RETRY_MAX_S) if self._failed else RETRY_S
            self._failed = False
            try:
                self.empty()
            except Exception:
                # The database may be failing; what is in the trash stays there and is recorded.
                log.exception("trash: emptying failed")
                self._failed = True

    def _adopt(self, tx: Transaction, entry: Path) -> None:
        path = entry.relative_to(self.root).as_posix()
        tx.execute("INSERT INTO trash (path, created_at) VALUES (?, ?) ON CONFLICT DO NOTHING", (path, tx.now))

    def _entries(self) -> Iterator[Path]:
        yield from self.directory.iterdir()
        for directory in self._neighbours:
            with contextlib.suppress(FileNotFoundError):
                yield from directory.glob(f"{NEIGHBOUR}*")

    def _origin(self, entry: Path) -> Path | None:
        """Where an entry came from, or None if its name is not one of ours."""
        number, tilde, name = entry.name.removeprefix(NEIGHBOUR).partition("~")
        if not tilde or not name or not _is_hex(number):
            return None
        if entry.name.startswith(NEIGHBOUR):
            return entry.with_name(name)
        origin = name.replace("%2F", "/").replace("%25", "%")
        if ".." in origin.split("/"):
            return None
        return self.root / origin

    def _first_number(self) -> int:
        numbers = [entry.name.removeprefix(NEIGHBOUR).partition("~")[0] for entry in self._entries()]
        return max((int(number, 16) for number in numbers if _is_hex(number)), default=-1) + 1


def _is_hex(text: str) -> bool:
    return bool(text) and all(character in "0123456789abcdef" for character in text)


def _unlink(path: Path, stop: trees.Stop) -> None:
    """Remove a file or a tree; one that is gone already is fine."""
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode):
            trees.remove(path, stop=stop)
        else:
            os.unlink(path)
    except FileNotFoundError:
        return
