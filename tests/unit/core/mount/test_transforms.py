"""What transforms make, and that nothing is made outside their roots. Source: containerd's mkdir.go and mkfs.go."""

import os

import pytest

from orlop.base.errdefs import FailedPreconditionError, InvalidArgumentError, OrlopError, UnimplementedError
from orlop.core.mount import Mount
from orlop.core.mount.plans import Step
from orlop.core.mount.transforms import apply


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def mkdir(root, *options):
    mount = Mount(type="mkdir/overlay", source="overlay", options=(*options, "index=off"))
    return apply(Step(mount=mount, transforms=("mkdir",), type="overlay"), [], [str(root)])


def mkfs(root, name, *options):
    mount = Mount(type="mkfs/loop", source=f"{root}/{name}", options=options)
    return apply(Step(mount=mount, transforms=("mkfs",), type="loop"), [], [str(root)])


def path(text):
    return f"X-containerd.mkdir.path={text}"


def test_directories_are_made_and_the_options_go(root):
    old = os.umask(0o077)
    try:
        mount = mkdir(root, path(f"{root}/upper"), path(f"{root}/work:0755"), path(f"{root}/./third:0711"))
    finally:
        os.umask(old)
    assert mount == Mount(type="overlay", source="overlay", options=("index=off",))
    modes = {one.name: one.stat().st_mode & 0o777 for one in root.iterdir()}
    assert modes == {"upper": 0o700, "work": 0o755, "third": 0o711}
    assert mkdir(root, path(f"{root}/work:0755")) == mount


def test_a_directory_below_another_that_is_made_first(root):
    mkdir(root, path(f"{root}/a"), path(f"{root}/a/b"))
    assert (root / "a" / "b").is_dir()
    with pytest.raises(FailedPreconditionError, match="its directory does not exist"):
        mkdir(root, path(f"{root}/x/y"))


def test_the_owner_is_the_one_that_is_named(root):
    me = f"{os.getuid()}:{os.getgid()}"
    mkdir(root, path(f"{root}/mine:0750:{me}"))
    assert (root / "mine").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("X-containerd.mkdir.mode=1", 'invalid mkdir option "X-containerd.mkdir.mode=1": invalid argument'),
        (path("/R/x:0700:0"), 'invalid mkdir option "X-containerd.mkdir.path=/R/x:0700:0": invalid argument'),
        (path("/R/x:0999"), "invalid mode 0999: invalid argument"),
        (path("/R/x:4755"), "invalid mode 4755: invalid argument"),
        (path("/R/x:0700:a:0"), 'invalid uid "a": invalid argument'),
        (path("/R/x:0700:0:-1"), 'invalid gid "-1": invalid argument'),
        (path("/elsewhere/x"), 'no root "/elsewhere/x" configured for mkdir: not implemented'),
        (path("/R2/x"), 'no root "/R2/x" configured for mkdir: not implemented'),
    ],
)
def test_options_that_are_none(root, option, text):
    with pytest.raises((InvalidArgumentError, UnimplementedError)) as caught:
        mkdir(root, option.replace("/R", str(root)))
    assert str(caught.value).replace(str(root), "/R") == text
    assert not list(root.iterdir())


def test_what_is_there_is_not_changed(root):
    (root / "file").write_text("")
    with pytest.raises(FailedPreconditionError, match="exists and is not a directory"):
        mkdir(root, path(f"{root}/file"))
    (root / "dir").mkdir(0o755)
    (root / "dir").chmod(0o755)
    with pytest.raises(UnimplementedError, match="chmod not supported yet for mkdir handler"):
        mkdir(root, path(f"{root}/dir:0700"))


@pytest.mark.parametrize("place", ["link/x", "absolute/x", "link", "link/../../elsewhere/x"])
def test_nothing_is_made_outside(root, place, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (root / "link").symlink_to("../elsewhere")
    (root / "absolute").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OrlopError):
        mkdir(root, path(f"{root}/{place}"))
    with pytest.raises(OrlopError):
        mkfs(root, place, "X-containerd.mkfs.size=1MiB")
    assert not list((tmp_path / "elsewhere").iterdir())
    assert sorted(one.name for one in tmp_path.iterdir()) == ["elsewhere", "root"]


def test_dots_stay_beneath_as_go_cleans_them(root, tmp_path):
    mkdir(root, path(f"{root}/../../inside"))
    assert (root / "inside").is_dir()
    assert not (tmp_path / "inside").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "mkfs requires mkfs.size option: invalid argument"),
        (["size=much"], 'bad option size: invalid size: "much": invalid argument'),
        (["size=1", "fs=erofs"], 'unsupported filesystem "erofs": invalid argument'),
        (["size=1", "uuid=-x y"], 'bad option uuid: "-x y": invalid argument'),
        (["size=1", "colour=red"], "unknown mount option colour: invalid argument"),
    ],
)
def test_mkfs_options_that_are_none(root, options, text):
    with pytest.raises(InvalidArgumentError) as caught:
        mkfs(root, "image", *(f"X-containerd.mkfs.{option}" for option in options))
    assert str(caught.value) == text
    assert not list(root.iterdir())


def test_a_file_system_is_made_once(root):
    uuid = "12345678-1234-1234-1234-123456789abc"
    options = ("X-containerd.mkfs.size=1MiB", "X-containerd.mkfs.fs=ext2", f"X-containerd.mkfs.uuid={uuid}", "ro")
    assert mkfs(root, "image", *options) == Mount(type="loop", source=f"{root}/image", options=("ro",))
    data = (root / "image").read_bytes()
    assert len(data) == 1 << 20
    assert data[1080:1082] == b"\x53\xef"  # ext2's magic number
    assert data[1128:1144] == bytes.fromhex(uuid.replace("-", ""))
    assert [one.name for one in root.iterdir()] == ["image"]
    (root / "image").write_bytes(b"what is there is taken as it is")
    mkfs(root, "image", *options)
    assert (root / "image").read_bytes() == b"what is there is taken as it is"


def test_what_is_there_must_be_a_file(root):
    (root / "image").mkdir()
    with pytest.raises(FailedPreconditionError, match="exists and is not a regular file"):
        mkfs(root, "image", "X-containerd.mkfs.size=1m")


def test_a_program_that_fails_is_quoted_and_leaves_nothing(root):
    with pytest.raises(OrlopError, match="failed format"):
        mkfs(root, "image", "X-containerd.mkfs.size=1", "X-containerd.mkfs.fs=ext4")
    assert not list(root.iterdir())


@pytest.mark.parametrize(
    ("text", "size"),
    [("1024", 1024), ("1k", 1024), ("1 kB", 1024), ("64MiB", 64 << 20), ("1.5G", 3 << 29), ("2tb", 2 << 40), ("7b", 7)],
)
def test_sizes(text, size):
    from orlop.core.mount.transforms import _bytes

    assert _bytes(text) == size
