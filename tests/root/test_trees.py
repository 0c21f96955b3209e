"""Removing a tree in which something is mounted: the mount's files are not the tree's."""

import errno
import subprocess

import pytest

from orlop.core import trees

pytestmark = pytest.mark.root


@pytest.mark.parametrize("kind", ["another file system", "a bind mount of the same"])
def test_what_is_mounted_inside_is_left_alone(tmp_path, kind):
    top, elsewhere = tmp_path / "top", tmp_path / "elsewhere"
    (top / "mounted").mkdir(parents=True)
    (top / "file").touch()
    elsewhere.mkdir()
    mount = ["-t", "tmpfs", "none"] if kind == "another file system" else ["--bind", elsewhere]
    subprocess.run(["mount", *mount, top / "mounted"], check=True)
    try:
        (top / "mounted" / "kept").touch()
        with pytest.raises(OSError, match="mounted inside") as caught:
            trees.remove(top)
        assert caught.value.errno == errno.EXDEV
        assert (top / "mounted" / "kept").exists()
    finally:
        subprocess.run(["umount", top / "mounted"], check=True)
    trees.remove(top)
    assert not top.exists()
