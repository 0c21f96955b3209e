"""The programs, by service."""

from collections.abc import Sequence
from typing import Final

from tests.interop.api.programs import (
    containers,
    content,
    diff,
    events,
    filters,
    gc,
    images,
    introspection,
    leases,
    namespaces,
    sandboxes,
    sharing,
    snapshots,
    tasks,
)
from tests.interop.api.steps import Program

PROGRAMS: Final[Sequence[Program]] = [
    program
    for module in (
        containers,
        content,
        diff,
        events,
        filters,
        gc,
        images,
        introspection,
        leases,
        namespaces,
        sandboxes,
        sharing,
        snapshots,
        tasks,
    )
    for program in module.PROGRAMS
]
