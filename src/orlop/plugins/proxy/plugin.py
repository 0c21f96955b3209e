"""Which plug-in a section of `[proxy_plugins]` is."""

import asyncio
import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from orlop.api.services.content.v1 import content_pb2
from orlop.api.services.diff.v1 import diff_pb2
from orlop.api.services.sandbox.v1 import sandbox_pb2
from orlop.api.services.snapshots.v1 import snapshots_pb2
from orlop.base.errdefs import InvalidArgumentError
from orlop.base.platforms import default_string
from orlop.core.content.proxy import ProxyStore
from orlop.core.content.remote import RemoteBlobs
from orlop.core.content.store import ContentStore
from orlop.core.diff.proxy import ProxyDiffer
from orlop.core.fsck.elsewhere import ElsewhereCheck
from orlop.core.kinds import CHECK, CONTENT, DIFFER, METADATA, SANDBOX_CONTROLLER, SNAPSHOTTER
from orlop.core.metadata.facts import server_uuid
from orlop.core.plugin import Context, Kind, Registration
from orlop.core.sandboxes.proxy import ProxyController
from orlop.core.snapshots.proxy import ProxySnapshotter
from orlop.plugins.proxy.channel import Connection, ServiceChannel
from orlop.plugins.proxy.peers import AsyncPeer, Peer


class Settings(Protocol):
    """What the configuration says of one proxy plug-in; see `ProxyPlugin` of the server's configuration."""

    @property
    def type(self) -> str: ...

    @property
    def address(self) -> str: ...

    @property
    def remote(self) -> str: ...

    @property
    def platform(self) -> str: ...

    @property
    def exports(self) -> Mapping[str, str]: ...

    @property
    def capabilities(self) -> Sequence[str]: ...


def registrations(name: str, settings: Settings, root: str) -> list[Registration]:
    """The plug-in that the configuration asks for, and what checks it.

    Args:
        root: the daemon's root directory, which tells our names from those of others on the same socket.
    """
    kinds: dict[str, tuple[Kind[Any], Callable[[Context], Any]]] = {
        "snapshot": (SNAPSHOTTER, lambda context: _snapshotter(context, name, settings, root)),
        "diff": (DIFFER, lambda context: _differ(context, settings)),
        "sandbox": (SANDBOX_CONTROLLER, lambda context: _sandboxer(context, name, settings)),
        "content": (CONTENT, lambda context: _content(context, name, settings)),
    }
    # containerd takes its names of the kinds too.
    found = next((one for word, one in kinds.items() if settings.type in {word, one[0].name}), None)
    if found is None:
        raise InvalidArgumentError(f'proxy_plugins: {name}: type "{settings.type}": must be one of {", ".join(kinds)}')
    kind, init = found
    if kind is not CONTENT:
        return [Registration(kind=kind, id=name, init=init)]
    return [
        Registration(kind=CONTENT, id=name, requires=(METADATA,), init=init),
        Registration(kind=CHECK, id=name, requires=(METADATA, CONTENT), init=lambda context: _check(context, name)),
    ]


def _snapshotter(context: Context, name: str, settings: Settings, root: str) -> ProxySnapshotter:
    peer = _peer(context, settings, snapshots_pb2.DESCRIPTOR.services_by_name["Snapshots"])
    mine = hashlib.sha256(root.encode()).hexdigest()[:12]
    return ProxySnapshotter(
        peer,
        name=settings.remote or name,
        prefix=f"orlop-{mine}",
        capabilities=tuple(settings.capabilities),
        exports=settings.exports,
    )


def _differ(context: Context, settings: Settings) -> ProxyDiffer:
    return ProxyDiffer(AsyncPeer(_peer(context, settings, diff_pb2.DESCRIPTOR.services_by_name["Diff"])))


def _sandboxer(context: Context, name: str, settings: Settings) -> ProxyController:
    peer = _peer(context, settings, sandbox_pb2.DESCRIPTOR.services_by_name["Controller"])
    return ProxyController(AsyncPeer(peer), name=settings.remote or name)


async def _content(context: Context, name: str, settings: Settings) -> ContentStore:
    """Our rows over bytes there: see `orlop.core.content.remote`."""
    _describe(context, settings)
    db = context.get(METADATA)
    # Now, in a thread: the first call would hold up the event loop for as long as it takes.
    await asyncio.to_thread(importlib.import_module, "grpc.aio")
    connection = Connection(content_pb2.DESCRIPTOR.services_by_name["Content"], name, settings.address)
    context.on_close(connection.close)
    namespace = settings.remote or f"orlop-{server_uuid(db)}"
    blobs = RemoteBlobs(ProxyStore(ServiceChannel(connection)), db, namespace=namespace)
    await blobs.__aenter__()
    context.on_close(blobs.__aexit__)
    context.exports["namespace"] = namespace
    store = ContentStore(db, blobs, policy=db.content_sharing)
    context.on_close(store.aclose)
    return store


def _check(context: Context, name: str) -> ElsewhereCheck:
    return ElsewhereCheck(context.get(METADATA), context.get(CONTENT, name).blobs)


def _peer(context: Context, settings: Settings, service: Any) -> Peer:
    _describe(context, settings)
    peer = Peer(service, settings.address)
    context.on_close(peer.close)
    return peer


def _describe(context: Context, settings: Settings) -> None:
    if not settings.address:
        raise InvalidArgumentError("address is required")
    context.exports.update({**settings.exports, "address": settings.address})
    context.capabilities += settings.capabilities
    context.platforms.append(settings.platform or default_string())
