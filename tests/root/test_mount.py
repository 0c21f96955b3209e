"""Mounts are performed in order, undone in reverse, and overlays of any length work."""

import contextlib
import os
from pathlib import Path

import pytest

from orlop.base import errdefs
from orlop.core.mount import Mount, idmap, options, perform
from orlop.core.mount.perform import is_mounted, mount_all, temp_mount, unmount_all, unmount_mounts
from orlop.linux import mount as mnt

pytestmark = pytest.mark.root


def bind(source, *words):
    return Mount(type="bind", source=str(source), options=("rbind", *words))


def overlay(base, names, *extra):
    lower = options.join_layers(str(base / name) for name in names)
    return Mount(type="overlay", source="overlay", options=(f"lowerdir={lower}", *extra))


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "target"
    path.mkdir()
    yield path
    unmount_all(str(path), detach=True)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.mkdir()
    (path / "file").write_text("words")
    return path


def test_a_readonly_bind_mount_cannot_be_written(source, target):
    mount_all([bind(source, "ro", "nosuid")], str(target))
    assert (target / "file").read_text() == "words"
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").write_text("")
    (source / "new").write_text("the source stays writable")


def test_several_mounts_lie_on_each_other_and_all_go(source, target):
    mount_all([Mount(type="tmpfs", source="tmpfs", options=("size=64k",)), bind(source)], str(target))
    assert (target / "file").exists()
    unmount_all(str(target))
    assert not is_mounted(str(target))
    unmount_all(str(target))
    unmount_all(str(target / "missing"))


def test_a_failed_mount_undoes_those_before_it_and_says_which_it_was(source, target):
    bad = Mount(type="bind", source="/no/such/source", options=("bind",))
    with pytest.raises(errdefs.NotFoundError, match="mount bind of '/no/such/source' on"):
        mount_all([bind(source), bad], str(target))
    assert not is_mounted(str(target))


def test_an_unknown_file_system_or_option_is_named(target):
    with pytest.raises(errdefs.FailedPreconditionError, match="mount nosuchfs"):
        mount_all([Mount(type="nosuchfs", source="x")], str(target))
    with pytest.raises(errdefs.InvalidArgumentError, match="mount tmpfs"):
        mount_all([Mount(type="tmpfs", source="tmpfs", options=("nonsense=1",))], str(target))
    with pytest.raises(errdefs.UnimplementedError, match="helper program"):
        mount_all([Mount(type="fuse.something", source="x")], str(target))


def test_the_target_below_the_root_follows_no_link_out_of_it(source, target, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (target / "inside").mkdir()
    (target / "link").symlink_to("../outside")
    (target / "absolute").symlink_to("/inside")
    with pytest.raises(errdefs.NotFoundError):
        mount_all([Mount(type="bind", source=str(source), target="link", options=("bind",))], str(target))
    assert not is_mounted(str(outside))
    mounts = [Mount(type="bind", source=str(source), target="absolute", options=("bind", "ro"))]
    mount_all(mounts, str(target))
    assert (target / "inside" / "file").exists()
    assert is_mounted(str(target / "inside"))
    unmount_mounts(mounts, str(target))
    assert not is_mounted(str(target / "inside"))


def test_a_temp_mount_goes_even_after_an_error(source):
    seen = []

    def work():
        with temp_mount([bind(source)]) as path:
            seen.extend([path, *os.listdir(path)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert seen[1:] == ["file"]
    assert not os.path.exists(seen[0])
    assert (source / "file").exists()


@pytest.mark.parametrize(
    ("count", "name"),
    [(3, "x"), (125, "a-name-long-enough-that-all-layers-are-far-beyond-a-page"), (300, "a-longer-name" * 3)],
)
def test_an_overlay_of_many_layers_is_mounted(tmp_path, target, count, name):
    names = [f"{number}/{name}" for number in range(count)]
    for path in names:
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / path.split("/")[0]).touch()
    before = os.getcwd()
    for directory in ("upper", "work"):
        (tmp_path / directory).mkdir()
    extra = (f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work")
    mount_all([overlay(tmp_path, names, *extra)], str(target))
    assert len(os.listdir(target)) == count
    (target / "new").touch()
    assert (tmp_path / "upper" / "new").exists()
    assert os.getcwd() == before


def test_layers_far_apart_are_given_one_by_one(tmp_path, target):
    name = "n" * 200
    paths = [tmp_path / str(number) / name for number in range(30)]
    for path in paths:
        path.mkdir(parents=True)
        (path / path.parent.name).touch()
    lower = options.join_layers(map(str, paths))
    perform._mount_layer_by_layer(str(target), mnt.MS_RDONLY | mnt.MS_NODEV, options.split_layers(lower), [])
    assert len(os.listdir(target)) == 30
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").touch()


def mapped(size=65536):
    return (f"uidmap=0:100000:{size}", f"gidmap=0:100000:{size}")


def test_an_id_mapped_bind_mount_shows_mapped_owners(source, target):
    mount_all([bind(source, *mapped())], str(target))
    assert (target / "file").stat().st_uid == 100000
    assert (source / "file").stat().st_uid == 0


def test_the_lower_layers_of_an_id_mapped_overlay_show_mapped_owners(tmp_path, target):
    for name in ("1/fs", "2/fs", "upper", "work"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "1/fs/file").touch()
    extra = (f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work", *mapped())
    mount_all([overlay(tmp_path, ["2/fs", "1/fs"], *extra)], str(target))
    assert (target / "file").stat().st_uid == 100000
    unmount_all(str(target))
    assert not [entry for entry in mnt.mountinfo() if "orlop-idmap" in entry.mount_point]


def test_a_file_system_that_cannot_be_id_mapped_is_refused_clearly(target):
    with pytest.raises(errdefs.UnimplementedError, match="id mapping"):
        mount_all([Mount(type="bind", source="/proc", options=("bind", *mapped()))], str(target))
    assert not is_mounted(str(target))


def test_the_helper_of_an_id_mapping_ends():
    before = _children()
    with idmap.user_namespace([options.IDMap(0, 5, 1)], [options.IDMap(0, 5, 1)]) as userns_fd:
        assert os.readlink(f"/proc/self/fd/{userns_fd}").startswith("user:")
    with pytest.raises(OSError, match="Invalid"), idmap.user_namespace([], [options.IDMap(0, 5, 1)]):
        pass
    assert _children() == before


def _children():
    """Pids of this process's children, without ps(1), which not every system has."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == os.getpid():
                found.add(stat.parent.name)
    return found
