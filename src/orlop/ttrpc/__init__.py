"""ttrpc: protobuf requests over a stream socket, client and server. Knows nothing of containers.

| Module | What |
|---|---|
| `orlop.ttrpc.client` | blocking client for threads; imports no asyncio |
| `orlop.ttrpc.aio` | asyncio client |
| `orlop.ttrpc.server` | asyncio server |
| `orlop.ttrpc.wire`, `.errors` | frames and envelope; status and `TtrpcError` |

Payloads are bytes on both sides: who calls serializes. Behaves as Go's github.com/containerd/ttrpc 1.1 (unary only) and
1.2 (streams) do; docs/ttrpc.md lists what those do that their documents do not say, and the one extension.
"""

from orlop.ttrpc.errors import Status, TtrpcError

__all__ = ["Status", "TtrpcError"]
