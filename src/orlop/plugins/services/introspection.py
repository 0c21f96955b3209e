"""The Introspection service: which plug-ins there are and how they fare, and who this daemon is."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from orlop.api.services.introspection.v1 import introspection_pb2
from orlop.api.types import introspection_pb2 as types_pb2
from orlop.api.types import platform_pb2
from orlop.base import filters, platforms
from orlop.base.errdefs import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
    to_status,
)
from orlop.base.rpc import Call, Service, bind
from orlop.core.deprecations import Deprecations
from orlop.core.kinds import GRPC, METADATA, RUNTIME, WARNING
from orlop.core.metadata import Database
from orlop.core.metadata.facts import server_uuid
from orlop.core.plugin import Context, Registration, Status
from orlop.core.runtime.binaries import info, resolve

_RUNTIME_REQUEST: Final = types_pb2.RuntimeRequest.DESCRIPTOR.full_name


class Introspection:
    """containerd.services.introspection.v1.Introspection."""

    def __init__(
        self,
        plugins: Callable[[], Sequence[Status]],
        db: Database,
        runtimes: Mapping[str, str] | None = None,
        deprecations: Deprecations | None = None,
    ) -> None:
        self._plugins = plugins
        self._db = db
        self._runtimes = runtimes or {}
        self._deprecations = deprecations

    def plugins(self, _call: Call, request: introspection_pb2.PluginsRequest) -> introspection_pb2.PluginsResponse:
        matches = filters.parse_all(request.filters)
        return introspection_pb2.PluginsResponse(
            plugins=[_encode(status) for status in self._plugins() if matches(filters.adapt(_fields(status)))]
        )

    async def plugin_info(
        self, _call: Call, request: introspection_pb2.PluginInfoRequest
    ) -> introspection_pb2.PluginInfoResponse:
        for status in self._plugins():
            if (status.registration.kind.name, status.registration.id) == (request.type, request.id):
                answer = introspection_pb2.PluginInfoResponse(plugin=_encode(status))
                if request.HasField("options"):
                    answer.extra.CopyFrom(await self._extra(status.registration, request.options))
                return answer
        raise NotFoundError(f"plugin {request.type}.{request.id}")

    async def _extra(self, registration: Registration, options: PackedAny) -> PackedAny:
        """What a plug-in tells when it is asked more closely: the runtime's, of a shim and the OCI runtime below it."""
        # Go clients write type URLs without a host, which protobuf's own Unpack does not take.
        if registration.kind is not RUNTIME or options.type_url.rpartition("/")[2] != _RUNTIME_REQUEST:
            raise UnimplementedError(f"plugin {registration.uri}: info with options of type {options.type_url}")
        try:
            asked = types_pb2.RuntimeRequest.FromString(options.value)
        except DecodeError as error:
            raise InvalidArgumentError(f"plugin {registration.uri}: options cannot be read: {error}") from error
        binary = resolve(asked.runtime_path, self._runtimes)
        given = asked.options.SerializeToString() if asked.HasField("options") else b""
        found = await info(binary, given)
        return PackedAny(type_url=found.DESCRIPTOR.full_name, value=found.SerializeToString())

    async def server(self, _call: Call, _request: Empty) -> introspection_pb2.ServerResponse:
        # Not at the start: who cannot write then can still be asked about its plug-ins.
        uuid = await asyncio.to_thread(server_uuid, self._db)
        answer = introspection_pb2.ServerResponse(uuid=uuid, pid=os.getpid(), pidns=os.stat("/proc/self/ns/pid").st_ino)
        for one in self._deprecations.all() if self._deprecations else ():
            seen = Timestamp()
            seen.FromDatetime(one.last_occurrence)
            answer.deprecations.add(id=one.id, message=one.message, last_occurrence=seen)
        return answer


def _encode(status: Status) -> introspection_pb2.Plugin:
    registration = status.registration
    exports = dict(status.exports)
    if registration.origin:
        exports["origin"] = registration.origin
    plugin = introspection_pb2.Plugin(
        type=registration.kind.name,
        id=registration.id,
        requires=[kind.name for kind in registration.requires],
        platforms=[_platform(text) for text in status.platforms],
        exports=exports,
        capabilities=status.capabilities,
    )
    if status.state == "skipped":
        # Clients tell a skipped plug-in from a failed one by containerd's words at the end.
        plugin.init_err.code = FailedPreconditionError.code
        plugin.init_err.message = f"{status.reason}: skip plugin"
    elif status.state == "failed":
        code, message = to_status(status.error or FailedPreconditionError(status.reason))
        plugin.init_err.code = code
        plugin.init_err.message = f"{message} ({registration.origin})" if registration.origin else message
    return plugin


def _platform(text: str) -> platform_pb2.Platform:
    one = platforms.parse(text)
    return platform_pb2.Platform(
        os=one.os, architecture=one.architecture, variant=one.variant, os_features=one.os_features
    )


def _fields(status: Status) -> dict[str, str]:
    fields = {"type": status.registration.kind.name, "id": status.registration.id, "status": status.state}
    if status.capabilities:
        fields["capabilities"] = ",".join(status.capabilities)
    return fields


def _init(context: Context) -> Service:
    deprecations = context.all(WARNING).get("deprecations")
    service = Introspection(context.plugins, context.get(METADATA), context.daemon.runtimes, deprecations)
    return bind(introspection_pb2.DESCRIPTOR.services_by_name["Introspection"], service)


REGISTRATION: Final = Registration(kind=GRPC, id="introspection", requires=(METADATA, WARNING), init=_init)
