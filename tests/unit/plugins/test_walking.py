"""What the differ says of the layers that it has unpacked."""

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from orlop.core.diff import Applied, LayerBlob
from orlop.core.diff.processors import StreamProcessor
from orlop.core.mount import Mount
from orlop.core.snapshots import Usage
from orlop.core.snapshots.origin import Origin
from orlop.oci.digest import Digest
from orlop.oci.media_types import OCI_LAYER
from orlop.plugins.diff import walking

SECRET = "application/secret"
MOUNTS = [Mount(type="bind", source="/tree", options=("rbind", "rw"))]


def _noted(monkeypatch: pytest.MonkeyPatch, media_type: str) -> list[tuple[Any, ...]]:
    """What is noted of a layer of this type, which unpacks to the digest of `tar`."""
    noted: list[tuple[Any, ...]] = []

    async def info(_namespace: str, _digest: str) -> None:
        """It is there."""

    async def applied(*_args: object, **_more: object) -> Applied:
        return Applied(digest=Digest.of(b"tar"), size=3, usage_bytes=4096, usage_inodes=2)

    async def not_shared(_namespace: str, _mounts: object) -> None:
        """It is no unpacker's snapshot of a snapshotter that shares."""

    nothing: Any = SimpleNamespace()
    made = walking.Walking(
        SimpleNamespace(info=info),
        SimpleNamespace(  # type: ignore[arg-type]
            shared=not_shared, image=lambda _mounts: None, note_applied=lambda *said: noted.append(said)
        ),
        nothing,
        {"decrypt": StreamProcessor(accepts=[SECRET], returns=OCI_LAYER, path="cat")},
        db=nothing,
    )
    monkeypatch.setattr(walking, "apply", applied)
    monkeypatch.setattr(made, "_within_quota", lambda _namespace: contextlib.nullcontext())
    monkeypatch.setattr(made, "_opened", lambda _namespace, _digest: contextlib.nullcontext())
    layer = LayerBlob(media_type=media_type, digest=Digest.of(b"blob"), size=4)
    asyncio.run(made.apply("default", layer, MOUNTS))
    return noted


def test_a_layer_that_was_unpacked_can_be_unpacked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    origin = Origin(media_type=OCI_LAYER, digest=Digest.of(b"blob"), size_bytes=4, diff_id=Digest.of(b"tar"))
    assert _noted(monkeypatch, OCI_LAYER) == [(MOUNTS, Usage(4096, 2), origin)]
    assert Origin.decode(origin.encode()) == origin


def test_a_layer_that_went_through_a_processor_is_synced_at_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is noted: its program, or the key that it was given, may not be there after the power came back."""
    assert _noted(monkeypatch, SECRET) == []
