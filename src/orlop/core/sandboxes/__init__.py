"""Sandboxes: what containers are grouped in, such as a pod. The record here, the running thing with its controller.

Source: containerd's core/sandbox/store.go and core/sandbox/controller.go.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orlop.core.containers import Runtime
from orlop.core.mount import Mount

__all__ = ["Controller", "Exit", "Instance", "Platform", "Runtime", "Sandbox", "Status"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """One sandbox of a namespace.

    Attributes:
        runtime: the shim that runs it, and its options.
        spec: what the shim is to make, as a serialised `google.protobuf.Any`.
        sandboxer: the controller that it belongs to.
        extensions: serialised `google.protobuf.Any` by name, for clients.
        created_at, updated_at: nanoseconds since the epoch, UTC.
    """

    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    runtime: Runtime = field(default_factory=Runtime)
    spec: bytes | None = None
    sandboxer: str = ""
    created_at: int = 0
    updated_at: int = 0
    extensions: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A sandbox that was started.

    Attributes:
        pid: of the process that is the sandbox, 0 if none is.
        address, version: of the shim's task API, for tasks in it: `ttrpc+unix://…`, 2 or 3.
        created_at: nanoseconds since the epoch, UTC.
        spec: what the shim made of the spec, as a serialised `google.protobuf.Any`.
    """

    id: str
    pid: int = 0
    address: str = ""
    version: int = 0
    created_at: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    spec: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a sandbox fares, in the shim's words.

    Attributes:
        created_at, exited_at: nanoseconds since the epoch, UTC; None for what the controller cannot know.
        extra: a serialised `google.protobuf.Any`.
    """

    id: str
    pid: int = 0
    state: str = ""
    info: Mapping[str, str] = field(default_factory=dict)
    created_at: int | None = None
    exited_at: int | None = None
    extra: bytes | None = None
    address: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a sandbox ended; the time in nanoseconds since the epoch, UTC."""

    status: int
    exited_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What runs in a sandbox."""

    os: str
    architecture: str
    variant: str = ""


class Controller(Protocol):
    """Runs sandboxes; a plug-in of kind SANDBOX_CONTROLLER under the name that clients give as `sandboxer`.

    Unless it says otherwise, a method raises NotFoundError for a sandbox that does not run, and whatever the shim
    answers.
    """

    async def create(
        self,
        namespace: str,
        sandbox: Sandbox,
        *,
        options: bytes | None = None,
        rootfs: Sequence[Mount] = (),
        netns: str = "",
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        """Bring it up so far that it can be started; all or nothing. `options` are a serialised `Any` for the shim.

        Raises:
            AlreadyExistsError: it runs.
        """
        ...

    async def start(self, namespace: str, sandbox_id: str) -> Instance:
        """Start it; one that cannot be started is gone."""
        ...

    async def platform(self, namespace: str, sandbox_id: str) -> Platform:
        """What containers in it have to be made for."""
        ...

    async def stop(self, namespace: str, sandbox_id: str, *, timeout_s: int = 0) -> None:
        """End it; one that does not run is fine."""
        ...

    async def wait(self, namespace: str, sandbox_id: str) -> Exit:
        """Return when it has ended, however long that takes."""
        ...

    async def status(self, namespace: str, sandbox_id: str, *, verbose: bool = False) -> Status:
        """How it fares; one that does not run has ended now."""
        ...

    async def shutdown(self, namespace: str, sandbox_id: str) -> None:
        """Forget it, with all that it took."""
        ...

    async def metrics(self, namespace: str, sandbox_id: str) -> bytes:
        """A serialised `containerd.types.Metric`; empty if it has none."""
        ...

    async def update(self, namespace: str, sandbox_id: str, sandbox: Sandbox, fields: Sequence[str]) -> None:
        """Take over what has changed of its record."""
        ...
