"""Taking over from a supervisor that was killed."""

from orlop.shim.reaper import Reaper
from orlop.shim.records import Record
from orlop.shim.runtime import Runtime
from orlop.shim.task import Task, Workshop


def runtime_of(reaper: Reaper, record: Record) -> Runtime:
    """The runtime that a record names."""
    return Runtime(reaper, command=record.command, root=record.root, systemd_cgroup=record.systemd_cgroup)


def adopt(workshop: Workshop, directory: str, tasks: dict[str, Task]) -> None:
    """Adopt every task below `directory` that belonged to this supervisor's place."""
