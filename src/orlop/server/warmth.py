"""Which calls say that a container is about to start; see `orlop.linux.cgroup_warmth` for why that matters."""

import dataclasses
from collections.abc import Awaitable, Iterable
from typing import Any, Final

from orlop.base.rpc import Call, Method, Service
from orlop.linux.cgroup_warmth import Warmth

# From a client's first look at an image to the runtime's first cgroup write some 25 ms pass; this is for slow ones too.
WINDOW_S: Final = 0.06

HERALDS: Final = frozenset(
    {
        "/containerd.services.images.v1.Images/Get",
        "/containerd.services.snapshots.v1.Snapshots/Prepare",
        "/containerd.services.containers.v1.Containers/Create",
        "/containerd.services.tasks.v1.Tasks/Exec",
    }
)
CREATE: Final = "/containerd.services.tasks.v1.Tasks/Create"


def heralded(services: Iterable[Service], warmth: Warmth) -> list[Service]:
    """The same services, which keep the lock warm from a call in `HERALDS` on, or the creation of a task.

    While several tasks are created at once their own moves keep it warm, and more would only cost. Cooling it as soon
    as a task is created was tried: its start and its end took 2 ms longer.
    """
    creations = _Creations(warmth)
    return [
        dataclasses.replace(
            service, methods={name: _wrapped(method, warmth, creations) for name, method in service.methods.items()}
        )
        for service in services
    ]


class _Creations:
    """The tasks that are being created now."""

    def __init__(self, warmth: Warmth) -> None:
        self._warmth = warmth
        self._count = 0

    async def watch(self, answer: Awaitable[Any]) -> Any:
        self._count += 1
        if self._count == 1:
            self._warmth.touch()
        else:
            self._warmth.cool()
        try:
            return await answer
        finally:
            self._count -= 1


def _wrapped(method: Method, warmth: Warmth, creations: _Creations) -> Method:
    handler = method.handler
    if method.name == CREATE:
        return dataclasses.replace(method, handler=lambda call, request: creations.watch(handler(call, request)))
    if method.name not in HERALDS:
        return method

    def handle(call: Call, request: Any) -> Any:
        warmth.touch()
        return handler(call, request)

    return dataclasses.replace(method, handler=handle)
