"""Tasks: the running things made from containers, each held by a shim that outlives the daemon.

    shim       a process that speaks `containerd.task.v2` or `v3` over ttrpc and owns the task's processes
    bundle     the directory that the OCI runtime and the shim work in: <state>/<namespace>/<id>
    task       the init process of a container and its execs, as the daemon sees them: calls to the shim

Our own supervisor is a shim that serves all containers of a namespace; a foreign one serves one, or what it groups.
"""

from orlop.core.runtime.bundle import Bundle
from orlop.core.runtime.manager import CreateOptions, TaskManager
from orlop.core.runtime.tasks import Task

__all__ = ["Bundle", "CreateOptions", "Task", "TaskManager"]
