"""Layers unpacked by real workers onto real mounts: what image-spec asks for, and what overlayfs then shows."""

import gzip
import os
import stat
import subprocess
import tarfile

import pytest

from orlop.core.mount import Mount
from orlop.core.mount.perform import temp_mount
from tests.root.layers import (
    MTIME,
    Stack,
    apply_bytes,
    archive,
    digest,
    directory,
    entry,
    file,
    gzipped,
    hardlink,
    symlink,
    tree,
)

pytestmark = pytest.mark.root


@pytest.fixture
def stack(tmp_path):
    return Stack(tmp_path)


def plain(path):
    return [Mount(type="bind", source=str(path), options=("rw", "rbind"))]


def test_every_kind_of_entry_comes_out_as_it_went_in(stack):
    upper = stack.add(
        directory("./etc/", mode=0o750, uid=3, gid=4),
        file("./etc/file", b"words", uid=5, gid=6, mode=0o4755),
        hardlink("etc/again", "etc/file", uid=5, gid=6, mode=0o4755),
        symlink("etc/link", "/nowhere", uid=7),
        entry("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        entry("dev/loop", tarfile.BLKTYPE, devmajor=7, devminor=0, mode=0o660, gid=6),
        entry("run/fifo", tarfile.FIFOTYPE, mode=0o600),
        file("sticky/empty", b""),
        directory("tmp", mode=0o1777),
    )
    seen = tree(upper)
    status = (upper / "etc/file").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), status.st_nlink) == (5, 6, 0o4755, 2)
    assert status.st_mtime == MTIME
    assert (upper / "etc").stat().st_mtime == MTIME
    assert seen["etc"][:3] == (oct(0o40750), 3, 4)
    assert seen["etc/again"][6] == seen["etc/file"][6] != ""
    assert seen["etc/link"][1] == 7
    assert seen["etc/link"][5] == "/nowhere"
    assert seen["dev/null"][0] == oct(0o20666)
    assert seen["dev/null"][3] == os.makedev(1, 3)
    assert seen["dev/loop"][:3] == (oct(0o60660), 0, 6)
    assert seen["run/fifo"][0] == oct(0o10600)
    assert seen["tmp"][0] == oct(0o41777)
    assert seen["dev"][0] == oct(0o40755)


def test_gnu_tar_unpacks_the_same(stack, tmp_path):
    source = tmp_path / "source"
    long = "directory-with-a-name/" * 7
    (source / long).mkdir(parents=True)
    (source / long / ("n" * 200)).write_bytes(os.urandom(3000))
    (source / "big").write_bytes(os.urandom(1 << 20) * 3)
    os.symlink("x" * 300, source / "longlink")
    os.link(source / "big", source / long / "hard")
    os.chown(source / "big", 4_000_000, 4_000_000)
    os.utime(source / "big", ns=(10**18 + 5, 10**18 + 123456789))
    with open(source / "sparse", "wb") as sparse:
        for number in range(60):
            sparse.seek(number << 17)
            sparse.write(b"data" * 2000)
        sparse.truncate(10 << 20)
    os.setxattr(source / "big", "user.key", b"val\0ue")
    (source / os.fsdecode(b"not-utf8-\xff\xfe")).touch()
    for number, flags in enumerate((["--format=gnu", "-S"], ["--format=pax", "--xattrs", "-S"], ["--format=v7"])):
        exclude = ["--exclude=longlink", "--exclude=directory*", "--exclude=big"] if "--format=v7" in flags else []
        blob = subprocess.run(
            ["tar", *flags, "--numeric-owner", *exclude, "-c", "."], cwd=source, check=True, capture_output=True
        ).stdout
        expected, mine = tmp_path / f"expected{number}", tmp_path / f"mine{number}"
        expected.mkdir()
        mine.mkdir()
        subprocess.run(
            ["tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-x", "-C", str(expected)],
            input=blob,
            check=True,
            capture_output=True,
        )
        applied = apply_bytes(blob, plain(mine), tmp_path)
        assert tree(mine) == tree(expected)
        assert applied.digest == digest(blob)
        assert applied.usage_inodes == int(subprocess.check_output(["du", "--inodes", "-s", mine]).split()[0])
        assert abs((mine / "sparse").stat().st_blocks - (expected / "sparse").stat().st_blocks) < 64


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_pax_sparse_files(tmp_path, version):
    source, mine = tmp_path / "source", tmp_path / "mine"
    source.mkdir()
    mine.mkdir()
    with open(source / "s", "wb") as sparse:
        sparse.write(b"head")
        sparse.seek(1 << 20)
        sparse.write(b"middle")
        sparse.truncate(3 << 20)
    blob = subprocess.check_output(["tar", f"--sparse-version={version}", "--format=pax", "-S", "-c", "s"], cwd=source)
    apply_bytes(blob, plain(mine), tmp_path)
    assert (mine / "s").read_bytes() == (source / "s").read_bytes()
    assert (mine / "s").stat().st_blocks < 100
    assert os.listdir(mine) == ["s"]


