"""Which calls say that a container is about to start; see `orlop.linux.cgroup_warmth` for why that matters."""

import dataclasses
from collections.abc import Awaitable, Iterable
from typing import Any, Final

from orlop.base.phases import Recent, clock
from orlop.base.rpc import NAMESPACE_HEADER, Call, Method, Service
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


def heralded(
    services: Iterable[Service], warmth: Warmth, recent: Recent[tuple[str, str, str]] | None = None
) -> list[Service]:
    """The same services, which keep the lock warm from a call in `HERALDS` on, or the creation of a task.

    While several tasks are created at once their own moves keep it warm, and more would only cost. Cooling it as soon
    as a task is created was tried: its start and its end took 2 ms longer.

    Args:
        recent: phases of tasks, among which the wait that a creation was spared is noted.
    """
    creations = _Creations(warmth, recent)
    return [
        dataclasses.replace(
            service, methods={name: _wrapped(method, warmth, creations) for name, method in service.methods.items()}
        )
        for service in services
    ]


class _Creations:
    """The tasks that are being created now."""

    def __init__(self, warmth: Warmth, recent: Recent[tuple[str, str, str]] | None) -> None:
        self._warmth = warmth
        self._recent = recent
        self._count = 0

    async def watch(self, call: Call, container: str, answer: Awaitable[Any]) -> Any:
        began_ns = clock()
        self._count += 1
        if self._count == 1:
            self._warmth.touch()
        else:
            self._warmth.cool()
        try:
            return await answer
        finally:
            self._count -= 1
            self._note((call.metadata.get(NAMESPACE_HEADER, ""), container, ""), began_ns)

    def _note(self, key: tuple[str, str, str], began_ns: int) -> None:
        phases = self._recent.find(key) if self._recent is not None else None
        if phases is not None and self._warmth.waited[1] > began_ns - int(WINDOW_S * 1e9):
            phases.note("cgroup lock", *self._warmth.waited)


def _wrapped(method: Method, warmth: Warmth, creations: _Creations) -> Method:
    handler = method.handler
    if method.name == CREATE:

        def create(call: Call, request: Any) -> Any:
            return creations.watch(call, request.container_id, handler(call, request))

        return dataclasses.replace(method, handler=create)
    if method.name not in HERALDS:
        return method

    def handle(call: Call, request: Any) -> Any:
        warmth.touch()
        return handler(call, request)

    return dataclasses.replace(method, handler=handle)
