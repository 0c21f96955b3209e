"""What the recorded calls need from outside: images, and a registry that has one of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tools import images, layout
from tools.daemons import Registry
from tools.layout import Entry, Layout, entries
from tools.power.life import Parts

_FILES: Final = 24


@contextlib.contextmanager
def parts(directory: Path) -> Iterator[Parts]:
    """For as long as the block runs; what they take lies below `directory`."""
    busybox = images.image("busybox")
    remote = images.built("tide", _tide, directory / "images")
    with Registry(directory / "registry") as registry:
        yield Parts(archive=busybox.archive, image=busybox.reference, remote=registry.push(remote))


def _tide(target: Layout) -> Mapping[str, Any]:
    """Three layers of files of many sizes, the upper ones with some of the lower ones changed."""
    layers = []
    for number in range(3):
        members = [Entry(name=f"d{number}"), Entry(name="changed", data=bytes([number]) * 5000)]
        members += [Entry(name=f"d{number}/f{at}", data=bytes([number, at]) * (at * at * 40)) for at in range(_FILES)]
        layers.append(target.layer(entries(members), ("gzip", "zstd", "none")[number]))
    return target.manifest(layers, {"Cmd": ["none"]}, layout.host_platform())
