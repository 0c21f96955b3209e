"""Generators of bad input: from a seed always the same bytes, each kind with its own ways of being wrong.

A generator mostly takes something right and makes one or a few things in it wrong, because what is wholly random is
refused at its first byte. `corpus()` gives distinct inputs; equal ones are left out.
"""

import gzip
import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from backports import zstd

from orlop.oci import media_types
from orlop.ttrpc import wire
from tests.hostile import tarballs as raw

Generator = Callable[[Random], bytes]

TEXTS = [
    "",
    ".",
    "..",
    "/",
    "../../../etc/passwd",
    "a/b",
    "a" * 77,
    "x" * 5000,
    "\0",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "\u202e",
    "\ufeff",
    "é" * 40,
    "%s%n%x",
    "%2e%2e%2f",
    "${HOME}",
    "$(id)",
    "'; DROP TABLE images; --",
    '"',
    "\\",
    "-",
    "--help",
    "sha256:",
    "sha256:" + "0" * 63,
    "sha256:" + "g" * 64,
    "sha512:" + "0" * 64,
    "md5:" + "0" * 32,
    "0" * 64,
    "default",
    "k8s.io",
    "io.containerd.runc.v2",
    "/proc/self/fd/0",
    "//x",
    "https://user:secret@example.org/",
    "http://[::1",
    "localhost:99999/a:b",
    "1e999",
    "-1",
    "9" * 30,
]
NUMBERS = [
    0,
    1,
    -1,
    255,
    1 << 31,
    (1 << 31) - 1,
    -(1 << 31),
    1 << 32,
    (1 << 63) - 1,
    -(1 << 63),
    1 << 64,
    10**40,
    0.5,
    1e308,
]


def text(rng: Random) -> str:
    """Some text that is no name."""
    shape = rng.randrange(6)
    if shape < 3:
        return rng.choice(TEXTS)
    if shape == 3:
        return rng.choice(TEXTS) + rng.choice(TEXTS)
    if shape == 4:
        return "".join(
            chr(rng.choice([rng.randrange(128), rng.randrange(0x2FF), 0x10FFFF])) for _ in range(rng.randrange(30))
        )
    return rng.choice("ab/.:@-_") * rng.choice([1, 2, 76, 77, 255, 256, 4095, 4097])


# -- archives -----------------------------------------------------------------------------------------------------

