"""What a daemon writes to the stdin of `start`, read by hand: importing protobuf would double the time of a start.

containerd from 1.6 on sends its runtime options, an `Any` with `containerd.runc.v1.Options` in it; from 2.3 on
`containerd.runtime.bootstrap.v1.BootstrapParams`, with that `Any` among its extensions. Nothing says which of the two
it is, but the latter begins with the id and the namespace that stand on the command line as well.
"""

from collections.abc import Iterator

_RUNC_OPTIONS = b"containerd.runc.v1.Options"


class Startup:
    """What matters here: where events go (empty if not said), and the cgroup that the supervisor shall live in."""

    __slots__ = ("shim_cgroup", "ttrpc_address")

    def __init__(self, ttrpc_address: str = "", shim_cgroup: str = "") -> None:
        self.ttrpc_address = ttrpc_address
        self.shim_cgroup = shim_cgroup


def parse(data: bytes, namespace: str, container: str) -> Startup:
    """Read what came on stdin; bytes that are neither of the two messages say nothing."""
    found = Startup()
    try:
        fields = list(_fields(data))
    except ValueError:
        return found
    texts = {number: value for number, value in fields if isinstance(value, bytes)}
    if texts.get(1) == container.encode() and texts.get(2) == namespace.encode():
        found.ttrpc_address = texts.get(5, b"").decode("utf-8", "replace")
        options = [_first(value, 1) for number, value in fields if number == 8 and isinstance(value, bytes)]
    else:
        options = [data]
    for option in options:
        if _first(option, 1).rpartition(b"/")[2] == _RUNC_OPTIONS:
            found.shim_cgroup = _first(_first(option, 2), 3).decode("utf-8", "replace")
    return found


def _first(data: bytes, wanted: int) -> bytes:
    """The first length-delimited field of that number, or nothing."""
    try:
        for number, value in _fields(data):
            if number == wanted and isinstance(value, bytes):
                return value
    except ValueError:
        pass
    return b""


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a protobuf message. Raises ValueError if it is none."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError("no protobuf message")
        if at + length > len(data):
            raise ValueError("protobuf message is cut off")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7
    raise ValueError("protobuf message is cut off")
