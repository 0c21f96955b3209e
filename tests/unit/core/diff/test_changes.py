"""What differs between two trees, and what only seems to."""

import errno
import os
from pathlib import Path

import pytest

from orlop.core.diff import changes as module
from orlop.core.diff.changes import Kind, changes
from orlop.core.diff.errors import EntryError
from tests.unit.core.diff.trees import OLD, Trees, descriptors, put


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path)


def test_equal_trees(trees):
    trees.both("a/b/file")
    trees.both("c")
    assert trees.named() == []


def test_every_kind_in_order(trees):
    trees.both("dir/same")
    put(trees.upper, "dir/added")
    put(trees.lower, "dir/deleted")
    put(trees.lower, "deleted/with/children")
    put(trees.upper, "new/with/children")
    put(trees.lower, "file-to-dir")
    put(trees.upper, "file-to-dir/inside")
    put(trees.lower, "dir-to-file/inside")
    put(trees.upper, "dir-to-file")
    put(trees.lower, "dir-a")
    put(trees.upper, "dir.b")
    assert trees.named() == [
        ("deleted", "deleted"),
        ("added", "dir/added"),
        ("deleted", "dir/deleted"),
        ("deleted", "dir-a"),
        ("modified", "dir-to-file"),
        ("added", "dir.b"),
        ("modified", "file-to-dir"),
        ("added", "file-to-dir/inside"),
        ("added", "new"),
        ("added", "new/with"),
        ("added", "new/with/children"),
    ]


def test_a_directorys_time_is_no_change(trees):
    trees.both("dir/file")
    os.utime(trees.upper / "dir", (1, 1))
    assert trees.named() == []
    os.chmod(trees.upper / "dir", 0o700)
    assert trees.named() == [("modified", "dir")]


@pytest.mark.parametrize(
    ("lower", "upper", "differs"),
    [
        (OLD, OLD, True),  # both may have been cut, so the contents decide
        (OLD + 0.5, OLD + 0.5, False),  # believed, though the contents differ
        (OLD, OLD + 1, True),
        (OLD, OLD + 0.5, True),
    ],
)
def test_times_decide_unless_they_may_have_been_cut(trees, lower, upper, differs):
    put(trees.lower, "file", "one", mtime=lower)
    put(trees.upper, "file", "two", mtime=upper)
    assert trees.named() == ([("modified", "file")] if differs else [])


def test_links_are_compared_by_their_targets(trees):
    for root, target in ((trees.lower, "one"), (trees.upper, "two")):
        os.symlink(target, root / "link")
        os.utime(root / "link", (OLD, OLD), follow_symlinks=False)
    assert trees.named() == [("modified", "link")]


def test_attributes_that_a_layer_keeps(trees):
    trees.both("file", mtime=OLD + 0.5)
    trees.both("dir/file")
    os.setxattr(trees.upper / "file", "user.note", b"x")
    os.setxattr(trees.upper / "dir", "user.overlay.opaque", b"y")  # overlayfs's own
    assert trees.named() == [("modified", "file")]
    os.setxattr(trees.lower / "file", "user.note", b"x")
    assert trees.named() == []


def test_what_has_several_names_is_told_though_it_is_equal(trees):
    trees.both("one")
    os.link(trees.upper / "one", trees.upper / "two")
    assert trees.named() == [("unmodified", "one"), ("added", "two")]


def test_an_empty_tree_on_either_side(trees):
    put(trees.upper, "dir/file")
    with descriptors(trees.upper) as (upper,):
        assert [(change.kind, change.path) for change in changes(upper, -1)] == [
            (Kind.ADDED, b"dir"),
            (Kind.ADDED, b"dir/file"),
        ]
        assert [(change.kind, change.path) for change in changes(-1, upper)] == [(Kind.DELETED, b"dir")]
        assert list(changes(-1, -1)) == []


def test_a_hint_says_where_to_look(trees):
    trees.both("dir/seen/file", "equal")
    trees.both("dir/unseen", "equal")
    (trees.upper / "dir/unseen").write_text("differs, but the layer does not have it")
    (trees.upper / "dir/seen/file").write_text("differs")
    put(trees.changed, "dir/seen/file")
    assert trees.named(hint=True) == [("modified", "dir/seen/file")]
    assert trees.named() == [("modified", "dir/seen/file"), ("modified", "dir/unseen")]


def test_a_hint_needs_no_whiteouts_to_be_understood(trees):
    put(trees.lower, "opaque/one")
    put(trees.lower, "opaque/two")
    put(trees.lower, "deleted")
    put(trees.upper, "opaque/three")
    put(trees.changed, "opaque/three")
    put(trees.changed, "deleted", "stands for a whiteout")
    assert trees.named(hint=True) == [
        ("deleted", "deleted"),
        ("deleted", "opaque/one"),
        ("added", "opaque/three"),
        ("deleted", "opaque/two"),
    ]


def test_names_that_are_no_text(trees):
    Path(os.fsdecode(os.fsencode(trees.upper) + b"/\xff\n")).touch()
    assert [change.path for change in trees.changes()] == [b"\xff\n"]


def test_what_vanishes_is_not_there(trees, monkeypatch):
    for name in ("a", "b", "dir/inside"):
        trees.both(name)
    put(trees.upper, "added")
    real = os.stat

    def stat(path, **more):
        result = real(path, **more)
        if more.get("dir_fd") is not None and os.path.samestat(real(trees.upper), os.fstat(more["dir_fd"])):
            (trees.upper / "b").unlink(missing_ok=True)
            (trees.upper / "added").unlink(missing_ok=True)
        return result

    monkeypatch.setattr(os, "stat", stat)
    assert trees.named() == [("deleted", "b")]


def test_a_file_that_vanishes_while_it_is_compared_is_deleted(trees, monkeypatch):
    trees.both("a")
    real = module.open_file

    def open_file(name, directory):
        (trees.upper / "a").unlink(missing_ok=True)
        return real(name, directory)

    monkeypatch.setattr(module, "open_file", open_file)
    assert trees.named() == [("deleted", "a")]


def test_a_file_that_becomes_a_link_to_elsewhere_is_not_followed(trees, monkeypatch):
    trees.both("a")
    real = module.open_file

    def open_file(name, directory):
        (trees.upper / "a").unlink()
        (trees.upper / "a").symlink_to("/etc/passwd")
        return real(name, directory)

    monkeypatch.setattr(module, "open_file", open_file)
    assert trees.named() == [("modified", "a")]


def test_what_cannot_be_read_is_named(trees, monkeypatch):
    trees.both("dir/file")

    def open_file(name, directory):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(module, "open_file", open_file)
    with pytest.raises(EntryError) as caught:
        trees.named()
    assert caught.value.entry == b"dir/file"
    assert isinstance(caught.value.__cause__, OSError)


def test_no_descriptor_stays_open(trees):
    trees.both("a/b/c/d")
    before = os.listdir("/proc/self/fd")
    trees.named()
    walk = trees.changes()
    put(trees.upper, "a/b/new")
    next(walk)
    walk.close()
    assert os.listdir("/proc/self/fd") == before
