"""The runtime-spec's config: nothing is lost by editing, what the schema requires is written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.base.errdefs import InvalidArgumentError
from orlop.oci.spec import (
    Linux,
    LinuxNamespace,
    Mount,
    Process,
    Resources,
    Root,
    Spec,
    SpecDocument,
    decode,
    decode_part,
    encode,
)


def test_what_the_schema_requires_is_written_though_it_is_zero():
    spec = Spec(process=Process(args=["sh"]), root=Root(), linux=Linux(namespaces=[LinuxNamespace(type="pid")]))
    assert json.loads(encode(spec)) == {
        "ociVersion": "1.1.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "linux": {"namespaces": [{"type": "pid"}]},
    }


FULL = {
    "ociVersion": "1.2.0",
    "process": {
        "terminal": True,
        "consoleSize": {"height": 1, "width": 2},
        "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3]},
        "args": ["a"],
        "env": ["A=b"],
        "cwd": "/w",
        "capabilities": {"bounding": ["CAP_KILL"]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 2, "soft": 1}],
        "noNewPrivileges": True,
        "apparmorProfile": "p",
        "oomScoreAdj": 0,
        "selinuxLabel": "l",
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
        "execCPUAffinity": {"initial": "0"},
    },
    "root": {"path": "/r", "readonly": True},
    "hostname": "h",
    "mounts": [
        {"destination": "/m", "type": "bind", "source": "/s", "options": ["ro"],
         "uidMappings": [{"containerID": 0, "hostID": 5, "size": 1}]}
    ],
    "hooks": {"createRuntime": [{"path": "/h", "timeout": 3}]},
    "annotations": {"k": "v"},
    "linux": {
        "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
        "sysctl": {"net.ipv4.ip_forward": "1"},
        "cgroupsPath": "/c",
        "namespaces": [{"type": "network", "path": "/proc/1/ns/net"}],
        "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438}],
        "resources": {
            "devices": [{"allow": False, "access": "rwm"}],
            "memory": {"limit": -1, "kernelTCP": 1, "disableOOMKiller": True},
            "cpu": {"quota": -1, "realtimePeriod": 1},
            "pids": {"limit": 0},
            "blockIO": {"throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 1}]},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "network": {"classID": 1},
            "rdma": {"mlx": {"hcaHandles": 1}},
            "unified": {"memory.high": "max"},
        },
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": ["x"], "action": "SCMP_ACT_ALLOW",
                          "args": [{"index": 0, "value": 18446744073709551615, "op": "SCMP_CMP_EQ"}]}],
        },
        "intelRdt": {"closID": "c", "l3CacheSchema": "s"},
        "timeOffsets": {"monotonic": {"secs": 1}},
        "maskedPaths": ["/proc/kcore"],
    },
}  # fmt: skip


def test_all_that_is_typed_is_read_and_written():
    assert json.loads(encode(decode(json.dumps(FULL).encode()))) == FULL


def test_editing_keeps_what_is_not_typed():
    given_ = json.dumps(
        {
            "ociVersion": "9",
            "zos": {"a": 1},
            "mounts": [
                {"destination": "/a", "new": 1},
                {"destination": "/b", "new": 2},
                {"destination": "/c", "new": 3},
            ],
            "process": {"user": {"uid": 3, "new": True}, "args": None, "cwd": "/", "new": [1]},
            "linux": {"newResource": {}, "resources": {"unified": {"a": "b"}, "new": 1}},
        }
    )
    document = SpecDocument.load(given_.encode())
    spec = document.spec
    assert spec.process is not None
    assert spec.process.args == []
    spec.process.user.uid = 9
    spec.process.args.append("sh")
    del spec.mounts[1]
    spec.mounts.insert(0, Mount(destination="/d"))
    spec.mounts.reverse()
    assert json.loads(document.dump()) == {
        "ociVersion": "9",
        "zos": {"a": 1},
        "mounts": [{"destination": "/c", "new": 3}, {"destination": "/a", "new": 1}, {"destination": "/d"}],
        "process": {"user": {"uid": 9, "gid": 0, "new": True}, "args": ["sh"], "cwd": "/", "new": [1]},
        "linux": {"newResource": {}, "resources": {"unified": {"a": "b"}, "new": 1}},
    }


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"process":1}', b'{"mounts":[{}]}', b'{"a":' * 50_000, b" " * (17 << 20)]
)
def test_no_spec(data):
    with pytest.raises(InvalidArgumentError, match=r"^spec: "):
        decode(data)


def test_parts_travel_alone():
    assert decode_part(b'{"memory":{"limit":1}}', Resources, what="resources").memory is not None
    with pytest.raises(InvalidArgumentError, match=r"^resources: "):
        decode_part(b'{"memory":{"limit":"1"}}', Resources, what="resources")


EXTRA = st.dictionaries(
    st.sampled_from(["x", "y", "zos"]), st.integers() | st.none() | st.lists(st.integers()), max_size=2
)


@given(EXTRA, EXTRA, st.lists(EXTRA, max_size=3))
def test_reading_and_writing_changes_nothing(top, process, mounts):
    given_ = {"ociVersion": "1.0.2", "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/"} | process} | top
    if mounts:
        given_["mounts"] = [{"destination": f"/{number % 2}"} | extra for number, extra in enumerate(mounts)]
    assert json.loads(SpecDocument.load(json.dumps(given_).encode()).dump()) == given_


def test_what_is_not_utf8_is_refused_as_such():
    with pytest.raises(InvalidArgumentError, match="utf-8"):
        decode(b'{"hostname": "\xff"}')
