"""Content: the Write protocol, ingests, blobs, labels, reads."""

from typing import Final

from tests.interop.api.steps import (
    COMMIT,
    DIGEST,
    HELLO,
    NONE,
    STAT,
    WRITE,
    Program,
    Step,
    blob,
    call,
    digest,
    end_stream,
    mask,
    more,
    open_stream,
    write,
)

DIGESTS: Final = (
    "",
    "nonsense",
    "sha256:",
    "sha256:12",
    "sha256:" + "g" * 64,
    "sha256:" + "A" * 64,
    "sha256:" + "0" * 65,
    "md5:" + "0" * 32,
    "sha512:" + "0" * 128,
    "sha384:" + "0" * 96,
    NONE,
    f"{NONE}@x",
    "../" + NONE,
)


def _update(*paths: str, **labels: str) -> Step:
    return call("Content.Update", info={"digest": DIGEST, "labels": labels}, update_mask=mask(*paths))


def _hold() -> list[Step]:
    return [call("Leases.Create", id="hold")]


def _read(offset: int = 0, size: int = 0, of: str = DIGEST) -> Step:
    return call("Content.Read", digest=of, offset=offset, size=size)


PROGRAMS: Final = [
    Program(
        "content: a life",
        [
            call("Content.Info", digest=DIGEST),
            blob(HELLO, labels={"a": "1", "e": ""}),
            call("Content.Info", digest=DIGEST),
            call("Content.List"),
            _read(),
            call("Content.Delete", digest=DIGEST),
            call("Content.Delete", digest=DIGEST),
            call("Content.Info", digest=DIGEST),
            _read(),
            call("Content.List"),
        ],
    ),
    Program("content: info of bad digests", [call("Content.Info", digest=one) for one in DIGESTS]),
    Program("content: deletion of bad digests", [call("Content.Delete", digest=one) for one in DIGESTS]),
    Program("content: reads of bad digests", [_read(of=one) for one in DIGESTS]),
    Program(
        "content: updates of bad digests",
        [call("Content.Update", info={"digest": one, "labels": {"a": "b"}}) for one in DIGESTS],
    ),
    Program("content: no message at all", [call("Content.Update")], until=(1, 6)),
    Program(
        "content: namespaces that are none",
        [
            call("Content.Info", ns="", digest=DIGEST),
            call("Content.Update", ns="", info={"digest": DIGEST}),
            call("Content.List", ns=""),
            call("Content.Delete", ns="", digest=DIGEST),
            call("Content.Read", ns="", digest=DIGEST),
            call("Content.Status", ns="", ref="x"),
            call("Content.ListStatuses", ns=""),
            call("Content.Abort", ns="", ref="x"),
            write("x", {"action": STAT}, ns=""),
            write("x", {"action": STAT}, ns="a b"),
            call("Content.List", ns="a/b"),
        ],
    ),
    Program(
        "content: reads",
        [
            blob(b"0123456789"),
            *(
                _read(offset, size, of=digest(b"0123456789"))
                for offset, size in (
                    (0, 0),
                    (3, 0),
                    (3, 4),
                    (0, 10),
                    (0, 11),
                    (9, 5),
                    (10, 0),
                    (10, 1),
                    (11, 0),
                    (11, 1),
                    (-1, 0),
                    (-1, 3),
                    (0, -1),
                    (5, -1),
                    (-11, -5),
                )
            ),
        ],
    ),
    Program(
        "content: update by masks",
        [
            blob(HELLO, labels={"a": "1", "b": "2"}),
            _update("labels.a", a="9", c="not named"),
            _update("labels.a"),
            _update("labels.d.e", **{"d.e": "1"}),
            _update("labels", only="this"),
            _update("labels.x", "labels.y", x="1", y="2"),
            _update("labels"),
            _update("labels.", **{"": "v"}),
            _update("digest"),
            _update("size"),
            _update("nonsense"),
            _update("labels.a", "nonsense", a="1"),
            _update(""),
            call("Content.Update", info={"digest": DIGEST, "labels": {"n": "1"}}),
            call("Content.Update", info={"digest": DIGEST}),
            call("Content.Update", info={"digest": DIGEST, "labels": {"k": "v" * 4096}}),
            _update("labels.k", k="v" * 4096),
            _update("labels.k", k="v" * 4095),
            call("Content.Update", info={"digest": DIGEST, "size": 9, "labels": {"z": "1"}}),
            call("Content.Info", digest=DIGEST),
        ],
    ),
    Program(
        "content: writes in one message",
        [
            write("r1", {"action": COMMIT, "data": b"a"}),
            write("r1", {"action": COMMIT, "data": b"a"}),
            write("r2", {"action": COMMIT, "data": b"b", "total": 1}),
            write("r3", {"action": COMMIT, "data": b"c", "total": 2}),
            write("r3", {"action": COMMIT, "total": 1, "offset": 1}),
            write("r4", {"action": COMMIT, "data": b"d", "expected": digest(b"d")}),
            write("r5", {"action": COMMIT, "data": b"e", "expected": digest(b"d")}),
            write("r6", {"action": COMMIT, "data": b"f", "expected": NONE}),
            write("r7", {"action": COMMIT, "data": b"g", "expected": "nonsense"}),
            write("r8", {"action": COMMIT, "data": b"h", "labels": {"k": "v" * 4096}}),
            write("r9", {"action": COMMIT}),
            write("r10", {"action": COMMIT, "expected": digest(b"")}),
            write("", {"action": COMMIT, "data": b"i"}),
            write("r11", {"action": COMMIT, "data": b"j", "offset": 5}),
            write("r12", {"action": COMMIT, "data": b"k", "offset": -1}),
            write("r13", {"action": COMMIT, "data": b"l", "total": -1}),
            write("r14", {"action": 7, "data": b"m"}),
            call("Content.ListStatuses", sort=True),
        ],
    ),
    Program(
        "content: a write in steps",
        [
            write("ref", {"action": STAT}),
            write("ref", {"action": STAT, "total": 10}),
            write("ref", {"action": WRITE, "data": b"01234", "total": 10}),
            call("Content.Status", ref="ref"),
            write("ref", {"action": STAT}, {"action": WRITE, "offset": 5, "data": b"567"}, {"action": STAT}),
            write("ref", {"action": WRITE, "offset": 4, "data": b"x"}),
            write("ref", {"action": WRITE, "offset": 9, "data": b"x"}),
            write("ref", {"action": COMMIT, "offset": 8, "total": 10}),
            write(
                "ref", {"action": COMMIT, "offset": 8, "data": b"89", "total": 10, "expected": digest(b"0123456789")}
            ),
            call("Content.Status", ref="ref"),
        ],
    ),
    Program(
        "content: an offset of zero begins again",
        [
            write("ref", {"action": WRITE, "data": b"wrong"}),
            write("ref", {"action": WRITE, "data": b"rig"}, {"action": WRITE, "data": b"ht", "offset": 3}),
            write("ref", {"action": STAT}),
            write("ref", {"action": COMMIT, "offset": 5, "expected": digest(b"right")}),
        ],
    ),
    Program(
        "content: labels come with the commit",
        [
            write(
                "ref",
                {"action": WRITE, "data": b"a", "labels": {"early": "1"}},
                {"action": COMMIT, "offset": 1, "labels": {"late": "1"}},
            ),
            call("Content.List"),
        ],
    ),
    Program(
        "content: messages after a commit",
        [write("ref", {"action": COMMIT, "data": b"a"}, {"action": WRITE, "data": b"b", "offset": 1})],
    ),
    Program(
        "content: a ref that changes within the stream",
        [
            write("ref", {"action": WRITE, "data": b"a"}, {"ref": "other", "action": WRITE, "data": b"b", "offset": 1}),
            call("Content.ListStatuses", sort=True),
        ],
    ),
    Program(
        "content: totals and expectations that change",
        [
            write("t1", {"action": STAT, "total": 5}, {"action": STAT, "total": 6}),
            write("t2", {"action": STAT, "total": 5}, {"action": COMMIT, "data": HELLO, "total": 6}),
            write("t3", {"action": STAT, "total": 5}, {"action": COMMIT, "data": HELLO}),
            write("t4", {"action": STAT, "expected": NONE}, {"action": COMMIT, "data": b"t4"}),
            write("t5", {"action": STAT, "expected": NONE}, {"action": STAT, "expected": digest(b"t5")}),
            write(
                "t6", {"action": STAT, "expected": NONE}, {"action": COMMIT, "data": b"t6", "expected": digest(b"t6")}
            ),
            call("Content.ListStatuses", sort=True),
        ],
    ),
    Program(
        "content: another total opens the ref anew",
        [
            write("ref", {"action": WRITE, "data": b"01", "total": 10}),
            write("ref", {"action": STAT, "total": 10}),
            write("ref", {"action": STAT, "total": 11}),
            write("ref", {"action": STAT}),
        ],
    ),
    Program(
        "content: a blob that is there",
        [
            blob(HELLO),
            write("again", {"action": STAT, "expected": DIGEST}),
            write("again", {"action": STAT, "expected": DIGEST, "total": 5}),
            write("again", {"action": STAT}, {"action": STAT, "expected": DIGEST}),
            write("again", {"action": WRITE, "data": HELLO}, {"action": COMMIT, "offset": 5, "expected": DIGEST}),
            write("again", {"action": COMMIT, "data": HELLO}),
            write("again", {"action": COMMIT, "data": HELLO, "expected": NONE}),
            call("Content.ListStatuses", sort=True),
            call("Content.Status", ref="again"),
        ],
    ),
    Program(
        "content: a blob that another namespace has",
        [
            *_hold(),
            call("Leases.Create", id="hold", ns="{other}"),
            blob(HELLO, ns="{other}", lease="hold"),
            call("Content.Info", digest=DIGEST),
            _read(),
            write("share", {"action": STAT, "expected": DIGEST}),
            call("Content.Status", ref="share"),
            call("Content.ListStatuses", sort=True),
            write("share", {"action": STAT, "expected": DIGEST, "total": 5}),
            write("share", {"action": COMMIT, "expected": DIGEST, "total": 5, "offset": 5, "labels": {"mine": "1"}}),
            call("Content.Info", digest=DIGEST),
            call("Content.Info", digest=DIGEST, ns="{other}"),
            call("Content.Delete", digest=DIGEST, ns="{other}"),
            _read(),
        ],
    ),
    Program(
        "content: a blob of another namespace, with another total",
        [
            blob(HELLO, ns="{other}"),
            write("t", {"action": STAT, "expected": DIGEST, "total": 7}),
            call("Content.Status", ref="t"),
        ],
    ),
    Program(
        "content: a blob of another namespace that is written all the same",
        [
            blob(HELLO, ns="{other}"),
            write("w", {"action": COMMIT, "data": HELLO, "expected": DIGEST, "total": 5}),
            call("Content.Info", digest=DIGEST),
        ],
    ),
    Program(
        "content: a blob of another namespace that is sent anew",
        [
            blob(HELLO, ns="{other}"),
            write(
                "w",
                {"action": STAT, "expected": DIGEST},
                {"action": WRITE, "data": HELLO, "offset": 0},
                {"action": COMMIT, "offset": 5, "expected": DIGEST},
            ),
        ],
    ),
    Program(
        "content: a blob of another namespace that is continued",
        [
            blob(HELLO, ns="{other}"),
            write(
                "w",
                {"action": STAT, "expected": DIGEST},
                {"action": WRITE, "data": b" you", "offset": 5},
                {"action": COMMIT, "offset": 9, "expected": digest(b"hello you")},
            ),
        ],
    ),
    Program(
        "content: one writer per ref",
        [
            open_stream("first", "Content.Write", ref="ref", action=WRITE, data=b"ab"),
            write("ref", {"action": STAT}),
            write("ref", {"action": STAT, "expected": NONE}),
            call("Content.Status", ref="ref"),
            write("ref", {"action": WRITE, "data": b"c"}, ns="{other}"),
            more("first", "Content.Write", action=WRITE, offset=2, data=b"cd"),
            call("Content.ListStatuses"),
            end_stream("first", "Content.Write"),
            write("ref", {"action": STAT}),
            write("ref", {"action": COMMIT, "offset": 4}),
        ],
    ),
    Program(
        "content: aborts",
        [
            call("Content.Abort"),
            call("Content.Abort", ref="none"),
            write("ref", {"action": WRITE, "data": b"ab"}),
            call("Content.Abort", ref="ref"),
            call("Content.Abort", ref="ref"),
            call("Content.Status", ref="ref"),
            write("ref", {"action": STAT}),
        ],
    ),
    Program(
        "content: statuses",
        [
            call("Content.Status"),
            call("Content.Status", ref="none"),
            call("Content.ListStatuses"),
            write("ref-b", {"action": WRITE, "data": b"ab", "total": 5}),
            write("ref-a", {"action": WRITE, "data": b"abc", "expected": NONE}),
            call("Content.Status", ref="ref-a"),
            call("Content.Status", ref="ref-b"),
            call("Content.ListStatuses", sort=True),
            call("Content.ListStatuses", filters=["ref==ref-a"]),
            call("Content.ListStatuses", filters=["ref~=^ref-"], sort=True),
            call("Content.ListStatuses", filters=["total==5"]),
            call("Content.ListStatuses", filters=["ref==none"]),
            call("Content.ListStatuses", filters=["ref="]),
        ],
    ),
    Program(
        "content: refs",
        [
            write(ref, {"action": WRITE, "data": b"x"})
            for ref in (" ", "a/b", "../../x", "ä", "with\nnewline", "x" * 300, "a\x00b")
        ]
        + [call("Content.ListStatuses", sort=True)],
    ),
    Program(
        "content: order of lists",
        [
            *_hold(),
            *(blob(bytes([index]), lease="hold") for index in range(8)),
            call("Content.List", sort=True),
            call("Content.List", filters=[f"digest=={digest(bytes([3]))}"]),
        ],
    ),
    Program(
        "content: ingests and leases",
        [
            *_hold(),
            write("held", {"action": WRITE, "data": b"x"}, lease="hold"),
            call("Leases.ListResources", id="hold"),
            write("free", {"action": WRITE, "data": b"x"}),
            write("bad", {"action": WRITE, "data": b"x"}, lease="none"),
            call("Content.Abort", ref="held", lease="hold"),
            call("Leases.ListResources", id="hold"),
            write("held2", {"action": COMMIT, "data": b"y"}, lease="hold"),
            call("Leases.ListResources", id="hold"),
            blob(HELLO),
            write("known", {"action": STAT, "expected": DIGEST}, lease="hold"),
            call("Leases.ListResources", id="hold"),
        ],
    ),
    Program(
        "content: other algorithms",
        [
            write("s512", {"action": COMMIT, "data": HELLO, "expected": "sha512:" + "0" * 128}),
            write("s384", {"action": STAT, "expected": "sha384:" + "0" * 96}),
            write("md5", {"action": STAT, "expected": "md5:" + "0" * 32}),
            write("short", {"action": STAT, "expected": "sha256:12"}),
            call("Content.ListStatuses", sort=True),
        ],
    ),
]
