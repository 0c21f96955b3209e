"""Trees deeper than a path, wider than a stack, and with something mounted or swapped inside."""

import os
import stat

import pytest

from orlop.core import trees
from orlop.core.snapshots.directories import usage


def deep(path, levels):
    """Nest directories by descriptors, with a file in each."""
    fd = os.open(path, os.O_RDONLY)
    for _ in range(levels):
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
        os.mkdir("directory", dir_fd=fd)
        inner = os.open("directory", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


@pytest.mark.parametrize("levels", [0, 1, 400, 3000])
def test_a_tree_of_any_depth_is_measured_and_removed(tmp_path, levels):
    top = tmp_path / "top"
    top.mkdir()
    deep(top, levels)
    assert sum(1 for _ in trees.statuses(top)) == 1 + 2 * levels
    assert usage(str(top)).inodes == 1 + 2 * levels
    trees.remove(top)
    assert os.listdir(tmp_path) == []


def test_a_wide_tree_is_read_once_per_directory(tmp_path):
    top = tmp_path / "top"
    top.mkdir()
    for number in range(3000):
        (top / str(number)).mkdir()
    told: list[os.stat_result] = []
    fd = os.open(top, os.O_RDONLY)
    try:
        trees.remove_inside(fd, told.append)
    finally:
        os.close(fd)
    assert len(told) == 3000
    assert all(stat.S_ISDIR(status.st_mode) for status in told)
    assert os.listdir(top) == []


def test_links_are_removed_and_not_followed(tmp_path):
    outside, top = tmp_path / "outside", tmp_path / "top"
    outside.mkdir()
    (outside / "kept").touch()
    top.mkdir()
    (top / "link").symlink_to(outside)
    (top / "dangling").symlink_to("nowhere")
    os.link(outside / "kept", top / "hard")
    assert sum(1 for _ in trees.statuses(top)) == 4
    trees.remove(top)
    assert os.listdir(tmp_path) == ["outside"]
    assert (outside / "kept").exists()


@pytest.mark.parametrize("make", ["file", "link", "nothing"])
def test_what_is_no_directory_is_refused(tmp_path, make):
    path = tmp_path / "x"
    if make == "file":
        path.touch()
    elif make == "link":
        path.symlink_to(tmp_path)
    with pytest.raises((NotADirectoryError, FileNotFoundError)):
        trees.remove(path)
    assert os.path.lexists(path) == (make != "nothing")


def test_names_that_are_not_utf8(tmp_path):
    top = tmp_path / "top"
    os.makedirs(os.fsencode(top) + b"/\xff\xfe/\xed\xa0\x80")
    assert sum(1 for _ in trees.statuses(top)) == 3
    trees.remove(top)
    assert os.listdir(tmp_path) == []
