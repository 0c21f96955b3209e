"""The archive that changes become."""

import os
import stat
import tarfile
from pathlib import Path

import pytest

from orlop.core.diff import layer as module
from orlop.core.diff.changes import Change, Kind
from orlop.core.diff.errors import ArchiveError, LimitError
from orlop.core.diff.layer import ChangedError, Layer
from tests.unit.core.diff.trees import OLD, Trees, descriptors, put


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path)


def names(members):
    return [(member.name, member.linkname) for member in members]


def test_nothing_is_two_empty_blocks(trees):
    assert trees.archive() == bytes(1024)


def test_directories_come_before_what_is_in_them_once(trees):
    trees.both("a/b/c/kept")
    os.chmod(trees.upper / "a/b", 0o711)
    for name in ("a/b/c/one", "a/b/c/two", "a/other"):
        put(trees.upper, name)
    put(trees.lower, "a/b/gone")
    members = trees.members()
    assert [member.name for member in members] == [
        "a",
        "a/b",
        "a/b/c",
        "a/b/c/one",
        "a/b/c/two",
        "a/b/.wh.gone",
        "a/other",
    ]
    assert members[1].mode == 0o711
    assert members[0].isdir()


def test_whiteouts_are_of_nobody_and_of_1970(trees):
    put(trees.lower, "gone/inside")
    [member] = trees.members(epoch=5 * 10**9)
    assert (member.name, member.type, member.mode, member.mtime) == (".wh.gone", tarfile.REGTYPE, 0, 0)


def test_further_names_are_links_to_the_first(trees):
    put(trees.upper, "b")
    os.link(trees.upper / "b", trees.upper / "a")
    os.link(trees.upper / "b", trees.upper / "c")
    assert names(trees.members()) == [("a", ""), ("b", "a"), ("c", "a")]


def test_names_that_were_there_are_linked_to_a_new_one(trees):
    trees.both("dir/old")
    trees.both("zzz")
    os.link(trees.upper / "dir/old", trees.upper / "new")
    os.link(trees.upper / "dir/old", trees.upper / "x")
    assert names(trees.members()) == [("new", ""), ("dir", ""), ("dir/old", "new"), ("x", "new")]


def test_several_names_of_something_equal_are_no_change(trees):
    trees.both("one")
    for root in (trees.lower, trees.upper):
        os.link(root / "one", root / "two")
    assert trees.members() == []


def test_times_are_whole_seconds_and_bounded(trees):
    put(trees.upper, "a", mtime=OLD + 0.75)
    put(trees.upper, "b", mtime=5.5)
    assert [member.mtime for member in trees.members()] == [OLD, 5]
    assert [member.mtime for member in trees.members(epoch=100 * 10**9 + 1)] == [100, 5]


def test_special_files(trees):
    os.mkfifo(trees.upper / "fifo", 0o600)
    os.symlink("target", trees.upper / "link")
    os.mknod(trees.upper / "socket", stat.S_IFSOCK | 0o600)
    assert names(trees.members()) == [("fifo", ""), ("link", "target")]


def test_holes_are_written_as_zeros(trees):
    with (trees.upper / "sparse").open("wb") as file:
        file.truncate(3 << 20)
    [member] = trees.members()
    assert member.size == 3 << 20
    assert trees.archive() == trees.archive()


def test_attributes(trees):
    os.setxattr(put(trees.upper, "file"), "user.note", b"bytes\0\xff")
    (trees.upper / "dir").mkdir()
    os.setxattr(trees.upper / "dir", "user.other", b"x")
    assert b"SCHILY.xattr.user.note=bytes\0\xff\n" in trees.archive()
    assert b"SCHILY.xattr.user.other=x\n" in trees.archive()


@pytest.mark.parametrize("name", [".wh.x", "dir/.wh..wh..opq", ".wh.dir/inside"])
def test_names_that_would_delete_are_refused(trees, name):
    put(trees.upper, name)
    with pytest.raises(ArchiveError, match="would delete") as caught:
        trees.archive()
    assert caught.value.entry is not None
    assert b".wh." in caught.value.entry


def test_such_names_do_no_harm_where_nothing_changes(trees):
    trees.both(".wh.x")
    put(trees.lower, ".wh.y")
    assert names(trees.members()) == [(".wh..wh.y", "")]


def add(trees, kind: Kind, name: bytes):
    """One change as it was seen; the tree may be another by now."""
    written: list[bytes] = []
    with descriptors(trees.upper) as (upper,):
        layer = Layer(written.append, upper)
        layer.add(Change(kind, name, upper, os.stat(trees.upper / "seen")))
    return b"".join(written)


def test_what_has_vanished_is_left_out_or_deleted(trees):
    put(trees.upper, "seen")
    assert add(trees, Kind.ADDED, b"gone") == b""
    assert add(trees, Kind.MODIFIED, b"gone").startswith(b".wh.gone\0")
    assert add(trees, Kind.UNMODIFIED, b"gone").startswith(b".wh.gone\0")


def test_what_is_no_file_any_more_is_not_waited_for(trees):
    put(trees.upper, "seen")
    os.mkfifo(trees.upper / "fifo")
    with pytest.raises(ChangedError):
        add(trees, Kind.ADDED, b"fifo")


@pytest.mark.parametrize("size", [1000, 3 << 20])
def test_a_file_that_grows_has_the_size_it_had(trees, monkeypatch, size):
    path = put(trees.upper, "log", "x" * size)
    real = os.read

    def read(fd, count):
        with path.open("ab") as file:
            file.write(b"more")
        return real(fd, count)

    monkeypatch.setattr(os, "read", read)
    [member] = trees.members()
    assert member.size == size


def test_a_small_file_that_shrinks_is_what_was_read(trees, monkeypatch):
    path = put(trees.upper, "log", "x" * 1000)
    real = os.read

    def read(fd, count):
        os.truncate(path, 600)
        return real(fd, count)

    monkeypatch.setattr(os, "read", read)
    [member] = trees.members()
    assert member.size == 600


def test_a_large_file_that_shrinks_cannot_be_told(trees, monkeypatch):
    path = put(trees.upper, "log", "x" * (3 << 20))
    real = os.read

    def read(fd, count):
        os.truncate(path, 2 << 20)
        return real(fd, count)

    monkeypatch.setattr(os, "read", read)
    with pytest.raises(ChangedError, match="shrank from 3145728 to 2097152"):
        trees.archive()


def test_a_layer_has_a_limit(trees, monkeypatch):
    monkeypatch.setattr(module, "MAX_SIZE", 1 << 20)
    with (trees.upper / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(LimitError):
        trees.archive()