NAMES = [
    b"f",
    b"d/f",
    b"../f",
    b"/f",
    b"d/../../f",
    b".wh.f",
    b".wh...",
    b"d/.wh..wh..opq",
    b".wh..wh..opq",
    b"",
    b".",
    b"\xff",
    b"a\0b",
    b"n" * 100,
    b"d/" * 49 + b"f",
    b"l/f",
    b"l",
    b"d",
    b"d/",
]
NUMBER_FIELDS = [
    0,
    7,
    0o777777,
    b"",
    b"x",
    b"9",
    b"-1",
    b"\xff" * 12,
    b"\x80" + b"\xff" * 11,
    b"7" * 12,
    raw.base256(-1, 12)[-8:],
    raw.base256(1 << 40, 12),
]
PAX = [
    (b"path", b"../p"),
    (b"path", b"p\0"),
    (b"path", b"p" * 300),
    (b"linkpath", b"/etc/passwd"),
    (b"size", b"0"),
    (b"size", b"-1"),
    (b"size", b"99999999999"),
    (b"uid", b"4294967295"),
    (b"gid", b"-5"),
    (b"mtime", b"1.5.5"),
    (b"mtime", b"-99999999999999999"),
    (b"SCHILY.xattr.user.a", b"\0"),
    (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
    (b"SCHILY.xattr.", b"x"),
    (b"SCHILY.xattr.security.capability", b"\1"),
    (b"GNU.sparse.map", b"0,1"),
    (b"GNU.sparse.numblocks", b"1"),
    (b"GNU.sparse.size", b"-1"),
    (b"GNU.sparse.realsize", b"9223372036854775807"),
    (b"GNU.sparse.major", b"1"),
    (b"GNU.sparse.minor", b"0"),
    (b"GNU.sparse.name", b"../s"),
    (b"GNU.sparse.offset", b"0"),
    (b"GNU.sparse.numbytes", b"1"),
    (b"", b"x"),
    (b"comment", b"c" * 2000),
]


def member(rng: Random) -> bytes:
    """One entry, mostly a strange one."""
    name, data = rng.choice(NAMES), rng.randbytes(rng.choice([0, 0, 1, 511, 512, 700]))
    shape = rng.randrange(12)
    if shape == 0:
        return raw.pax([rng.choice(PAX) for _ in range(rng.randrange(1, 5))], rng.choice([b"x", b"x", b"g"]))
    if shape == 1:
        return raw.long_name(rng.choice(NAMES) * rng.choice([1, 5, 60]), rng.choice([b"L", b"K"]))
    if shape == 2:
        offsets: list[int | bytes] = [0, 5, 512, raw.base256(-1, 12)]
        segments = [(rng.choice(offsets), rng.choice([0, 1, 512])) for _ in range(rng.randrange(6))]
        return raw.old_sparse(name, segments, data, real_size=rng.choice([*offsets, 5000]))
    if shape == 3:
        return raw.raw_pax(rng.choice([b"1 x", b"9 path=x\n", b"99 a=b\n", rng.randbytes(20), b"6 a=b\n"]))
    kind = rng.choice([b"0", b"0", b"\0", b"1", b"2", b"3", b"4", b"5", b"5", b"6", b"7", b"S", b"Z", b"\xff"])
    fields: dict[str, Any] = {"link": rng.choice(NAMES)}
    for field in rng.sample(["mode", "uid", "gid", "size", "mtime", "major", "minor"], rng.randrange(3)):
        fields[field] = rng.choice(NUMBER_FIELDS)
    if rng.random() < 0.2:
        fields["magic"] = rng.choice([raw.GNU, raw.V7, b"ustar\0xx"])
    if rng.random() < 0.1:
        fields["prefix"] = rng.choice([b"..", b"/etc", b"d", b"00000000007\0"])
    if rng.random() < 0.1:
        fields["checksum"] = rng.choice([b"", b"0", b"7777777"])
    return raw.member(name, data, kind, **fields)


def archive(rng: Random) -> bytes:
    """An archive that is hostile, damaged, cut, or packed wrongly."""
    parts = [member(rng) for _ in range(rng.randrange(1, 7))]
    if rng.random() < 0.3:
        parts.insert(0, raw.symlink(b"l", rng.choice([b"..", b"/", b"/tmp", b"d", b"l", b"../../.."])))
    blob = b"".join(parts) + (raw.END if rng.random() < 0.8 else b"")
    if rng.random() < 0.3:
        blob = _damaged(rng, blob)
    pack = rng.randrange(6)
    if pack == 1:
        blob = gzip.compress(blob, 1, mtime=0)
    elif pack == 2:
        blob = zstd.compress(blob)
    elif pack == 3:
        half = len(blob) // 2
        blob = (
            gzip.compress(blob[:half], 1, mtime=0)
            + gzip.compress(blob[half:], 1, mtime=0)
            + rng.choice([b"", bytes(9), b"x"])
        )
    if pack and rng.random() < 0.4:
        blob = _damaged(rng, blob)
    return blob


def _damaged(rng: Random, blob: bytes) -> bytes:
    changed = bytearray(blob)
    for _ in range(rng.randrange(1, 4)):
        shape = rng.randrange(4)
        at = rng.randrange(len(changed) + 1)
        if shape == 0:
            del changed[at:]
        elif shape == 1 and at < len(changed):
            changed[at] = rng.choice([0, 0xFF, changed[at] ^ 1, rng.randrange(256)])
        elif shape == 2:
            changed[at:at] = rng.randbytes(rng.choice([1, 7, 512]))
        else:
            changed[at : at + rng.choice([1, 100, 512])] = b""
    return bytes(changed)


# -- documents ----------------------------------------------------------------------------------------------------


def _digest(rng: Random) -> str:
    return rng.choice([text(rng), "sha256:" + hashlib.sha256(rng.randbytes(2)).hexdigest()])


def value(rng: Random, depth: int = 0) -> Any:
    """Any JSON value; deep ones seldom."""
    shape = rng.randrange(9 if depth < 4 else 6)
    if shape == 0:
        return None
    if shape == 1:
        return rng.choice([True, False])
    if shape == 2:
        return rng.choice(NUMBERS)
    if shape < 6:
        return text(rng)
    if shape == 6:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {text(rng): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def _spoil(rng: Random, document: Any) -> Any:
    """Make some place in a document wrong."""
    place = document
    path: list[tuple[Any, Any]] = []
    while isinstance(place, dict | list) and place and (not path or rng.random() < 0.7):
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        path.append((place, key))
        place = place[key]
    if not path:
        return value(rng)
    holder, key = path[-1]
    shape = rng.randrange(4)
    if shape == 0:
        del holder[key]
    elif shape == 1 and isinstance(holder, dict):
        holder[text(rng)] = holder.pop(key)
    elif shape == 2 and isinstance(holder, list):
        holder.extend([holder[key]] * rng.choice([1, 50]))
    else:
        holder[key] = value(rng)
    return document


def _json(rng: Random, document: Any) -> bytes:
    for _ in range(rng.randrange(1, 4)):
        document = _spoil(rng, document)
    try:
        blob = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (RecursionError, ValueError):
        blob = b"{"
    shape = rng.randrange(12)
    if shape == 0:
        blob = _damaged(rng, blob)
    elif shape == 1:
        blob = rng.choice([b"[", b'{"manifests":', b'{"a":[', b'[{"x":']) * rng.choice([10, 1000, 100_000])
    elif shape == 2:
        blob = blob + rng.choice([b"}", b"\0", b"x", blob])
    return blob


def descriptor(rng: Random) -> dict[str, Any]:
    """A descriptor that is right on its own."""
    return {
        "mediaType": rng.choice(
            [media_types.OCI_LAYER, media_types.OCI_CONFIG, media_types.OCI_MANIFEST, media_types.OCI_INDEX]
        ),
        "digest": "sha256:" + hashlib.sha256(rng.randbytes(2)).hexdigest(),
        "size": rng.randrange(1000),
        "annotations": {"a": "b"},
        "urls": ["https://example.org/x"],
        "platform": {"os": "linux", "architecture": "amd64"},
    }


def manifest(rng: Random) -> bytes:
    return _json(
        rng,
        {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "config": descriptor(rng),
            "layers": [descriptor(rng) for _ in range(rng.randrange(4))],
            "annotations": {"k": "v" * rng.choice([1, 1, 100_000])},
            "subject": descriptor(rng),
        },
    )


def index(rng: Random) -> bytes:
    return _json(
        rng,
        {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_INDEX,
            "manifests": [descriptor(rng) for _ in range(rng.choice([0, 1, 3, 300]))],
            "annotations": {},
        },
    )


def config(rng: Random) -> bytes:
    return _json(
        rng,
        {
            "os": "linux",
            "architecture": "amd64",
            "created": "2020-01-01T00:00:00Z",
            "config": {
                "Env": ["A=b"],
                "Cmd": ["x"],
                "User": "1:2",
                "ExposedPorts": {"80/tcp": {}},
                "Volumes": {"/v": {}},
            },
            "rootfs": {"type": "layers", "diff_ids": [_digest(rng) for _ in range(rng.randrange(3))]},
            "history": [{"created_by": "x", "empty_layer": True}],
        },
    )


def spec(rng: Random) -> bytes:
    return _json(
        rng,
        {
            "ociVersion": "1.0.2",
            "process": {
                "args": ["true"],
                "cwd": "/",
                "env": ["A=b"],
                "user": {"uid": 0, "gid": 0},
                "capabilities": {"bounding": ["CAP_KILL"]},
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            },
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "hostname": "x",
            "hooks": {},
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "mount"}],
                "resources": {"devices": [{"allow": False, "access": "rwm"}], "memory": {"limit": 1 << 20}},
                "cgroupsPath": "/bad/x",
                "uidMappings": [],
            },
        },
    )


