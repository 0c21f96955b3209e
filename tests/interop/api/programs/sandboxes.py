"""Records of sandboxes, which containerd has from 1.7 on."""

from typing import Any, Final

from tests.interop.api.steps import Program, Step, call

STORE: Final = "SandboxStore"
SINCE: Final = (1, 7)


def sandbox(sandbox_id: str = "one", *, runtime: str = "io.containerd.runc.v2", **fields: Any) -> dict[str, Any]:
    return {"sandbox_id": sandbox_id, "runtime": {"name": runtime}, **fields}


def _create(*args: str, ns: str = "{ns}", **fields: Any) -> Step:
    return call(f"{STORE}.Create", sandbox=sandbox(*args, **fields), ns=ns)


def _update(*fields: str, **changes: Any) -> Step:
    return call(f"{STORE}.Update", sandbox=sandbox(**changes), fields=list(fields))


def _get(sandbox_id: str = "one") -> Step:
    return call(f"{STORE}.Get", sandbox_id=sandbox_id)


def _delete(sandbox_id: str = "one", *, ns: str = "{ns}") -> Step:
    return call(f"{STORE}.Delete", sandbox_id=sandbox_id, ns=ns)


SPEC: Final = {"type_url": "types.containerd.io/opencontainers/runtime-spec/1/Spec", "value": b"{}"}
EXTENSION: Final = {"type_url": "example.org/x", "value": b"\0\xff"}

PROGRAMS: Final = [
    Program(
        "sandboxes: a life",
        [
            call(f"{STORE}.List"),
            _create(labels={"a": "1", "e": ""}, spec=SPEC, extensions={"x": EXTENSION}),
            _create(),
            _create(ns="{other}"),
            _get(),
            call(f"{STORE}.List"),
            _delete(),
            call(f"{STORE}.List"),
            _delete(ns="{other}"),
        ],
        since=SINCE,
    ),
    Program(
        "sandboxes: ids",
        [
            *(_create(name) for name in ("", "../x", "a/b", "-a", "a_b.c-d", "a" * 76, "a" * 77, "ü")),
            _delete("a_b.c-d"),
            _delete("a" * 76),
        ],
        since=SINCE,
    ),
    Program(
        "sandboxes: what is missing",
        [
            _get("none"),
            _delete("none"),
            _update("labels"),
            _create("other"),
            _get("none"),
            _delete("none"),
            _update("labels"),
            _delete("other"),
        ],
        since=SINCE,
    ),
    Program(
        "sandboxes: update by masks",
        [
            _create(labels={"a": "1", "b": "2"}, extensions={"x": EXTENSION, "y": EXTENSION}, spec=SPEC),
            _update("labels.a", labels={"a": "9", "c": "3"}),
            _update("labels.b", labels={"c": "3"}),
            _update("labels", labels={"d": "4"}),
            _update("extensions.x", extensions={"x": {"type_url": "other"}}),
            _update("spec", spec={"type_url": "new"}),
            _update("runtime", runtime="other"),
            _update("runtime.name", runtime="other"),
            _update("sandboxer"),
            _update("created_at"),
            _update("labels", "nonsense", labels={"lost": "1"}),
            _get(),
            _delete(),
        ],
        since=SINCE,
    ),
    Program(
        "sandboxes: update without a mask",
        [
            _create(labels={"a": "1"}, extensions={"x": EXTENSION}, spec=SPEC),
            _update(runtime="other"),
            _update(labels={"b": "2"}, extensions={"y": EXTENSION}, spec={"type_url": "new"}),
            _get(),
            _delete(),
        ],
        since=SINCE,
    ),
    Program(
        "sandboxes: filters",
        [
            _create("a", labels={"role": "web", "with.dot": "1"}),
            _create("b", labels={"role": "db"}),
            *(
                call(f"{STORE}.List", filters=filters)
                for filters in (
                    ["id==a"],
                    ["id~=^[ab]$"],
                    ["labels.role==web", "id==b"],
                    ["labels.role==web,id==b"],
                    ['labels."with.dot"==1'],
                    ["labels.role"],
                    ["runtime.name==io.containerd.runc.v2"],
                    ["nonsense==1"],
                    ["id,,"],
                )
            ),
            _delete("a"),
            _delete("b"),
        ],
        since=SINCE,
    ),
    Program(
        "sandboxes: they keep their namespace",
        [
            _create(ns="{other}"),
            call("Namespaces.Delete", name="{other}"),
            _delete(ns="{other}"),
            call("Namespaces.Delete", name="{other}"),
        ],
        since=SINCE,
    ),
]
