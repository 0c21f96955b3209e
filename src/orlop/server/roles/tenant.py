"""Who a bound socket belongs to, and what the role `run` checks in requests beyond which fields they have."""

import asyncio
import os
import posixpath
import stat
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from orlop.api.types.mount_pb2 import Mount as MountMessage
from orlop.api.types.transfer import imagestore_pb2, importexport_pb2, registry_pb2
from orlop.base.errdefs import NotFoundError, OrlopError, PermissionDeniedError
from orlop.base.quoting import quote
from orlop.base.rpc import Call
from orlop.core.metadata.containers import ContainerStore
from orlop.core.mount import Mount
from orlop.core.runtime.manager import TaskManager
from orlop.core.runtime.shim_manager import ShimManager
from orlop.core.snapshots.stores import Stores
from orlop.server.roles import spec
from orlop.server.roles.spec import refuse

# Snapshots whose mounts are remembered; who asks for more than this before using them asks again.
REMEMBERED: Final = 4096
SNAPSHOT_LABELS: Final = ("containerd.io/gc.", "containerd.io/snapshot.ref")
CONTAINER_LABELS: Final = ("containerd.io/gc.",)

STREAMS: Final = ("stdin", "stdout", "stderr")

Mounts = tuple[Mount, ...]


class Role(StrEnum):
    """What may be done through a bound socket."""

    READ = "read"
    RUN = "run"
    FULL = "full"


@dataclass(kw_only=True)
class Tenant:
    """One bound socket.

    Attributes:
        runtimes: names of runtimes that containers may ask for.
        fifo_directory: where the FIFOs of its clients lie.
    """

    namespace: str
    role: Role
    runtimes: Sequence[str]
    fifo_directory: str
    containers: ContainerStore
    snapshots: Stores
    shims: ShimManager
    tasks: TaskManager
    _handed: OrderedDict[Mounts, tuple[str, str]] = field(default_factory=OrderedDict)

    # -- namespaces, events, introspection ---------------------------------------------------------------------------

    def own_namespace(self, _call: Call, request: Any) -> None:
        """Only the socket's own may be looked at."""
        if request.name != self.namespace:
            raise PermissionDeniedError(f"role {self.role}: name: this socket has another namespace")

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def snapshot(self, _call: Call, request: Any) -> None:
        """Labels of snapshots reach snapshotters, and through some of them the host."""
        _labels(request.labels, "labels", only=SNAPSHOT_LABELS)

    def snapshot_update(self, _call: Call, request: Any) -> None:
        _labels(request.info.labels, "info.labels", only=SNAPSHOT_LABELS)

    def remember(self, request: Any, response: Any) -> None:
        """Mounts that were handed out may come back."""
        mounts = _mounts(response.mounts)
        self._handed[mounts] = (request.snapshotter, request.key)
        self._handed.move_to_end(mounts)
        if len(self._handed) > REMEMBERED:
            self._handed.popitem(last=False)

    async def _own_mounts(self, given: Iterable[MountMessage], where: str) -> None:
        """Mounts must be those of a snapshot of the namespace, now."""
        mounts = _mounts(given)
        snapshotter, key = self._handed.get(mounts, ("", ""))
        current: Mounts = ()
        if snapshotter:
            try:
                current = tuple(await self.snapshots.named(snapshotter).mounts(self.namespace, key))
            except OrlopError:
                current = ()  # removed or committed meanwhile
        if not mounts or mounts != current:
            refuse(where, "must be what the snapshotter returned for a snapshot of this namespace")

    # -- diff ----------------------------------------------------------------------------------------------------------

    async def apply(self, _call: Call, request: Any) -> None:
        await self._own_mounts(request.mounts, "mounts")

    async def diff(self, _call: Call, request: Any) -> None:
        if request.left:
            await self._own_mounts(request.left, "left")
        await self._own_mounts(request.right, "right")

    # -- containers ----------------------------------------------------------------------------------------------------

    def container(self, _call: Call, request: Any) -> None:
        """A container to be made, or what is to be changed of one: each field that is given."""
        self._container(request.container)

    def _container(self, container: Any) -> None:
        for descriptor, _value in container.ListFields():
            if descriptor.name not in _CONTAINER_FIELDS:
                refuse(f"container.{descriptor.name}", "this field is not allowed")
        _labels(container.labels, "container.labels", only=CONTAINER_LABELS)
        if container.HasField("runtime"):
            self._runtime(container.runtime.name, container.runtime.options.value)
        if container.HasField("spec"):
            spec.check_spec(container.spec.value, self.namespace, container.id)

    def _runtime(self, name: str, options: bytes) -> None:
        if name and name not in self.runtimes:
            choice = ", ".join(map(quote, self.runtimes))
            refuse("container.runtime.name", f"{quote(name[:128])} is not allowed, only {choice}")
        if options:
            refuse("container.runtime.options", "options are not allowed")

    # -- tasks ---------------------------------------------------------------------------------------------------------

    async def create_task(self, _call: Call, request: Any) -> None:
        """Also the container's record is judged, as it is now: it may have been made through another socket."""
        _no_options(request.options.value)
        await self._streams(request)
        await self._own_mounts(request.rootfs, "rootfs")
        try:
            container = self.containers.get(self.namespace, request.container_id)
        except NotFoundError:
            return  # the handler says so
        from google.protobuf.any_pb2 import Any as Packed

        stored = container.runtime.options
        self._runtime(container.runtime.name, Packed.FromString(stored).value if stored else b"")
        if container.sandbox:
            refuse("container.sandbox", "this field is not allowed")
        spec.check_spec(Packed.FromString(container.spec or b"").value, self.namespace, container.id)
        try:
            ours = self.shims.resolve(container.runtime.name).groups
        except OrlopError:
            return  # there is no such shim, as the handler says
        _to_ours(request, ours=ours)

    async def execute(self, _call: Call, request: Any) -> None:
        spec.check_process(request.spec.value)
        await self._streams(request)
        try:
            task = self.tasks.get(self.namespace, request.container_id)
        except NotFoundError:
            return  # the handler says so
        _to_ours(request, ours=task.shim.groups)

    def update_task(self, _call: Call, request: Any) -> None:
        spec.check_resources(request.resources.value)

    async def _streams(self, request: Any) -> None:
        for name in STREAMS:
            path = getattr(request, name)
            if path:
                await self._fifo(path, name)

    async def _fifo(self, path: str, where: str) -> None:
        """A FIFO below the socket's own directory, and no link on the way."""
        top = self.fifo_directory.rstrip("/")
        if not path.startswith(f"{top}/") or posixpath.normpath(path) != path or "\0" in path:
            refuse(where, f"must be a FIFO below {top}")
        if not await asyncio.to_thread(_is_fifo, path, top):
            refuse(where, f"must be a FIFO below {top}, and no link on the way")

    # -- transfer ------------------------------------------------------------------------------------------------------

    def transfer(self, _call: Call, request: Any) -> None:
        for where in ("source", "destination"):
            packed = getattr(request, where)
            name = packed.type_url.rpartition("/")[2]
            if name == registry_pb2.OCIRegistry.DESCRIPTOR.full_name:
                _registry(packed.value, where)
            elif name not in _ENDS:
                refuse(where, f"type {quote(name[:128])} is not allowed")


