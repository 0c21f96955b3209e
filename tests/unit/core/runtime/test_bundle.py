"""Bundles on disk and what shims print."""

import json
import os
import stat
from pathlib import Path

import pytest

from orlop.base import failpoints
from orlop.base.errdefs import InternalError, InvalidArgumentError
from orlop.core.runtime.bundle import Bootstrap, Bundles, remove_hidden

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"


@pytest.fixture
def bundles(tmp_path):
    return Bundles(state=tmp_path / "state", root=tmp_path / "root")


def test_a_bundle_has_the_files_that_shims_expect(bundles):
    spec = b'{"ociVersion": "1.0.2"}'
    bundle = bundles.create("ns", "web", SPEC_TYPE, spec)
    assert bundle.path == bundles.state / "ns" / "web"
    assert stat.S_IMODE(bundle.path.stat().st_mode) == 0o700
    assert (bundle.path / "config.json").read_bytes() == spec
    assert bundle.rootfs.is_dir()
    assert os.readlink(bundle.path / "work") == str(bundles.root / "ns" / "web")
    bundle.delete()
    assert list((bundles.state / "ns").iterdir()) == list((bundles.root / "ns").iterdir()) == []
    bundle.delete()


def test_the_group_of_a_remapped_root_may_enter(bundles):
    spec = {"linux": {"gidMappings": [{"containerID": 0, "hostID": 4321, "size": 10}]}}
    bundle = bundles.create("ns", "web", SPEC_TYPE, json.dumps(spec).encode())
    found = bundle.path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o710, 4321)


def test_a_stale_bundle_of_the_same_name_is_replaced(bundles):
    bundles.create("ns", "web", SPEC_TYPE, b"{}").write("stale", b"x")
    assert not (bundles.create("ns", "web", SPEC_TYPE, b"{}").path / "stale").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "", "x" * 100, ".", "-x"])
def test_ids_that_are_no_identifiers_make_nothing(bundles, name):
    with pytest.raises(InvalidArgumentError):
        bundles.create("ns", name, SPEC_TYPE, b"{}")
    assert not bundles.state.exists()


def test_a_spec_that_is_no_json_leaves_nothing(bundles):
    with pytest.raises(InvalidArgumentError, match="runtime spec cannot be read"):
        bundles.create("ns", "web", SPEC_TYPE, b"{")
    assert bundles.found() == []
    assert not (bundles.state / "ns" / "web").exists()


def test_a_failure_in_the_middle_is_undone(bundles):
    (bundles.root / "ns").parent.mkdir(parents=True)
    (bundles.root / "ns").write_text("in the way")
    with pytest.raises(InternalError, match=r'task "web": create bundle .*/ns/web'):
        bundles.create("ns", "web", SPEC_TYPE, b"{}")
    assert not (bundles.state / "ns" / "web").exists()


def test_what_was_hidden_is_told_though_the_rest_could_not_be(bundles, monkeypatch):
    """A work directory stayed, hidden, until the next start, when its bundle could not be renamed."""
    bundle = bundles.create("ns", "web", SPEC_TYPE, b"{}")
    real = type(bundle.path).rename

    def rename(path, target):
        if path == bundle.path:
            raise OSError(5, "Input/output error")
        return real(path, target)

    monkeypatch.setattr(type(bundle.path), "rename", rename)
    hidden: list[Path] = []
    with pytest.raises(InternalError, match=r'task "web": delete bundle .*/ns/web: .*Input/output error'):
        bundle.hide(hidden)
    assert hidden == list((bundles.root / "ns").iterdir())
    remove_hidden(hidden)
    assert list((bundles.root / "ns").iterdir()) == []


def test_a_work_directory_goes_though_its_bundle_could_not(bundles, monkeypatch):
    """Nobody could tell any more whose it was, once the bundle that names it was out of sight."""
    bundle = bundles.create("ns", "web", SPEC_TYPE, b"{}")

    def reach(point):
        if point == "task.bundle.hidden":
            monkeypatch.undo()
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(failpoints, "reach", reach)
    with pytest.raises(InternalError, match=r'task "web": delete bundle .*/ns/web: .*Input/output error'):
        bundle.delete()
    assert list((bundles.root / "ns").iterdir()) == list((bundles.state / "ns").iterdir()) == []


def test_listing_finds_bundles_and_finishes_deletions(bundles):
    for name in ("b", "a"):
        bundles.create("ns", name, SPEC_TYPE, b"{}")
    (bundles.state / "ns" / "a").rename(bundles.state / "ns" / ".a")
    (bundles.root / "ns" / "of-a-boot-before").mkdir()
    assert [bundle.id for bundle in bundles.swept()] == ["b"]
    assert not (bundles.state / "ns" / ".a").exists()


def test_bootstraps_are_read_as_old_and_new_shims_print_them():
    assert Bootstrap.parse(b"unix:///run/s/x\n") == Bootstrap(address="unix:///run/s/x", version=2)
    new = Bootstrap(address="unix:///run/s/x", version=3)
    assert Bootstrap.parse(new.encode()) == new
    for garbage in (b"", b"panic: no", b'{"version": 3}', b"{"):
        with pytest.raises(InvalidArgumentError):
            Bootstrap.parse(garbage)


def test_how_to_reach_a_shim_is_remembered_in_both_forms(bundles, tmp_path):
    bundle = bundles.create("ns", "web", SPEC_TYPE, b"{}")
    assert bundle.bootstrap() is None
    bundle.save(Bootstrap(address="unix:///x", version=3), tmp_path / "shim")
    assert bundle.bootstrap() == Bootstrap(address="unix:///x", version=3)
    assert bundle.binary() == tmp_path / "shim"
    (bundle.path / "bootstrap.json").unlink()
    assert bundle.bootstrap() == Bootstrap(address="unix:///x", version=2)
