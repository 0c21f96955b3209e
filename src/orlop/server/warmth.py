"""Which calls say that a container is about to start; see `orlop.linux.cgroup_warmth` for why that matters."""

import dataclasses
from collections.abc import Callable, Iterable
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
        "/containerd.services.tasks.v1.Tasks/Create",
        "/containerd.services.tasks.v1.Tasks/Exec",
    }
)


def heralded(services: Iterable[Service], warmth: Warmth) -> list[Service]:
    """The same services, with `warmth.touch()` before each handler of a call in `HERALDS`."""
    return [_wrapped(service, warmth.touch) for service in services]


def _wrapped(service: Service, touch: Callable[[], None]) -> Service:
    methods = {name: _heralding(method, touch) for name, method in service.methods.items()}
    return dataclasses.replace(service, methods=methods)


def _heralding(method: Method, touch: Callable[[], None]) -> Method:
    if method.name not in HERALDS:
        return method
    handler = method.handler

    def handle(call: Call, request: Any) -> Any:
        touch()
        return handler(call, request)

    return dataclasses.replace(method, handler=handle)
