"""The cgroup of a runtime spec."""

import json

import pytest

from orlop.oci.cgroups_path import cgroups_path


@pytest.mark.parametrize(
    ("wanted", "path"),
    [
        ("/ns/c", "/ns/c"),
        ("//ns//c/", "/ns/c"),
        ("/ns/./c", "/ns/c"),
        ("/", ""),
        ("", ""),
        ("/ns/../c", ""),
        ("relative", ""),
        ("system.slice:orlop:c", ""),
        (7, ""),
        (None, ""),
    ],
)
def test_what_is_asked_for(wanted, path):
    assert cgroups_path(json.dumps({"linux": {"cgroupsPath": wanted}}).encode()) == path


@pytest.mark.parametrize("spec", [b"", b"{", b"[]", b"{}", b'{"linux": null}', b'{"linux": []}', b"\xff"])
def test_what_asks_for_none(spec):
    assert cgroups_path(spec) == ""
