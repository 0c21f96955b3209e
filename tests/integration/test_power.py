"""Loss of power: what `make power` plays at every place, here at some. See `tools/power`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.images import Image
from tools.power import life as living
from tools.power import matrix
from tools.power.life import Life, Moment, Parts, Step
from tools.power.matrix import Loss, Outcome
from tools.power.parts import parts
from tools.recording_disk import Cut, Kept

pytestmark = [pytest.mark.root, pytest.mark.interop, pytest.mark.timeout(300)]


@pytest.fixture
def directory(short_directory: Path, busybox_image: Image, request: pytest.FixtureRequest) -> Path:
    del busybox_image
    path = short_directory / f"power-{request.node.name[-8:]}"
    path.mkdir()
    return path


@pytest.fixture
def needed(directory: Path) -> Iterator[Parts]:
    with parts(directory) as found:
        yield found


def record(directory: Path, needed: Parts, *steps: Step) -> Life:
    return living.record(directory, needed, steps, size_bytes=living.SIZE_BYTES["ext4"])


def broken(losses: list[Loss]) -> str:
    return "\n".join(str(loss) for loss in losses if loss.outcome is Outcome.BROKEN)


def test_calls_of_every_store(directory: Path, needed: Parts) -> None:
    """Blobs, ingests, leases, containers, namespaces, images: the power goes in the middle of a call of each kind."""
    life = record(
        directory, needed, *living.CONTENT[:5], *living.IMAGES[:1], *living.NAMESPACES[:1], *living.DELETIONS[-1:]
    )
    losses = matrix.play(life, matrix.chosen(life, 10), needed, directory)
    assert not broken(losses), broken(losses)
    assert {loss.outcome for loss in losses} <= {Outcome.UNDONE, Outcome.DONE, Outcome.PARTLY}


def test_layers_that_were_not_synced(directory: Path, needed: Parts) -> None:
    """The power goes right after an image was unpacked, and after a copy of its files was made."""
    life = record(
        directory, needed, *living.CONTENT[:1], *living.IMAGES[:2], *living.SNAPSHOTS[:1], *living.SNAPSHOTS[5:7]
    )
    unpacked = [moment.answered for moment in life.moments if moment.step.area in {"images", "snapshots"}]
    losses = matrix.play(life, [Cut(at, Kept.NOTHING) for at in unpacked[1:]], needed, directory)
    assert not broken(losses), broken(losses)


def test_a_promise_that_is_broken_is_seen(directory: Path, needed: Parts) -> None:
    """A blob was answered for, and the power went before: as if it had been answered too soon."""
    life = record(directory, needed, *living.CONTENT[:2])
    lease, blob = life.moments[1:3]
    early = Moment(step=blob.step, begun=lease.answered, answered=lease.answered, state=blob.state)
    told = Life(history=life.history, moments=(*life.moments[:2], early), trees={}, kind=life.kind)
    (loss,) = matrix.play(told, [Cut(lease.answered, Kept.NOTHING)], needed, directory)
    assert loss.outcome is Outcome.BROKEN
    assert "blob" in loss.why
