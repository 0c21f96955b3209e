"""Root tests: skipped with the host's reason where it forbids mounts. `tests/conftest.py` checks what they leave."""

from pathlib import Path

import pytest

from orlop.linux import namespaces, probe


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    verdict = probe.mount_allowed() and probe.unshare_allowed(namespaces.CLONE_NEWNS | namespaces.CLONE_NEWNET)
    if verdict:
        return
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=verdict.reason))