def test_compressions_and_members_in_a_row(tmp_path):
    from backports import zstd

    data = archive(directory("d"), file("d/f", b"x" * 3_000_000))
    half = len(data) // 2
    blobs = {
        "plain": data,
        "gzip": gzipped(data),
        "members": gzip.compress(data[:half]) + gzip.compress(data[half:]) + bytes(1000),
        "zstd": zstd.compress(data[:half]) + zstd.compress(data[half:]),
    }
    for name, blob in blobs.items():
        mine = tmp_path / name
        mine.mkdir()
        applied = apply_bytes(blob, plain(mine), tmp_path)
        assert (applied.digest, applied.size) == (digest(data), len(data))
        assert (mine / "d/f").stat().st_size == 3_000_000


def test_attributes_and_capabilities(stack):
    capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    headers = {
        "SCHILY.xattr.security.capability": capability.decode("latin-1"),
        "SCHILY.xattr.user.note": "hello",
        "SCHILY.xattr.trusted.secret": "no",
    }
    upper = stack.add(file("ping", uid=1, pax_headers=headers), symlink("link", "x", pax_headers=headers))
    assert os.getxattr(upper / "ping", "security.capability") == capability
    assert os.getxattr(upper / "ping", "user.note") == b"hello"
    assert "trusted.secret" not in os.listxattr(upper / "ping")
    assert "user.note" not in os.listxattr(upper / "link", follow_symlinks=False)


def test_whiteouts_hide_what_is_below(stack):
    stack.add(file("etc/a"), file("etc/b"), file("var/c"), file("usr/d"))
    upper = stack.add(file("etc/.wh.a", b"", uid=9), file(".wh.var", b""), file("new"))
    status = (upper / "etc/a").lstat()
    assert stat.S_ISCHR(status.st_mode)
    assert (status.st_rdev, status.st_uid) == (0, 9)
    with temp_mount(stack.view()) as root:
        assert sorted(tree(root)) == ["etc", "etc/b", "new", "usr", "usr/d"]


@pytest.mark.parametrize("order", ["first", "last", "middle"])
def test_opaque_directories_in_any_order(stack, order):
    stack.add(file("d/old"), file("d/sub/old"))
    marker = file("d/.wh..wh..opq", b"")
    entries = [directory("d"), file("d/new"), file("d/sub/new")]
    entries.insert({"first": 0, "last": 3, "middle": 2}[order], marker)
    upper = stack.add(*entries)
    assert os.getxattr(upper / "d", "trusted.overlay.opaque") == b"y"
    with temp_mount(stack.view()) as root:
        assert sorted(tree(root)) == ["d", "d/new", "d/sub", "d/sub/new"]


def test_a_whiteout_and_the_same_name_again_show_only_the_new(stack):
    stack.add(file("d/old"), file("e/old"), file("f/old"))
    stack.add(
        file(".wh.d", b""),
        directory("d"),
        file("d/new"),  # deleted, then made again
        directory("e"),
        file("e/new"),
        file(".wh.e", b""),  # the other way round: a whiteout is about lower layers
        file(".wh.f", b""),
        file("f/new"),  # and without an entry for the directory
    )
    with temp_mount(stack.view()) as root:
        assert sorted(tree(root)) == ["d", "d/new", "e", "e/new", "f", "f/new"]


def test_a_file_in_the_place_of_a_directory_and_back(stack):
    stack.add(file("d/old"), file("x"))
    upper = stack.add(file("d", b"now a file"), directory("x"), file("x/inside"))
    assert (upper / "d").read_bytes() == b"now a file"
    stack.add(directory("d"), file("d/again"), directory("y"), file("y/z"), file("y"), directory("y"), file("y/w"))
    with temp_mount(stack.view()) as root:
        assert sorted(tree(root)) == ["d", "d/again", "x", "x/inside", "y", "y/w"]


