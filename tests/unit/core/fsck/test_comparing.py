"""Trees are compared as layers are: contents, owners, modes, times of files, links, names."""

import os

import pytest

from orlop.core.fsck.comparing import difference

SECOND = 1_000_000_000


def tree(root):
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "passwd").write_text("root")
    os.link(root / "etc" / "passwd", root / "etc" / "also")
    os.symlink("passwd", root / "etc" / "link")
    os.utime(root / "etc" / "passwd", ns=(SECOND, SECOND))
    os.utime(root / "etc" / "link", ns=(SECOND, SECOND), follow_symlinks=False)
    os.utime(root / "etc", ns=(SECOND, id(root)))  # a directory's time is nobody's business
    return root


def rewrite(path):
    status = path.stat()
    path.write_text("toor")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def relink(path):
    path.unlink()
    os.symlink("elsewhere", path)
    os.utime(path, ns=(SECOND, SECOND), follow_symlinks=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: rewrite(root / "etc" / "passwd"), "etc/also: has other content"),
        (lambda root: (root / "etc" / "passwd").write_text("rooot"), "etc/also: has 5 bytes, not 4"),
        (lambda root: (root / "etc" / "passwd").unlink(), "etc: 'passwd' is missing"),
        (lambda root: (root / "etc" / "more").write_text(""), "etc: 'more' does not belong there"),
        (lambda root: (root / "etc" / "passwd").chmod(0o4644), "etc/also: has mode 4644, not 0644"),
        (lambda root: (root / "etc").chmod(0o700), "etc: has mode 0700, not 0755"),
        (lambda root: os.utime(root / "etc" / "passwd"), "etc/also: has another time of modification"),
        (lambda root: relink(root / "etc" / "link"), "etc/link: points elsewhere"),
        (lambda root: os.link(root / "etc" / "passwd", root.with_name("third")), "etc/also: has 3 names, not 2"),
        (lambda root: os.setxattr(root / "etc" / "passwd", "user.x", b"y"), "etc/also: has other extended attributes"),
    ],
)
def test_what_differs_is_said(tmp_path, change, words):
    os.umask(0o022)
    actual, wanted = tree(tmp_path / "actual"), tree(tmp_path / "wanted")
    assert difference(str(actual), str(wanted), lambda: None) is None
    change(actual)
    assert difference(str(actual), str(wanted), lambda: None) == words


def test_a_tree_that_is_not_there(tmp_path):
    assert difference(str(tmp_path / "none"), str(tree(tmp_path / "wanted")), lambda: None) == ".: is missing"


def test_it_can_be_stopped(tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        difference(str(tree(tmp_path / "a")), str(tree(tmp_path / "b")), stop)