# -- names --------------------------------------------------------------------------------------------------------


def name(rng: Random) -> bytes:
    """An identifier, label, digest or reference that is most likely none."""
    return text(rng).encode("utf-8", "surrogatepass")


def reference(rng: Random) -> bytes:
    parts = [
        rng.choice(["", "docker.io", "localhost:5000", "[::1]:5000", "UPPER", text(rng)]),
        rng.choice(["/library/x", "//x", "/..", text(rng)]),
        rng.choice(["", ":tag", ":" + "t" * 200, "::", text(rng)]),
        rng.choice(["", "@sha256:" + "0" * 64, "@sha256:x", "@", "@@", text(rng)]),
    ]
    return "".join(parts).encode("utf-8", "surrogatepass")


def filter_(rng: Random) -> bytes:
    """A filter: fields, operators and values put together."""
    tokens = [
        "id",
        "labels",
        '"quoted.field"',
        ".",
        ",",
        "==",
        "!=",
        "~=",
        "=",
        "~",
        '"',
        "'",
        "/",
        "|",
        "\\",
        " ",
        "\0",
        "x",
    ]
    tokens += ["/(a|b)*a(a|b){30}/", "/[/", "/(?i)x/", "/" + "(" * 200 + "/", r'"\xff"', r'"\u12"', text(rng)]
    return "".join(rng.choice(tokens) for _ in range(rng.randrange(1, 12))).encode("utf-8", "surrogatepass")


# -- frames -------------------------------------------------------------------------------------------------------

SERVICES = ["containerd.services.version.v1.Version", "containerd.services.content.v1.Content", "none", ""]
METHODS = ["Version", "Read", "Write", "List", "Info", "none", ""]


