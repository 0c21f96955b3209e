"""How a name in an archive leads to a directory of the tree, whatever the tree is made of.

Symbolic links are read and resolved here, ".." included, as if the tree's root were "/": so no name leads out. Both
trees, that of files (`tree`) and that of an index (`merged`), say what is at one name, and nothing else.
"""

from abc import ABC, abstractmethod
from typing import Final, Generic, TypeVar

from orlop.core.diff.errors import ArchiveError, shown

_MAX_LINKS: Final = 255  # as continuity's RootPath


class Place:
    """A directory of a tree.

    Attributes:
        path: from the root, without links, without a leading slash; empty for the root.
    """

    __slots__ = ("path",)

    def __init__(self, path: bytes) -> None:
        self.path = path

    def child(self, name: bytes) -> bytes:
        """The path of something inside."""
        return self.path + b"/" + name if self.path else name


P = TypeVar("P", bound=Place)


class Resolver(ABC, Generic[P]):
    """Directories by the name used in the archive and by their real path, as far as they have been resolved."""

    def __init__(self, root: P) -> None:
        self.root: Final = root
        self._real: dict[bytes, P] = {b"": root}
        self._alias: dict[bytes, P] = {b"": root}
        self._followed: set[bytes] = set()

    def directory(self, path: bytes, *, create: bool = True) -> P:
        """The directory that `path` (cleaned, without "..") leads to, links followed inside the tree.

        Args:
            create: make what is missing, like what is below it or with mode 0755.

        Raises:
            ArchiveError: something on the way is no directory, or there are too many links.
            FileNotFoundError: it is missing and `create` is false.
        """
        alias = self._alias
        names: list[bytes] = []
        while (found := alias.get(path)) is None:
            path, _, name = path.rpartition(b"/")
            names.append(name)
        while names:
            name = names.pop()
            found = self._step(found, name, create=create)
            path = path + b"/" + name if path else name
            alias[path] = found
        return found

    def forget(self) -> None:
        """Drop what has been resolved."""
        self._real = {b"": self.root}
        self._alias = {b"": self.root}
        self._followed.clear()

    def touched(self, path: bytes) -> None:
        """Something else is at this real path from now on; what was resolved through it may be wrong."""
        if path in self._followed or path in self._real:
            self.forget()

    @abstractmethod
    def _child(self, parent: P, name: bytes, *, create: bool) -> P | bytes:
        """The directory `name` in `parent`, or the target of the link that it is."""

    @abstractmethod
    def _above(self, current: P) -> P:
        """The directory that `current`, which is not the root, lies in."""

    def _step(self, current: P, name: bytes, *, create: bool) -> P:
        """One component, whatever links it is."""
        pending = [name]
        links = 0
        while pending:
            name = pending.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                current = self._above(current) if current.path else current
                continue
            found = self._child(current, name, create=create)
            if not isinstance(found, bytes):
                current = found
                continue
            links += 1
            if links > _MAX_LINKS:
                raise ArchiveError(f"too many links at {shown(current.child(name))}")
            if found.startswith(b"/"):
                current = self.root
            pending += reversed(found.split(b"/"))
        return current
