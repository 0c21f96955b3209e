"""Containers: validation, what can be changed, masks, lists."""

from typing import Any, Final

from tests.interop.api.steps import SPEC, Program, Step, call, container, mask

OTHER_SPEC: Final = {**SPEC, "value": b'{"ociVersion":"1.1.0"}'}
OPTIONS: Final = {"type_url": "containerd.runc.v1.Options", "value": b"\x08\x01"}
EXTENSION: Final = {"type_url": "example.org/x", "value": b"{}"}
FULL: Final = container(
    "one",
    labels={"a": "1", "b.c/d": "2", "empty": ""},
    image="example.org/image:1",
    snapshotter="native",
    snapshot_key="one",
    extensions={"e1": EXTENSION, "e2": EXTENSION},
    runtime={"name": "io.containerd.runc.v2", "options": OPTIONS},
)
IDS: Final = (
    "",
    "a",
    "A-b_c.d",
    "-a",
    "a-",
    "a..b",
    "a/b",
    "a b",
    "ä",
    "a\n",
    "..",
    "x" * 76,
    "x" * 77,
    "x" * 400,
)


def _update(*paths: str, **fields: Any) -> Step:
    return call("Containers.Update", container={"id": "one", **fields}, update_mask=mask(*paths))


PROGRAMS: Final = [
    Program(
        "containers: a life",
        [
            call("Containers.Get", id="one"),
            call("Containers.Create", container=FULL),
            call("Containers.Get", id="one"),
            call("Containers.List"),
            call("Containers.Delete", id="one"),
            call("Containers.Delete", id="one"),
            call("Containers.Get", id="one"),
            call("Containers.List"),
        ],
    ),
    Program(
        "containers: a second one of the same id",
        [
            call("Containers.Create", container=container("one")),
            call("Containers.Create", container=container("one", labels={"a": "b"})),
            call("Containers.Create", container=container("one"), ns="{other}"),
            call("Containers.Get", id="one"),
        ],
    ),
    Program("containers: ids", [call("Containers.Create", container=container(one)) for one in IDS]),
    Program("containers: get by bad ids", [call("Containers.Get", id=one) for one in IDS]),
    Program(
        "containers: delete by bad ids",
        [
            call("Containers.Create", container=container("other")),
            *(call("Containers.Delete", id=one) for one in IDS),
        ],
    ),
    Program(
        "containers: namespaces that are none",
        [
            call("Containers.List", ns=""),
            call("Containers.List", ns="-a"),
            call("Containers.List", ns="a/b"),
            call("Containers.List", ns="x" * 77),
            call("Containers.Get", ns="", id="one"),
            call("Containers.Create", ns="", container=container("one")),
            call("Containers.Create", ns="a b", container=container("one")),
            call("Containers.Update", ns="", container=container("one")),
            call("Containers.Delete", ns="", id="one"),
            call("Containers.Delete", ns="..", id="one"),
            call("Containers.ListStream", ns=""),
        ],
    ),
    Program(
        "containers: what is missing",
        [
            call("Containers.Create", container={"id": "one"}),
            call("Containers.Create", container={"id": "one", "spec": SPEC}),
            call("Containers.Create", container={"id": "one", "spec": SPEC, "runtime": {}}),
            call("Containers.Create", container={"id": "one", "runtime": {"name": "r"}}),
            call("Containers.Create", container={"id": "one", "runtime": {"name": "r"}, "spec": {}}),
            call("Containers.Create", container=container("two", snapshot_key="k")),
            call("Containers.Create", container=container("three", snapshotter="none")),
            call("Containers.Create", container=container("four", snapshotter="none", snapshot_key="k")),
            call("Containers.Create", container=container("five", extensions={"": EXTENSION})),
            call("Containers.Create", container=container("six", extensions={"x": {}})),
            call("Containers.Get", id="one"),
            call("Containers.Get", id="six"),
        ],
    ),
    Program(
        "containers: labels' sizes",
        [
            call("Containers.Create", container=container("one", labels={"k": "v" * 4095})),
            call("Containers.Create", container=container("two", labels={"k": "v" * 4096})),
            call("Containers.Create", container=container("three", labels={"k" * 4097: ""})),
            call("Containers.Create", container=container("four", labels={"k" * 100: "v" * 4000})),
            call("Containers.Create", container=container("five", labels={"": "v"})),
            call("Containers.Create", container=container("six", labels={"ä" * 2048: "v"})),
            call("Containers.Update", container={"id": "one", "labels": {"k": "v" * 4096}}, update_mask=mask("labels")),
            call(
                "Containers.Update", container={"id": "one", "labels": {"k": "v" * 4096}}, update_mask=mask("labels.k")
            ),
            call("Containers.List"),
        ],
    ),
    Program(
        "containers: update by masks",
        [
            call("Containers.Create", container=FULL),
            _update("labels.a", labels={"a": "9", "x": "not named"}),
            _update("labels.b.c/d", labels={"b.c/d": "8"}),
            _update("labels.new", labels={"new": "1"}),
            _update("labels.a", labels={}),
            _update("labels.a", labels={"a": ""}),
            _update("labels", labels={"only": "this"}),
            _update("labels.", labels={"": "x"}),
            _update("spec", spec=OTHER_SPEC),
            _update("image", image="example.org/image:2"),
            _update("snapshotkey", snapshot_key="two"),
            _update("snapshot_key", snapshot_key="three"),
            _update("snapshotter", snapshotter="overlayfs"),
            _update("runtime", runtime={"name": "other"}),
            _update("runtime.options", runtime={"options": OPTIONS}),
            _update("extensions.e1", extensions={"e1": {"type_url": "example.org/y", "value": b"1"}}),
            _update("extensions.e2"),
            _update("extensions", extensions={"e3": EXTENSION}),
            _update("extensions.e4", extensions={}),
            _update("labels.one", "labels.two", "image", labels={"one": "1", "two": "2"}, image="three"),
            _update("labels.one", "nonsense", labels={"one": "changed"}),
            _update("id"),
            _update(""),
            _update("sandbox", sandbox="x"),
            call("Containers.Get", id="one"),
        ],
    ),
    Program(
        "containers: update without a mask",
        [
            call("Containers.Create", container=FULL),
            call("Containers.Update", container=container("one", labels={"z": "1"})),
            call("Containers.Update", container=container("one", snapshotter="native", labels={"z": "1"})),
            call(
                "Containers.Update",
                container=container("one", snapshotter="native", runtime={"name": "other"}),
            ),
            call("Containers.Update", container=container("one", snapshotter="native", snapshot_key="k", image="i")),
            call("Containers.Get", id="one"),
        ],
    ),
    Program(
        "containers: update without a mask and a spec",
        [
            call("Containers.Create", container=FULL),
            call("Containers.Update", container={"id": "one", "snapshotter": "native"}),
            call(
                "Containers.Update",
                container={"id": "one", "snapshotter": "native", "runtime": {"name": "io.containerd.runc.v2"}},
            ),
        ],
        until=(1, 6),
    ),
    Program(
        "containers: no message at all",
        [
            call("Containers.Create"),
            call("Containers.Create", container={}),
            call("Containers.Update"),
            call("Containers.Update", container={}),
        ],
        until=(1, 6),
    ),
    Program(
        "containers: update of what is not there",
        [
            call("Containers.Create", container=container("other")),
            call("Containers.Update", container={"id": "none"}),
            call("Containers.Update", container=container("none"), update_mask=mask("labels")),
            call("Containers.Update", container=container("none"), update_mask=mask("nonsense")),
            call("Containers.Update", container=container("-none-"), update_mask=mask("labels")),
        ],
    ),
    Program(
        "containers: order of lists",
        [
            *(call("Containers.Create", container=container(one)) for one in ("b", "a", "B", "a-1", "10", "9", "a.b")),
            call("Containers.List"),
            call("Containers.ListStream"),
            call("Containers.ListStream", filters=["id==a"]),
            call("Containers.ListStream", filters=["id="]),
        ],
    ),
    Program(
        "containers: a lease changes nothing",
        [
            call("Containers.Create", container=container("one"), lease="none"),
            call("Containers.Delete", id="one", lease="none"),
        ],
    ),
]
