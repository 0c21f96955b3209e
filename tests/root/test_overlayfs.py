"""What overlayfs does here: probes, id-mapped layers, full disks, long paths."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orlop.base import errdefs
from orlop.core.mount import Mount
from orlop.core.mount.perform import mount_all, unmount_all
from orlop.core.plugin import SkipPlugin
from orlop.core.snapshots import GID_MAPPING, UID_MAPPING, Kind, Snapshot, Usage
from orlop.plugins.snapshots import native, overlayfs
from orlop.plugins.snapshots.mapping import ONLY_REMAP_IDS, REMAP_IDS
from orlop.plugins.snapshots.native import Native
from orlop.plugins.snapshots.overlayfs import Overlayfs, capabilities_here, options_here
from orlop.testing.snapshots import NAMESPACE, Bench
from orlop.testing.trees import all_kinds, describe, write

pytestmark = pytest.mark.root


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB and 48 inodes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount_all([Mount(type="tmpfs", source="tmpfs", options=("size=1m", "nr_inodes=48"))], os.fspath(disk))
    yield disk
    unmount_all(os.fspath(disk), detach=True)


def test_options_and_capabilities_are_those_of_containerd(tmp_path: Path) -> None:
    assert options_here(tmp_path) == ("index=off",)
    assert options_here(tmp_path, ("index=on", "metacopy=off")) == ("index=on", "metacopy=off")
    assert capabilities_here(tmp_path)[-1] == "rebase"
    assert os.listdir(tmp_path) == [], "probes leave nothing"


def test_layers_are_seen_with_mapped_ids(tmp_path: Path) -> None:
    capabilities = capabilities_here(tmp_path)
    if REMAP_IDS not in capabilities:
        pytest.skip("this kernel or file system has no id-mapped layers")
    labels = {UID_MAPPING: "0:100000:65536", GID_MAPPING: "0:200000:65536"}

    def make(root: Path) -> Overlayfs:
        return Overlayfs(root, options=options_here(root), capabilities=capabilities)

    with Bench(tmp_path, make) as bench:
        bench.layer("one", "", write("file", "1"), lambda root: os.chown(root / "file", 5, 6))
        bench.layer("two", "one", write("other", "2"))
        with bench.mounted(bench.prepare("active", "two", labels=labels)) as path:
            assert [(path / name).stat().st_uid for name in (".", "file", "other")] == [100000, 100005, 100000]
            assert [(path / name).stat().st_gid for name in (".", "file", "other")] == [200000, 200006, 200000]
            (path / "made").write_text("by us")
        assert bench.seen("two")["file"][2:4] == (5, 6)


@pytest.mark.parametrize("make", [Overlayfs, Native])
def test_a_full_disk_leaves_nothing_behind(small_disk: Path, make: type[Overlayfs] | type[Native]) -> None:
    with Bench(small_disk, make) as bench:
        bench.layer("base", "", *(write(f"f{index}", "") for index in range(10)))
        before = sorted(bench.snapshotter.numbers())
        with pytest.raises(
            errdefs.ResourceExhaustedError,
            match=r'snapshot "k\d+": prepare: no space left on the file system at .*disk',
        ):
            _prepare_many(bench, 40)
        keys = len(bench.names()) - 1
        assert 0 < keys < 40
        for index in range(keys):
            bench.remove(f"k{index}")
        bench.cleanup()
        assert sorted(bench.snapshotter.numbers()) == before
        bench.trash.empty()
        bench.prepare("again", "base")


def test_more_layers_than_fit_into_a_page(tmp_path: Path) -> None:
    """Below a long path the options of thirty layers are longer than a page."""
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    with Bench(deep, lambda root: Overlayfs(root, options=options_here(root))) as bench:
        parent = ""
        for index in range(30):
            with bench.mounted(bench.prepare(f"extract-{index}", parent)) as path:
                write(f"file-{index}", str(index))(path)
            bench.store.note_usage(NAMESPACE, f"extract-{index}", Usage(1, 1))
            parent = f"layer-{index}"
            bench.commit(parent, f"extract-{index}")
        mounts = bench.prepare("active", parent)
        assert sum(map(len, mounts[0].options)) > os.sysconf("SC_PAGE_SIZE")
        with bench.mounted(mounts) as path:
            assert len(list(path.iterdir())) == 30
            write("written", "1")(path)
            (path / "file-0").unlink()
        with bench.mounted(bench.mounts("active")) as path:
            assert len(list(path.iterdir())) == 30


def test_go_finds_layers_by_a_short_common_parent(tmp_path: Path) -> None:
    """Go clients change into the common parent of all lower directories: what is left of each must be short."""
    with Bench(tmp_path, Overlayfs) as bench:
        bench.layer("one", "")
        bench.layer("two", "one")
        (mount,) = bench.prepare("active", "two")
        lower = next(option for option in mount.options if option.startswith("lowerdir=")).partition("=")[2]
        home = bench.snapshotter.home(1)
        assert home is not None
        assert [os.path.relpath(layer, home.parent) for layer in lower.split(":")] == ["2/fs", "1/fs"]


def test_removal_does_not_wait_for_mounts(tmp_path: Path) -> None:
    """What somebody still has mounted is removed all the same; in there, files may vanish, as with containerd."""
    with Bench(tmp_path, lambda root: Overlayfs(root, options=options_here(root))) as bench:
        bench.layer("base", "", write("below", "1"))
        with bench.mounted(bench.prepare("active", "base")):
            bench.remove("active")
            bench.remove("base")
            bench.cleanup()
            assert bench.names() == []
            assert list(bench.snapshotter.numbers()) == []


def test_the_upper_directory_is_shown_where_that_is_wanted(tmp_path: Path) -> None:
    with Bench(tmp_path, lambda root: Overlayfs(root, show_upper=True)) as bench:
        bench.prepare("active", labels={"own": "label"})
        with bench.mounted(bench.mounts("active")) as path:
            (path / "file").write_text("x")
        labels = bench.stat("active").labels
        assert labels["own"] == "label"
        assert (Path(labels[overlayfs.UPPERDIR_LABEL]) / "file").read_text() == "x"
        assert bench.names(f'labels."{overlayfs.UPPERDIR_LABEL}"') == ["active"]
        bench.update("active", {"own": "other"})
        [row] = bench.db.all("SELECT labels FROM snapshots")
        assert row["labels"] == '{"own":"other"}'


def test_slow_chown_leaves_the_owners_to_the_client(tmp_path: Path) -> None:
    labels = {UID_MAPPING: "0:1000:65536", GID_MAPPING: "0:1000:65536"}
    with Bench(tmp_path, lambda root: Overlayfs(root, slow_chown=True)) as bench:
        [mount] = bench.prepare("active", labels=labels)
        assert not [option for option in mount.options if "map" in option]
    strict = tmp_path / "strict"
    strict.mkdir()
    with Bench(strict, Overlayfs) as bench, pytest.raises(errdefs.UnimplementedError, match="id mapping by label"):
        bench.prepare("active", labels=labels)
    assert ONLY_REMAP_IDS not in overlayfs.capabilities_here(tmp_path, slow_chown=True)


@dataclass
class Daemon:
    root: str


@dataclass
class Context:
    """As much of a plug-in's context as a snapshotter's registration reads."""

    daemon: Daemon
    config: Any = None
    exports: dict[str, str] = field(default_factory=dict)
    capabilities: list[str] = field(default_factory=list)
    platforms: list[str] = field(default_factory=list)


def test_registered_where_it_works(tmp_path: Path) -> None:
    context = Context(Daemon(os.fspath(tmp_path)), overlayfs.Config(mount_options=["metacopy=off"]))
    made = overlayfs.REGISTRATION.init(context)
    assert context.exports == {"root": os.fspath(tmp_path / "snapshots" / "overlayfs")}
    assert "rebase" in context.capabilities
    assert len(context.platforms) == 1
    snapshot = Snapshot(number=3, parents=(2, 1), kind=Kind.VIEW)
    assert made.mounts(snapshot)[0].options[1:] == ("metacopy=off", "index=off")
    assert isinstance(native.REGISTRATION.init(context), Native)


def test_skipped_where_overlayfs_cannot_stand(tmp_path: Path) -> None:
    """A daemon whose root lies on an overlay, as inside a container, has `native` only."""
    names = ("lower", "upper", "work", "root")
    for name in names:
        (tmp_path / name).mkdir()
    lower, upper, work, root = (os.fspath(tmp_path / name) for name in names)
    options = (f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}")
    mount_all([Mount(type="overlay", source="overlay", options=options)], root)
    try:
        context = Context(Daemon(root), overlayfs.Config())
        with pytest.raises(SkipPlugin, match="cannot use overlayfs on"):
            overlayfs.REGISTRATION.init(context)
        assert isinstance(native.REGISTRATION.init(context), Native)
        with Bench(Path(root), Native) as bench:
            seen = bench.layer("one", "", all_kinds)
            with bench.mounted(bench.prepare("child", "one")) as path:
                assert describe(path) == seen
    finally:
        unmount_all(root, detach=True)


def _prepare_many(bench: Bench, count: int) -> None:
    for index in range(count):
        bench.prepare(f"k{index}", "base")
