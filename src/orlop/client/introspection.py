"""What the daemon is: version, identity, plug-ins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from google.protobuf.empty_pb2 import Empty

from orlop.client.channel import Rpc
from orlop.client.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as PackedAny

    from orlop.api.services.introspection.v1 import introspection_pb2

_SERVICE = "containerd.services.introspection.v1.Introspection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What the daemon answers to Version: the API level it serves and, after a plus, its own version."""

    version: str
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Who answers. `pid` and `pidns` are 0 from daemons that do not tell."""

    uuid: str
    pid: int
    pidns: int
    deprecations: "tuple[Deprecation, ...]" = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A plug-in of the daemon.

    Attributes:
        platforms: as `linux/amd64` or `linux(+erofs)/amd64`.
        status: `ok`, `skip` (not possible on this host) or `error`.
        error: why it is not there, or an empty string.
        error_code: gRPC code of that reason.
    """

    type: str
    id: str
    requires: tuple[str, ...]
    platforms: tuple[str, ...]
    exports: Mapping[str, str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    status: str = "ok"
    error: str = ""
    error_code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeInfo:
    """A shim and the OCI runtime below it.

    Attributes:
        version, revision: of the shim or of the OCI runtime, as the shim chooses.
        options: that it was asked with.
        features: the JSON of runtime-spec's features document; empty where the OCI runtime has none.
    """

    name: str
    version: str = ""
    revision: str = ""
    options: "PackedAny | None" = None
    features: bytes = b""
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deprecation:
    """Something that the daemon was asked or configured to do and that will go."""

    id: str
    message: str
    last_occurrence: datetime


async def version(session: Session) -> Version:
    """Ask for the daemon's version."""
    from orlop.api.services.version.v1 import version_pb2

    rpc = Rpc("containerd.services.version.v1.Version", "Version", Empty, version_pb2.VersionResponse)
    answer = await session.call(rpc, Empty())
    return Version(version=answer.version, revision=answer.revision)


class Introspection:
    """`client.introspection`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def server(self) -> Server:
        """Who answers: a UUID that stays with the daemon's root directory, and its process."""
        from orlop.api.services.introspection.v1 import introspection_pb2 as pb

        answer = await self._session.call(Rpc(_SERVICE, "Server", Empty, pb.ServerResponse), Empty())
        return Server(
            uuid=answer.uuid,
            pid=answer.pid,
            pidns=answer.pidns,
            deprecations=tuple(_deprecation(warning) for warning in answer.deprecations),
        )

    async def runtime_info(
        self, runtime: str = "io.containerd.runc.v2", options: "PackedAny | None" = None
    ) -> RuntimeInfo:
        """What a shim says of itself and of the OCI runtime below it.

        Args:
            runtime: a runtime's name, or the path of a shim.
            options: as they would be given when a task is created; they may name another OCI runtime.

        Raises:
            UnknownError: there is no such shim.
            UnimplementedError: the daemon is older than containerd 2.0.
        """
        from google.protobuf.any_pb2 import Any as PackedAny

        from orlop.api.services.introspection.v1 import introspection_pb2 as pb
        from orlop.api.types import introspection_pb2 as types

        asked = types.RuntimeRequest(runtime_path=runtime)
        if options is not None:
            asked.options.CopyFrom(options)
        request = pb.PluginInfoRequest(
            type="io.containerd.runtime.v2",
            id="task",
            options=PackedAny(type_url=asked.DESCRIPTOR.full_name, value=asked.SerializeToString()),
        )
        rpc = Rpc(_SERVICE, "PluginInfo", pb.PluginInfoRequest, pb.PluginInfoResponse)
        found = types.RuntimeInfo.FromString((await self._session.call(rpc, request)).extra.value)
        return RuntimeInfo(
            name=found.name,
            version=found.version.version,
            revision=found.version.revision,
            options=found.options if found.HasField("options") else None,
            features=found.features.value,
            annotations=dict(found.annotations),
        )

    async def plugins(self, filters: Sequence[str] = ()) -> list[Plugin]:
        """The daemon's plug-ins, in the order it initialised them; `filters` as in `type==io.containerd.gc.v1`."""
        from orlop.api.services.introspection.v1 import introspection_pb2 as pb

        rpc = Rpc(_SERVICE, "Plugins", pb.PluginsRequest, pb.PluginsResponse)
        answer = await self._session.call(rpc, pb.PluginsRequest(filters=list(filters)))
        return [_plugin(one) for one in answer.plugins]


def _deprecation(warning: Any) -> Deprecation:
    # Any: the stub names the class DeprecationWarning, which hides it from type checkers.
    from orlop.client.stamps import to_datetime

    return Deprecation(id=warning.id, message=warning.message, last_occurrence=to_datetime(warning.last_occurrence))


def _plugin(one: "introspection_pb2.Plugin") -> Plugin:
    from orlop.base.platforms import format_all  # late: who asks for the version has no use for it

    error = one.init_err.message if one.HasField("init_err") else ""
    status = "ok" if not error else ("skip" if "skip plugin" in error else "error")
    return Plugin(
        type=one.type,
        id=one.id,
        requires=tuple(one.requires),
        platforms=tuple(format_all(platform) for platform in one.platforms),
        exports=dict(one.exports),
        capabilities=tuple(one.capabilities),
        status=status,
        error=error,
        error_code=one.init_err.code if error else 0,
    )
