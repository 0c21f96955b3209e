"""Our `ctr` moves images by the transfer service, and does the same by itself with `--local`."""

import json
import tarfile

import pytest

from orlop.base import platforms
from tools import daemons

pytestmark = pytest.mark.root


@pytest.fixture
def ctr(our_ctr, orlopd, namespace):
    bound = our_ctr(orlopd, namespace)
    yield bound
    for image in bound("images", "ls", "-q").split():
        bound("images", "rm", "--sync", image)
    assert bound("content", "ls", "-q").split() == []
    assert bound("leases", "ls", "-q").split() == []


@pytest.mark.parametrize("local", [(), ("--local",)], ids=["transfer", "local"])
def test_round_trip(ctr, registry, busybox_multi_image, tmp_path, local):
    reference = registry.push(busybox_multi_image, "round")
    shown = ctr("images", "pull", "--progress", "json", "--label", "a=b", *local, reference)
    steps = [json.loads(line) for line in shown.splitlines()]
    assert steps[0] == {"ref": reference, "status": "resolving", "offset": 0, "total": 0}
    assert any(step.get("status") == "unpacked" for step in steps)
    assert "a=b" in ctr("images", "ls")
    assert reference in ctr("images", "check", "-q").split()
    # The other platform's manifest is here and its layer is not, so that only a part of it can be pushed.
    pushed = f"{registry.host}/round-pushed{len(local)}:1"
    refused = ctr.run("images", "push", *local, pushed, reference)
    assert refused.returncode == 1
    assert "its content is not here" in refused.stderr
    ctr("images", "push", "--platform", platforms.default_string(), pushed, reference)
    ctr("images", "pull", "--no-unpack", *local, pushed)
    ctr("images", "push", *local, pushed)
    ctr("images", "rm", pushed)
    archive = tmp_path / "out.tar"
    ctr("images", "export", *local, archive, reference)
    with tarfile.open(archive) as file:
        assert {"oci-layout", "index.json", "manifest.json"} <= set(file.getnames())
    ctr("images", "rm", "--sync", reference)
    assert ctr("images", "import", *local, archive).startswith(f"unpacking {reference} (sha256:")
    assert reference in ctr("images", "check", "-q").split()
    assert ctr("images", "tag", *local, reference, "example.org/a:1", "example.org/b:1").split() == [
        "example.org/a:1",
        "example.org/b:1",
    ]
    refused = ctr.run("images", "tag", *local, reference, "Not A Name")
    assert refused.returncode == 1
    assert "is not a valid repository/tag" in refused.stderr


def test_credentials_and_traffic(ctr, secure_registry, busybox_image):
    reference = secure_registry.push(busybox_image, "shown")
    assert ctr.run("images", "pull", reference).returncode == 1
    done = ctr.run("images", "pull", "--http-dump", "--user", f"{daemons.USER}:{daemons.PASSWORD}", reference)
    assert done.returncode == 0
    assert f"> HEAD http://{secure_registry.host}/v2/shown/manifests/latest" in done.stderr
    assert daemons.PASSWORD not in done.stderr


def test_layers_are_let_go_of_when_unpacked(ctr, busybox_image):
    ctr("images", "import", "--discard-unpacked-layers", busybox_image.archive)
    ctr("leases", "create", "--id", "sweep")
    ctr("leases", "delete", "--sync", "sweep")
    assert "layer" not in ctr("content", "ls")
    assert "incomplete (1/4)" in ctr("images", "check")
    assert "true" in ctr("images", "check")
