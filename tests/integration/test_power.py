"""Loss of power: what `make power` plays at every place, here at some. See `tools/power`."""

from pathlib import Path

import pytest

from tools.images import Image
from tools.power import life as living
from tools.power import matrix
from tools.power.matrix import Outcome
from tools.power.parts import parts

pytestmark = [pytest.mark.root, pytest.mark.interop, pytest.mark.timeout(300)]


def test_content(tmp_path: Path, short_directory: Path, busybox_image: Image) -> None:
    """Blobs and ingests, their leases and labels, each in the middle of its call."""
    del busybox_image
    directory = short_directory / "power"
    directory.mkdir()
    with parts(directory) as needed:
        life = living.record(directory, needed, living.CONTENT, size_bytes=living.SIZE_BYTES["ext4"])
        losses = matrix.play(life, matrix.chosen(life, 14), needed, directory)
    assert not (broken := [loss for loss in losses if loss.outcome is Outcome.BROKEN]), "\n".join(map(str, broken))
    assert {Outcome.UNDONE, Outcome.DONE} <= {loss.outcome for loss in losses}
