"""What the daemon is: version, identity, plug-ins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.empty_pb2 import Empty

from orlop.client.channel import Rpc
from orlop.client.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
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
    deprecations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A plug-in of the daemon.

    Attributes:
        platforms: as `linux/amd64`.
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
            deprecations=tuple(
                # The stub names the class DeprecationWarning, which hides it from type checkers.
                warning.message  # type: ignore[attr-defined]
                for warning in answer.deprecations
            ),
        )

    async def plugins(self, filters: Sequence[str] = ()) -> list[Plugin]:
        """The daemon's plug-ins, in the order it initialised them; `filters` as in `type==io.containerd.gc.v1`."""
        from orlop.api.services.introspection.v1 import introspection_pb2 as pb

        rpc = Rpc(_SERVICE, "Plugins", pb.PluginsRequest, pb.PluginsResponse)
        answer = await self._session.call(rpc, pb.PluginsRequest(filters=list(filters)))
        return [_plugin(one) for one in answer.plugins]


def _plugin(one: "introspection_pb2.Plugin") -> Plugin:
    error = one.init_err.message if one.HasField("init_err") else ""
    status = "ok" if not error else ("skip" if "skip plugin" in error else "error")
    return Plugin(
        type=one.type,
        id=one.id,
        requires=tuple(one.requires),
        platforms=tuple(
            "/".join(part for part in (platform.os, platform.architecture, platform.variant) if part)
            for platform in one.platforms
        ),
        exports=dict(one.exports),
        capabilities=tuple(one.capabilities),
        status=status,
        error=error,
        error_code=one.init_err.code if error else 0,
    )
