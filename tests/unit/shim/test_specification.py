"""What the supervisor reads in a spec, and what it does with what is none."""

import json
from pathlib import Path
from typing import Any

import pytest

from orlop.base.errdefs import InvalidArgumentError
from orlop.shim import specification


def bundle(directory: Path, spec: object) -> str:
    (directory / "config.json").write_text(json.dumps(spec))
    return str(directory)


@pytest.mark.parametrize(
    "spec",
    [
        *([1], "x", 1, None),
        *({"linux": [1]}, {"linux": {"namespaces": {"a": 1}}}, {"linux": {"namespaces": [1]}}, {"process": 3}),
        *({"mounts": {"a": 1}}, {"mounts": [[]]}, {"mounts": [{"options": "ro"}]}, {"mounts": [{"options": [1]}]}),
    ],
    ids=json.dumps,
)
def test_what_is_no_spec_is_refused(tmp_path: Path, spec: object) -> None:
    with pytest.raises(InvalidArgumentError, match=r"spec .*config\.json: "):
        specification.read(bundle(tmp_path, spec))


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"config\.json"):
        specification.read(str(tmp_path))
    (tmp_path / "config.json").write_bytes(b"{\xff")
    with pytest.raises(InvalidArgumentError, match=r"config\.json"):
        specification.read(str(tmp_path))


@pytest.mark.parametrize(
    ("namespaces", "shared"),
    [
        (None, True),
        ([], True),
        ([{"type": "mount"}], True),
        ([{"type": "pid"}], False),
        ([{"type": "pid", "path": ""}], False),
        ([{"type": "pid", "path": "/proc/1/ns/pid"}], True),
    ],
)
def test_shared_pid_namespaces(tmp_path: Path, namespaces: object, shared: bool) -> None:
    assert (
        specification.shares_pids(specification.read(bundle(tmp_path, {"linux": {"namespaces": namespaces}}))) is shared
    )


@pytest.mark.parametrize(
    ("mount", "mapped"),
    [
        ({}, False),
        ({"options": ["rbind", "ro"]}, False),
        ({"options": ["rbind", "idmap"]}, True),
        ({"options": ["ridmap"]}, True),
        ({"uidMappings": [{}]}, True),
        ({"gidMappings": [{}]}, True),
    ],
)
def test_mounts_with_mapped_ids(tmp_path: Path, mount: dict[str, Any], mapped: bool) -> None:
    assert specification.maps_mounts(specification.read(bundle(tmp_path, {"mounts": [{}, mount]}))) is mapped
