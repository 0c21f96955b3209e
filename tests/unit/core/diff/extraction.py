"""Extracting archives in the test's own process, beside a directory that must never change."""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from orlop.core.diff.extract import Extracted, Extractor, Limits
from orlop.core.diff.tar import Reader
from orlop.core.diff.tree import Tree


class Place:
    """A root to extract into, a neighbour with a secret, and what can be said about both."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = base / "root"
        self.root.mkdir()
        self.outside = base / "outside"
        self.outside.mkdir()
        (self.outside / "secret").write_text("secret")
        self._before = self._elsewhere()
        self.tree: Tree | None = None

    def extract(
        self,
        *members: bytes,
        blob: bytes | Iterable[bytes] | None = None,
        lower: Path | None = None,
        layered: bool | None = None,
        merging: bool = False,
        limits: Limits | None = None,
        chunk: int = 1 << 20,
        open_limit: int = 1000,
        alone: bool = False,
    ) -> Extracted:
        """Extract, and see that nothing outside has changed, whatever came of it."""
        if blob is None:
            blob = b"".join(members) + bytes(1024)
        pieces = cut(blob, chunk) if isinstance(blob, bytes) else blob
        root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        lower_fd = os.open(lower, os.O_RDONLY | os.O_DIRECTORY) if lower is not None else -1
        umask = os.umask(0)
        tree = self.tree = Tree(root_fd, lower_fd, layered=layered, open_limit=open_limit, alone=alone)
        try:
            return Extractor(Reader(pieces), tree, merging=merging, limits=limits).run()
        finally:
            tree.close()
            os.umask(umask)
            for fd in (root_fd, lower_fd):
                if fd >= 0:
                    os.close(fd)
            assert self._elsewhere() == self._before

    def names(self) -> dict[str, str]:
        """Every path in the root with its kind: `dir`, `file`, `-> target`, `char 1:3`, ..."""
        found = {}
        for path in self._walk(self.root):
            status = path.lstat()
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFLNK:
                text = f"-> {os.readlink(path)}"
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                word = "char" if kind == stat.S_IFCHR else "block"
                text = f"{word} {os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
            else:
                text = {stat.S_IFDIR: "dir", stat.S_IFREG: "file", stat.S_IFIFO: "fifo"}[kind]
            found[os.path.relpath(path, self.root)] = text
        return found

    def _elsewhere(self) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []
        for path in self._walk(self.base):
            if path == self.root or self.root in path.parents or "lower" in path.parts:
                continue
            status = path.lstat()
            data = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            times = status.st_mtime_ns if path.name != self.base.name else 0
            found.append((str(path), status.st_mode, status.st_uid, status.st_gid, status.st_nlink, times, data))
        return found

    @staticmethod
    def _walk(top: Path) -> list[Path]:
        return sorted(Path(parent, name) for parent, folders, files in os.walk(top) for name in (*folders, *files))


def cut(blob: bytes, size: int) -> Iterator[bytes]:
    """A blob in pieces."""
    return (blob[start : start + size] for start in range(0, len(blob), size))
