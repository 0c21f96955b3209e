"""Specs: what options make of the default one. The comparison with containerd's own is in tests/integration."""

import pytest

from orlop.base.errdefs import InvalidArgumentError, NotFoundError
from orlop.client.devices import host_devices
from orlop.client.spec import SpecOptions, capability, make_spec, parse_id_map, parse_mount, replace_env
from orlop.client.users import UserFiles
from orlop.oci.image import ContainerConfig, Image
from orlop.oci.spec import Spec

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001::/home/alice:/bin/sh\nbad line\n"
GROUP = b"root:x:0:\nalice:x:1001:\nextra:x:2000:bob,alice\nwheel:x:10:root,alice\n"
USERS = UserFiles(PASSWD, GROUP)
IMAGE = Image(
    architecture="amd64",
    os="linux",
    config=ContainerConfig(env=("PATH=/bin", "A=image"), entrypoint=("/entry",), cmd=("arg",), working_dir="/work"),
)


def made(image: Image | None = IMAGE, users: UserFiles | None = USERS, **options: object) -> Spec:
    return make_spec(
        namespace="ns",
        container_id="c1",
        options=SpecOptions(**options),  # type: ignore[arg-type]  # each test gives what it is about
        image=image,
        users=users,
    )


def test_the_image_gives_the_defaults() -> None:
    spec = made()
    assert spec.process is not None
    assert spec.process.args == ["/entry", "arg"]
    assert spec.process.env == ["PATH=/bin", "A=image"]
    assert spec.process.cwd == "/work"
    assert spec.process.user.additional_gids == [0, 10]
    assert spec.linux is not None
    assert spec.linux.cgroups_path == "/ns/c1"


def test_arguments_replace_entrypoint_and_command() -> None:
    process = made(args=["/other"], env=["A=own", "B=1"], cwd="/").process
    assert process is not None
    assert (process.args, process.env, process.cwd) == (["/other"], ["PATH=/bin", "A=own", "B=1"], "/")


def test_without_a_command_nothing_can_run() -> None:
    with pytest.raises(InvalidArgumentError, match="c1: no command"):
        made(image=None, rootfs="/x")


@pytest.mark.parametrize(
    ("text", "uid", "gid", "groups"),
    [
        ("alice", 1000, 1001, [1001, 2000, 10]),
        ("1000", 1000, 1001, [1001, 2000, 10]),
        ("4242", 4242, 0, [0]),
        ("4242:7", 4242, 7, [7]),
        ("alice:extra", 1000, 2000, [2000, 10]),
        ("0", 0, 0, [0, 10]),
    ],
)
def test_users(text: str, uid: int, gid: int, groups: list[int]) -> None:
    process = made(user=text).process
    assert process is not None
    assert (process.user.uid, process.user.gid, process.user.additional_gids) == (uid, gid, groups)


def test_unknown_users_and_groups() -> None:
    with pytest.raises(NotFoundError, match="user 'nobody'"):
        made(user="nobody")
    with pytest.raises(NotFoundError, match="group 'nogroup'"):
        made(user="alice:nogroup")
    for text in (":1", "a:b:c", "a:"):
        with pytest.raises(InvalidArgumentError):
            made(user=text)


def test_environments() -> None:
    assert replace_env(["A=1", "B=2"], ["B=3", "C=4", "A"]) == ["B=3", "C=4"]


def test_mounts() -> None:
    mount = parse_mount("type=bind,src=/tmp,dst=/host,options=rbind:ro")
    assert (mount.type, mount.source, mount.destination, mount.options) == ("bind", "/tmp", "/host", ["rbind", "ro"])
    for text in ("type=bind,src=/tmp", "nonsense", "type=bind,dst=/x,colour=red"):
        with pytest.raises(InvalidArgumentError):
            parse_mount(text)


def test_id_maps() -> None:
    assert parse_id_map("0:1000:10") == (0, 1000, 10)
    for text in ("0:1", "a:b:c", "0:1:-1"):
        with pytest.raises(InvalidArgumentError):
            parse_id_map(text)


def test_capabilities() -> None:
    assert capability("net_admin") == "CAP_NET_ADMIN"
    with pytest.raises(InvalidArgumentError, match="CAP_NONSENSE"):
        made(cap_add=["CAP_NONSENSE"])


def test_devices() -> None:
    assert (host_devices("/dev/null")[0].major, host_devices("/dev/null")[0].minor) == (1, 3)
    with pytest.raises(NotFoundError, match="/dev/there-is-none"):
        host_devices("/dev/there-is-none")
    with pytest.raises(InvalidArgumentError):
        host_devices("/etc/passwd")


def test_host_network_leaves_the_namespace_out() -> None:
    linux = made(net_host=True).linux
    assert linux is not None
    assert "network" not in [one.type for one in linux.namespaces]
