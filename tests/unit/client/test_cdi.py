"""What a vendor's file makes of a spec."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from orlop.base.errdefs import InvalidArgumentError, NotFoundError
from orlop.client.cdi import inject, is_name
from orlop.client.spec import default_spec
from orlop.oci.spec import Spec, User

FILE: dict[str, Any] = {
    "cdiVersion": "0.6.0",
    "kind": "vendor.com/net",
    "containerEdits": {"env": ["PATH=/vendor", "ONCE=1"]},
    "devices": [
        {
            "name": "nic0",
            "containerEdits": {
                "deviceNodes": [
                    {"path": "/dev/nic0", "hostPath": "/dev/null", "permissions": "rw"},
                    {"path": "/dev/nic1", "type": "c", "major": 7, "minor": 8, "uid": 9, "fileMode": 438},
                ],
                "mounts": [
                    {"hostPath": "/lib/nic", "containerPath": "/opt/nic/lib", "options": ["ro", "bind"]},
                    {"hostPath": "/etc/nic", "containerPath": "/opt", "options": ["bind"], "type": "bind"},
                ],
                "hooks": [{"hookName": "createContainer", "path": "/bin/hook", "args": ["hook", "x"], "timeout": 3}],
                "additionalGids": [0, 44],
            },
        },
        {"name": "nic9", "containerEdits": {"env": ["NINE=1"]}},
    ],
}


@pytest.fixture
def directories(tmp_path: Path) -> list[str]:
    made = [tmp_path / "etc", tmp_path / "run"]
    for one in made:
        one.mkdir()
    (made[0] / "vendor.json").write_text(json.dumps(FILE))
    (made[0] / "broken.json").write_text("{")
    return [str(one) for one in made] + [str(tmp_path / "not-there")]


def made(directories: list[str], *names: str) -> Spec:
    spec = default_spec("ns", "c")
    assert spec.process is not None
    spec.process.env = ["PATH=/bin", "OTHER=2"]
    spec.process.user = User(uid=1000)
    inject(spec, names, directories)
    return spec


def test_names_and_paths_are_told_apart() -> None:
    names = ("vendor.com/net=nic0", "a/b=c", "/dev/a=b", "./a/b=c", "a=b", "a/b", "a/b=", "/b=c", "a/b/c=d")
    assert [is_name(name) for name in names] == [True, True] + 7 * [False]


def test_a_device_changes_the_spec(directories: list[str]) -> None:
    spec = made(directories, "vendor.com/net=nic0", "vendor.com/net=nic9")
    assert spec.process is not None
    assert spec.linux is not None
    assert spec.linux.resources is not None
    assert spec.process.env == ["OTHER=2", "PATH=/vendor", "ONCE=1", "NINE=1"]
    first, second = spec.linux.devices[-2:]
    assert (first.path, first.type, first.major, first.minor, first.uid) == ("/dev/nic0", "c", 1, 3, 1000)
    assert (second.path, second.major, second.minor, second.uid, second.file_mode) == ("/dev/nic1", 7, 8, 9, 0o666)
    rules = spec.linux.resources.devices[-2:]
    assert [(rule.allow, rule.type, rule.major, rule.minor, rule.access) for rule in rules] == [
        (True, "c", 1, 3, "rw"),
        (True, "c", 7, 8, "rwm"),
    ]
    destinations = [mount.destination for mount in spec.mounts]
    assert destinations.index("/opt") < destinations.index("/opt/nic/lib")
    assert spec.hooks is not None
    assert [(hook.path, hook.args, hook.timeout) for hook in spec.hooks.create_container] == [
        ("/bin/hook", ["hook", "x"], 3)
    ]
    assert spec.process.user is not None
    assert spec.process.user.additional_gids == [44]


def test_the_later_directory_counts(directories: list[str]) -> None:
    other = FILE | {"devices": [{"name": "nic9", "containerEdits": {"env": ["NINE=2"]}}], "containerEdits": {}}
    (Path(directories[1]) / "vendor.json").write_text(json.dumps(other))
    spec = made(directories, "vendor.com/net=nic9")
    assert spec.process is not None
    assert spec.process.env == ["PATH=/bin", "OTHER=2", "NINE=2"]


def test_what_is_not_there_or_there_twice_is_named(directories: list[str]) -> None:
    (Path(directories[0]) / "again.json").write_text(json.dumps(FILE | {"devices": FILE["devices"][1:]}))
    (Path(directories[0]) / "gpu.yaml").write_text("kind: gpu")
    (Path(directories[0]) / "tabs.yaml").write_text("kind:\n\t- gpu")
    (Path(directories[0]) / "other.yml").write_text("cdiVersion: 0.6.0\nkind: other.com/x\ndevices: [{name: y}]\n")
    # What lies in the latter directory does not help a device that is there twice before.
    (Path(directories[1]) / "late.json").write_text(json.dumps(FILE | {"devices": FILE["devices"][1:]}))
    with pytest.raises(
        NotFoundError, match=r"unresolvable CDI devices vendor[.]com/net=nic9, other[.]com/x=y"
    ) as caught:
        made(directories, "vendor.com/net=nic0", "vendor.com/net=nic9", "other.com/x=y")
    hint = caught.value.hint or ""
    assert "gpu.yaml: object missing required field `cdiVersion`" in hint.lower() or "gpu.yaml" in hint
    assert "tabs.yaml: while scanning" in hint
    assert "other.yml" not in hint


YAML = """\
---
cdiVersion: 0.6   # as generators without quotes write it
kind: vendor.com/gpu
containerEdits:
  env: [VISIBLE=void, 7]
