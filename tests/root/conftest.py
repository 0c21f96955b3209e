"""Root tests: skipped with the host's reason where it forbids mounts, and checked for what they leave behind."""

import os
from pathlib import Path

import pytest

from orlop.linux import namespaces, probe
from orlop.linux.mount import mountinfo


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    verdict = probe.mount_allowed() and probe.unshare_allowed(namespaces.CLONE_NEWNS | namespaces.CLONE_NEWNET)
    if verdict:
        return
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=verdict.reason))


@pytest.fixture(autouse=True)
def leaves_nothing():
    """Mounts and file descriptors after a test are those from before it."""
    mounts, descriptors = _mounts(), len(os.listdir("/proc/self/fd"))
    yield
    assert _mounts() - mounts == set()
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def _mounts() -> set[str]:
    return {entry.mount_point for entry in mountinfo()}
