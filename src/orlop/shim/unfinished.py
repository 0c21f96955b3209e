"""What supervisors leave that were killed holding no task any more: tombstones, and sockets without a listener."""

import contextlib
import os
from collections.abc import Iterator

from orlop.linux.unix_sockets import alone, refuses
from orlop.shim import records
from orlop.shim.paths import Place

_NAME_LENGTH = 32


def places(state: str, address: str, namespace: str) -> Iterator[Place]:
    """Those of a namespace's supervisors that have containers to remove."""
    cgroups = {""}
    for directory in _entries(f"{state}/s"):
        if directory.endswith(".gone"):
            for tombstone in _entries(directory):
                record = records.read(tombstone)
                if record is not None:
                    cgroups.add(record.shim_cgroup)
    for cgroup in sorted(cgroups):
        place = Place(state, address, namespace, cgroup)
        if any(True for _ in tombstones(place.gone)):
            yield place


def tombstones(gone: str) -> Iterator[str]:
    """Names of the containers in a directory of tombstones."""
    return (name for name in map(os.path.basename, _entries(gone)) if not name.startswith("."))


def forget_sockets(directory: str) -> None:
    """Remove sockets whose supervisor was killed: nobody listens, and nobody is starting another one there."""
    for path in _entries(directory):
        if len(os.path.basename(path)) != _NAME_LENGTH:
            continue
        with alone(path) as ours:
            if ours and refuses(path):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)


def _entries(directory: str) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            yield f"{directory}/{name}"