devices:
- name: 0
  containerEdits:
    deviceNodes:
    - {path: /dev/gpu0, hostPath: /dev/null, fileMode: 0660, major: 0x1, minor: 3, type: c}
    mounts:
    - hostPath: /usr/lib/libgpu.so
      containerPath: /usr/lib/libgpu.so
      options: [ro, nosuid, nodev, bind]
    hooks:
    - {hookName: createContainer, path: /usr/bin/hook, args: [hook, update, "1", 2], timeout: 5}
- name: all
  containerEdits: {additionalGids: [44]}
"""


def test_yaml_says_what_json_says(directories: list[str]) -> None:
    (Path(directories[1]) / "gpu.yaml").write_text(YAML)
    spec = made(directories, "vendor.com/gpu=0", "vendor.com/gpu=all", "vendor.com/net=nic9")
    assert spec.process is not None
    assert spec.linux is not None
    assert spec.hooks is not None
    assert spec.process.env == ["OTHER=2", "VISIBLE=void", "7", "PATH=/vendor", "ONCE=1", "NINE=1"]
    device = spec.linux.devices[-1]
    assert (device.path, device.major, device.minor, device.file_mode) == ("/dev/gpu0", 1, 3, 0o660)
    assert spec.mounts[-1].options == ["ro", "nosuid", "nodev", "bind"]
    assert spec.hooks.create_container[0].args == ["hook", "update", "1", "2"]
    assert spec.process.user is not None
    assert spec.process.user.additional_gids == [44]


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system [true]", "[" * 3000, "&a [*a]", "- 1", "\x00"])
def test_what_is_no_file_of_devices_is_passed_over(directories: list[str], text: str) -> None:
    (Path(directories[0]) / "odd.yaml").write_text(text)
    assert made(directories, "vendor.com/net=nic9").linux is not None


@pytest.mark.parametrize(
    "edits",
    [
        {"hooks": [{"hookName": "whenever", "path": "/bin/true"}]},
        {"deviceNodes": [{"path": "/dev/there-is-none"}]},
        {"deviceNodes": [{"path": "/dev/null", "type": "b"}]},
        {"deviceNodes": [{"path": "/etc/passwd"}]},
    ],
    ids=["hook", "no device", "type", "no node"],
)
def test_what_cannot_be_is_refused(directories: list[str], edits: dict[str, Any]) -> None:
    bad = FILE | {"kind": "bad.com/x", "devices": [{"name": "a", "containerEdits": edits}]}
    path = Path(directories[0]) / "bad.json"
    path.write_text(json.dumps(bad))
    with pytest.raises(InvalidArgumentError, match=re.escape(str(path))):
        made(directories, "bad.com/x=a")
