"""Directory trees for tests: changes to make, and trees as data to compare."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], object]
"""Changes the tree at a directory."""


def describe(root: Path) -> dict[str, Any]:
    """A tree as comparable data: type, mode, owner, contents, attributes, and which names are one file."""
    tree: dict[str, Any] = {}
    first: dict[tuple[int, int], str] = {}
    for directory, directories, files in os.walk(root):
        for path in [directory, *(os.path.join(directory, name) for name in (*directories, *files))]:
            name = os.path.relpath(path, root)
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            contents: Any = None
            if stat.S_ISREG(status.st_mode):
                contents = Path(path).read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                contents = os.readlink(path)
            elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                contents = status.st_rdev
            same = first.setdefault((status.st_dev, status.st_ino), name) if kind != stat.S_IFDIR else name
            attributes = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
                if key.startswith("user.")
            }
            tree[name] = (kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, contents, attributes, same)
    return tree


def write(name: str, contents: str | bytes, mode: int = 0o644) -> Change:
    """A file with these contents, new or again."""

    def change(root: Path) -> None:
        path = root / name
        path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
        path.chmod(mode)

    return change


def make_directory(name: str, mode: int = 0o755) -> Change:
    """A directory; those above it must be there."""

    def change(root: Path) -> None:
        (root / name).mkdir()
        (root / name).chmod(mode)

    return change


def remove_all(name: str) -> Change:
    """No such file or tree any more."""

    def change(root: Path) -> None:
        path = root / name
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        for entry in sorted(path.rglob("*"), key=lambda one: len(one.parts), reverse=True):
            entry.rmdir() if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        path.rmdir()

    return change


def all_kinds(root: Path) -> None:
    """Every kind of file, with owners, modes, attributes, several names, a hole, and a name that is no text."""
    write("file", "contents", 0o640)(root)
    write("set-uid", "#!", 0o4755)(root)
    write("hard-1", "one file")(root)
    os.link(root / "hard-1", root / "hard-2")
    (root / "link").symlink_to("file")
    (root / "dangling").symlink_to("/nowhere/at all")
    make_directory("sticky", 0o1777)(root)
    os.mkfifo(root / "fifo", 0o600)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.chown(root / "file", 12, 34)
    os.chown(root / "link", 56, 78, follow_symlinks=False)
    os.setxattr(root / "file", "user.key", b"value")
    with (root / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    Path(os.fsdecode(os.path.join(os.fsencode(root), b"not-utf8-\xff"))).write_text("")
