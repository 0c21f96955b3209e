"""Two trees in a directory and what turns one into the other, without workers."""

import contextlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from orlop.core.diff.changes import Change, changes
from orlop.core.diff.layer import Layer

OLD = 1_500_000_000


class Trees:
    """A lower tree, an upper one, and a directory that stands for an overlay's layer."""

    def __init__(self, base: Path) -> None:
        self.lower, self.upper, self.changed = base / "lower", base / "upper", base / "changed"
        for path in (self.lower, self.upper, self.changed):
            path.mkdir()

    def both(self, name: str, contents: str = "same", *, mtime: float = OLD) -> None:
        """A file that is equal in both."""
        for root in (self.lower, self.upper):
            put(root, name, contents, mtime=mtime)

    def changes(self, *, hint: bool = False) -> Iterator[Change]:
        with descriptors(self.upper, self.lower, self.changed) as (upper, lower, changed):
            yield from changes(upper, lower, changed if hint else -1)

    def named(self, *, hint: bool = False) -> list[tuple[str, str]]:
        """Kind and path of each change."""
        return [(change.kind.value, os.fsdecode(change.path)) for change in self.changes(hint=hint)]

    def archive(self, *, epoch: int | None = None) -> bytes:
        """The layer."""
        written = io.BytesIO()
        with descriptors(self.upper, self.lower) as (upper, lower):
            layer = Layer(written.write, upper, epoch=epoch)
            for change in changes(upper, lower):
                layer.add(change)
            layer.finish()
        assert layer.size == len(written.getvalue())
        return written.getvalue()

    def members(self, *, epoch: int | None = None) -> list[tarfile.TarInfo]:
        """The layer's entries."""
        with tarfile.open(fileobj=io.BytesIO(self.archive(epoch=epoch))) as archive:
            return archive.getmembers()


@contextlib.contextmanager
def descriptors(*paths: Path) -> Iterator[list[int]]:
    opened = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in paths]
    try:
        yield opened
    finally:
        for fd in opened:
            os.close(fd)


def put(root: Path, name: str, contents: str = "contents", *, mtime: float = OLD) -> Path:
    """A file, with the directories above it."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(contents)
    os.utime(path, ns=(int(mtime * 10**9), int(mtime * 10**9)))
    return path