def ttrpc(rng: Random) -> bytes:
    """What a peer sends over ttrpc: frames with wrong lengths, types, flags, bodies; floods; nothing of the kind."""
    parts = []
    for _ in range(rng.choice([1, 1, 2, 5, 200])):
        body = rng.choice(
            [
                b"",
                rng.randbytes(rng.randrange(40)),
                wire.encode_request(rng.choice(SERVICES), rng.choice(METHODS), rng.randbytes(rng.randrange(20))),
                wire.encode_request(
                    rng.choice(SERVICES), rng.choice(METHODS), b"", rng.choice([0, -1, 1, (1 << 63) - 1])
                ),
            ]
        )
        stream, kind, flags = (
            rng.choice([0, 1, 2, 3, 5, (1 << 32) - 1]),
            rng.choice([0, 1, 1, 1, 2, 3, 3, 4, 255]),
            rng.randrange(8),
        )
        length = rng.choice([len(body)] * 6 + [0, 1, 1 << 22, (1 << 22) + 1, (1 << 32) - 1])
        parts.append(struct.pack(">IIBB", length, stream, kind, flags) + body)
    data = b"".join(parts)
    return _damaged(rng, data) if rng.random() < 0.3 else data


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def http2(rng: Random) -> bytes:
    """What a peer sends to the gRPC socket: frames of every type with wrong lengths and bodies; or another protocol."""
    if rng.random() < 0.1:
        return rng.choice([b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", PREFACE[:10], rng.randbytes(64), b"\0" * 5000])
    parts = [PREFACE, b"\0\0\0\4\0\0\0\0\0"]
    for _ in range(rng.choice([1, 2, 5, 300])):
        body = rng.choice(
            [
                b"",
                rng.randbytes(rng.randrange(60)),
                b"\x83\x86\x44\x05/none\x41\x01x\x5f\x10application/grpc",
                b"\0\0\0\0\5" + rng.randbytes(5),
                b"\1\xff\xff\xff\xff",
                struct.pack(">HI", rng.randrange(8), rng.choice([0, 1, 1 << 31, (1 << 32) - 1])),
            ]
        )
        length = rng.choice([len(body)] * 8 + [0, 16_384, (1 << 24) - 1])
        stream = rng.choice([0, 1, 3, 5, 2, (1 << 31) - 1])
        parts.append(
            struct.pack(">I", length)[1:]
            + bytes([rng.randrange(12), rng.randrange(256)])
            + struct.pack(">I", stream)
            + body
        )
    data = b"".join(parts)
    return _damaged(rng, data) if rng.random() < 0.2 else data


# -- messages -----------------------------------------------------------------------------------------------------


def message(rng: Random, described: Any, depth: int = 0) -> bytes:
    """A request of a protobuf type, its fields filled with strange values; or its bytes damaged.

    Args:
        described: the message's descriptor (protobuf gives that no public type).
    """
    blob = b"".join(_field(rng, field, depth) for field in described.fields if rng.random() < 0.6)
    return _damaged(rng, blob) if depth == 0 and rng.random() < 0.15 else blob


def _field(rng: Random, field: Any, depth: int) -> bytes:
    count = rng.choice([1, 1, 1, 2, 40]) if field.is_repeated else 1
    return b"".join(_one(rng, field, depth) for _ in range(count))


def _one(rng: Random, field: Any, depth: int) -> bytes:
    if rng.random() < 0.004:  # the wrong wire type
        return _key(field.number, 5) + rng.randbytes(4)
    if field.message_type is not None:
        body = message(rng, field.message_type, depth + 1) if depth < 5 else b""
        return _key(field.number, 2) + _varint(len(body)) + body
    if field.type in (field.TYPE_STRING, field.TYPE_BYTES):
        body = text(rng).encode("utf-8", "surrogatepass") if rng.random() < 0.996 else b"\xff\xfe"
        return _key(field.number, 2) + _varint(len(body)) + body
    if field.type in (field.TYPE_DOUBLE, field.TYPE_FIXED64):
        return _key(field.number, 1) + rng.randbytes(8)
    if field.type in (field.TYPE_FLOAT, field.TYPE_FIXED32):
        return _key(field.number, 5) + rng.randbytes(4)
    return _key(field.number, 0) + _varint(rng.choice([0, 1, 2, 255, (1 << 31) - 1, (1 << 63) - 1, (1 << 64) - 1]))


def _key(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


GENERATORS: dict[str, Generator] = {
    "archive": archive,
    "manifest": manifest,
    "index": index,
    "config": config,
    "spec": spec,
    "name": name,
    "reference": reference,
    "filter": filter_,
    "ttrpc": ttrpc,
    "http2": http2,
}


def corpus(kind: str, count: int, start: int = 0) -> Iterator[bytes]:
    """`count` distinct inputs of a kind, from the seeds that follow `start`."""
    seen: set[bytes] = set()
    seed = start
    while len(seen) < count:
        blob = GENERATORS[kind](Random(f"{kind} {seed}"))
        seed += 1
        mark = hashlib.sha256(blob).digest()
        if mark not in seen:
            seen.add(mark)
            yield blob