_CONTAINER_FIELDS: Final = frozenset(
    {"id", "labels", "image", "runtime", "spec", "snapshotter", "snapshot_key", "created_at", "updated_at"}
)
_ENDS: Final = frozenset(
    message.DESCRIPTOR.full_name
    for message in (imagestore_pb2.ImageStore, importexport_pb2.ImageImportStream, importexport_pb2.ImageExportStream)
)
_RESOLVER_FIELDS: Final = frozenset({"auth_stream", "headers", "logs_stream"})


def _registry(value: bytes, where: str) -> None:
    from google.protobuf.message import DecodeError

    try:
        message = registry_pb2.OCIRegistry.FromString(value)
    except DecodeError:
        refuse(where, "cannot be read")
    for descriptor, _value in message.resolver.ListFields():
        if descriptor.name not in _RESOLVER_FIELDS:
            refuse(f"{where}.resolver.{descriptor.name}", "this field is not allowed")


def _no_options(options: bytes) -> None:
    if options:
        refuse("options", "options are not allowed")


def _to_ours(request: Any, *, ours: bool) -> None:
    """Streams go to our supervisor only, which sees what it opens.

    Other shims open the path with root's rights and follow what it leads to by then, also where that is no FIFO, and
    make what is not there. Whoever owns the directory could have them write anywhere.
    """
    for name in STREAMS:
        if getattr(request, name) and not ours:
            refuse(name, "the shim of this runtime opens it by its path; without streams it is allowed")


def _labels(labels: Mapping[str, str], where: str, *, only: Sequence[str]) -> None:
    """Labels of containerd's and nerdctl's own words tell programs on the host what to do; of those, `only` these."""
    for key in labels:
        domain, slash, _name = key.partition("/")
        ours = slash and (domain in {"nerdctl", "containerd.io"} or domain.endswith(".containerd.io"))
        if ours and not key.startswith(tuple(only)):
            refuse(f"{where}.{key}", "this label is not allowed")


def _mounts(messages: Iterable[MountMessage]) -> Mounts:
    return tuple(Mount(type=m.type, source=m.source, target=m.target, options=tuple(m.options)) for m in messages)


def _is_fifo(path: str, top: str) -> bool:
    """Whether it is a FIFO, and whatever lies between it and `top` is no link."""
    try:
        place = posixpath.dirname(path)
        while place != top:
            if not stat.S_ISDIR(os.lstat(place).st_mode):
                return False
            place = posixpath.dirname(place)
        return stat.S_ISFIFO(os.lstat(path).st_mode)
    except OSError:
        return False
