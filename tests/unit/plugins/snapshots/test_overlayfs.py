"""The shapes of overlayfs's mounts and directories, without mounting."""

import os
import stat
from pathlib import Path

import pytest

from orlop.base import errdefs
from orlop.core.snapshots import GID_MAPPING, UID_MAPPING, Kind, Snapshot
from orlop.plugins.snapshots.mapping import REMAP_IDS
from orlop.plugins.snapshots.overlayfs import Overlayfs

MAPPED = {UID_MAPPING: "0:1000:65536", GID_MAPPING: "0:2000:65536"}


@pytest.fixture
def overlay(tmp_path: Path) -> Overlayfs:
    return Overlayfs(tmp_path / "o", options=("volatile", "index=off"), capabilities=(REMAP_IDS,))


def _options(overlay: Overlayfs, **snapshot: object) -> tuple[str, str, tuple[str, ...]]:
    (mount,) = overlay.mounts(Snapshot(number=9, **snapshot))  # type: ignore[arg-type]
    root = overlay.exports["root"]
    options = tuple(option.replace(root, "R") for option in mount.options)
    return mount.type, mount.source.replace(root, "R"), options


def test_shapes_of_mounts(overlay: Overlayfs) -> None:
    active, view = Kind.ACTIVE, Kind.VIEW
    assert _options(overlay, kind=active) == ("bind", "R/9/fs", ("rw", "rbind"))
    assert _options(overlay, kind=view) == ("bind", "R/9/fs", ("ro", "rbind"))
    assert _options(overlay, kind=view, parents=(4,)) == ("bind", "R/4/fs", ("ro", "rbind"))
    extra = ("volatile", "index=off")
    layers = ("workdir=R/9/work", "upperdir=R/9/fs", "lowerdir=R/4/fs")
    assert _options(overlay, kind=active, parents=(4,)) == ("overlay", "overlay", (*layers, *extra))
    lower = "lowerdir=R/5/fs:R/4/fs:R/1/fs"
    assert _options(overlay, kind=view, parents=(5, 4, 1)) == ("overlay", "overlay", (lower, *extra))


def test_id_mappings_come_first(overlay: Overlayfs) -> None:
    maps = ("uidmap=0:1000:65536", "gidmap=0:2000:65536")
    for parents in ((), (4,), (5, 4)):
        for kind in (Kind.ACTIVE, Kind.VIEW):
            assert _options(overlay, kind=kind, parents=parents, labels=MAPPED)[2][:2] == maps


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")
def test_upper_directory_belongs_to_the_mapped_root(overlay: Overlayfs) -> None:
    overlay.prepare(Snapshot(number=9, kind=Kind.ACTIVE, labels=MAPPED))
    home = overlay.home(9)
    status = os.stat(home / "fs")
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1000, 2000, 0o755)


@pytest.mark.parametrize("value", ["", "0:1000", "0:1000:x", "1:1000:10", "0:4294967295:10"])
def test_bad_id_mappings(overlay: Overlayfs, value: str) -> None:
    labels = {UID_MAPPING: value, GID_MAPPING: "0:2000:65536"}
    with pytest.raises(errdefs.InvalidArgumentError):
        overlay.prepare(Snapshot(number=9, kind=Kind.ACTIVE, labels=labels))
    assert overlay.numbers() == []


def test_id_mappings_are_refused_where_the_host_cannot(tmp_path: Path) -> None:
    with pytest.raises(errdefs.UnimplementedError, match="id mapping"):
        Overlayfs(tmp_path / "o").prepare(Snapshot(number=9, kind=Kind.ACTIVE, labels=MAPPED))


def test_directories_and_modes(overlay: Overlayfs, tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        overlay.prepare(Snapshot(number=9, kind=Kind.ACTIVE))
        overlay.prepare(Snapshot(number=10, kind=Kind.VIEW))
    finally:
        os.umask(mask)
    modes = {
        path.relative_to(tmp_path).as_posix(): f"{stat.S_IMODE(path.stat().st_mode):o}" for path in tmp_path.rglob("*")
    }
    assert modes == {"o": "700", "o/9": "700", "o/9/fs": "755", "o/9/work": "700", "o/10": "700", "o/10/fs": "755"}


def test_paths_are_located(overlay: Overlayfs) -> None:
    root = overlay.exports["root"]
    assert overlay.locate(f"{root}/12/fs") == 12
    for path in (f"{root}/12/work", f"{root}/12", f"{root}/x/fs", f"{root}/12/fs/etc", "/12/fs", f"{root}/../12/fs"):
        assert overlay.locate(path) is None