def test_the_last_of_several_entries_holds(stack):
    upper = stack.add(
        file("a", b"1"), file("a", b"22"), symlink("b", "a"), file("b", b"3"), hardlink("c", "a"), file("a", b"4")
    )
    assert (upper / "a").read_bytes() == b"4"
    assert (upper / "b").read_bytes() == b"3"
    assert (upper / "c").read_bytes() == b"22"


def test_implicit_parents_are_as_they_are_below(stack):
    below = stack.lower()
    (below / "srv/www").mkdir(parents=True)
    os.chown(below / "srv/www", 33, 34)
    os.chmod(below / "srv/www", 0o2750)
    os.setxattr(below / "srv/www", "user.kept", b"yes")
    os.utime(below / "srv/www", (1, 2))
    upper = stack.add(file("srv/www/index.html"), file("opt/new/file"))
    status = (upper / "srv/www").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), status.st_mtime) == (33, 34, 0o2750, 2)
    assert os.getxattr(upper / "srv/www", "user.kept") == b"yes"
    assert (upper / "srv/www/index.html").stat().st_gid == 0
    assert stat.S_IMODE((upper / "opt/new").stat().st_mode) == 0o755


def test_parents_that_are_links_below_lead_into_the_merged_root(stack):
    stack.add(directory("usr/lib"), file("usr/lib/old"), symlink("lib", "usr/lib"), symlink("abs", "/usr/../usr/lib"))
    upper = stack.add(file("lib/new"), file("abs/newer"), hardlink("lib/linked", "abs/old"))
    assert sorted(os.listdir(upper)) == ["usr"]
    with temp_mount(stack.view()) as root:
        assert sorted(os.listdir(f"{root}/lib")) == ["linked", "new", "newer", "old"]
        assert os.path.islink(f"{root}/lib")


def test_hard_links_to_lower_layers_are_copied_up(stack):
    stack.add(file("bin/tool", b"program", uid=3, mode=0o755), symlink("bin/link", "tool"))
    upper = stack.add(hardlink("bin/other", "bin/tool", uid=3, mode=0o755), hardlink("l", "bin/link", mode=0o777))
    assert (upper / "bin/tool").stat().st_ino == (upper / "bin/other").stat().st_ino
    assert (upper / "bin/other").read_bytes() == b"program"
    assert os.readlink(upper / "l") == "tool"


def test_a_directory_entry_takes_the_place_of_a_link_below(stack):
    stack.add(directory("usr/lib"), symlink("lib", "usr/lib"))
    stack.add(file("lib/through"), directory("lib"), file("lib/real"))
    with temp_mount(stack.view()) as root:
        assert os.listdir(f"{root}/lib") == ["real"]
        assert os.listdir(f"{root}/usr/lib") == ["through"]


def test_on_a_bind_mount_with_files_whiteouts_delete(tmp_path):
    merged = tmp_path / "merged"
    merged.mkdir()
    first = archive(file("a/old"), file("a/sub/old"), file("b/old"), file("c"), symlink("l", "a"))
    second = archive(
        file("a/sub/new"),
        file("a/.wh..wh..opq", b""),
        directory("b"),
        file("b/new"),
        file(".wh.b", b""),
        file(".wh.c", b""),
        file("l", b"no link now"),
    )
    assert apply_bytes(first, plain(merged), tmp_path).usage_inodes == 9
    assert apply_bytes(second, plain(merged), tmp_path).usage_inodes is None
    assert sorted(tree(merged)) == ["a", "a/sub", "a/sub/new", "b", "b/new", "l"]


def test_an_upper_directory_with_something_in_it_is_written_through_the_overlay(stack, tmp_path):
    stack.add(file("d/old"), file("e"))
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    mount = Mount(
        type="overlay",
        source="overlay",
        options=(f"workdir={tmp_path}/work", f"upperdir={tmp_path}/upper", f"lowerdir={stack.layers[0]}"),
    )
    apply_bytes(archive(file("d/.wh..wh..opq", b""), file("d/new")), [mount], tmp_path)
    apply_bytes(archive(file("d/newer"), file(".wh.e", b"")), [mount], tmp_path)
    with temp_mount([mount]) as root:
        assert sorted(tree(root)) == ["d", "d/new", "d/newer"]


def test_the_roots_own_entry_changes_nothing(stack):
    upper = stack.add(directory("./", mode=0o700, uid=5), file("./a"))
    assert upper.stat().st_uid == 0
    assert stat.S_IMODE(upper.stat().st_mode) == 0o755
