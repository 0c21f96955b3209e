"""Every example in docs/client.md runs, in order, against orlopd."""

import re
from pathlib import Path

import pytest

from tools.daemons import Orlopd
from tools.images import Image

pytestmark = pytest.mark.root
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "client.md"


def test_examples(orlopd: Orlopd, namespace: str, busybox_image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINERD_ADDRESS", str(orlopd.address))
    monkeypatch.setenv("CONTAINERD_NAMESPACE", namespace)
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(examples) >= 6
    try:
        for number, example in enumerate(examples):
            exec(compile(example, f"{DOCUMENT.name}:{number}", "exec"), {"archive": str(busybox_image.archive)})
    finally:
        orlopd.forget_cgroup(namespace)
