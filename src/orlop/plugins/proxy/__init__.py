"""Plug-ins behind another program's gRPC socket: `[proxy_plugins]` of the configuration.

    [proxy_plugins.stargz]
    type = "snapshot"                                   or "content", or "diff", or "sandbox"
    address = "/run/containerd-stargz-grpc/containerd-stargz-grpc.sock"

They connect when they are first used, so the other program may be started later, and anew. grpcio is imported by the
first one that is used.
"""

from orlop.plugins.proxy.peers import Peer
from orlop.plugins.proxy.plugin import registrations

__all__ = ["Peer", "registrations"]
