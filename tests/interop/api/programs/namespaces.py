"""Namespaces: made by hand and by use, labelled, removed when empty."""

from typing import Final

from tests.interop.api.programs.containers import IDS
from tests.interop.api.steps import HELLO, WRITE, Program, Step, blob, call, container, image, mask, write


def _update(*paths: str, **labels: str) -> Step:
    return call("Namespaces.Update", namespace={"name": "{ns}", "labels": labels}, update_mask=mask(*paths))


PROGRAMS: Final = [
    Program(
        "namespaces: a life",
        [
            call("Namespaces.Get", name="{ns}"),
            call("Namespaces.Create", namespace={"name": "{ns}", "labels": {"a": "1", "e": ""}}),
            call("Namespaces.Create", namespace={"name": "{ns}"}),
            call("Namespaces.Get", name="{ns}"),
            call("Namespaces.Delete", name="{ns}"),
            call("Namespaces.Delete", name="{ns}"),
            call("Namespaces.Get", name="{ns}"),
        ],
    ),
    Program(
        "namespaces: no header is needed",
        [
            call("Namespaces.Create", namespace={"name": "{ns}"}, ns=""),
            call("Namespaces.Get", name="{ns}", ns=""),
            call("Namespaces.Update", namespace={"name": "{ns}", "labels": {"a": "b"}}, ns=""),
            call("Namespaces.Delete", name="{ns}", ns=""),
        ],
    ),
    Program(
        "namespaces: names",
        [call("Namespaces.Create", namespace={"name": one}) for one in IDS if one not in {"a", "A-b_c.d", "x" * 76}]
        + [call("Namespaces.Get", name=one) for one in IDS]
        + [call("Namespaces.Delete", name=one) for one in IDS if one not in {"a"}]
        + [call("Namespaces.Update", namespace={"name": one}) for one in ("", "a/b", "x" * 77)],
    ),
    Program(
        "namespaces: update by masks",
        [
            call("Namespaces.Create", namespace={"name": "{ns}", "labels": {"a": "1", "b": "2"}}),
            _update("labels.a", a="9", c="not named"),
            _update("labels.a"),
            _update("labels.d.e", **{"d.e": "1"}),
            _update("labels", x="1"),
            _update("labels.x", "labels.y", x="1", y="2"),
            _update("name"),
            _update("", x="1"),
            _update("labels."),
            call("Namespaces.Get", name="{ns}"),
        ],
    ),
    Program(
        "namespaces: update without a mask",
        [
            call("Namespaces.Create", namespace={"name": "{ns}", "labels": {"a": "1", "b": "2"}}),
            call("Namespaces.Update", namespace={"name": "{ns}", "labels": {"b": "3", "c": "4"}}),
            call("Namespaces.Get", name="{ns}"),
            call("Namespaces.Update", namespace={"name": "{ns}"}),
            call("Namespaces.Get", name="{ns}"),
            call("Namespaces.Update", namespace={"name": "{other}", "labels": {"made": "by update"}}),
            call("Namespaces.Get", name="{other}"),
        ],
    ),
    Program(
        "namespaces: labels' sizes",
        [
            call("Namespaces.Create", namespace={"name": "{ns}", "labels": {"k": "v" * 4096}}),
            call("Namespaces.Create", namespace={"name": "{ns}", "labels": {"": "v"}}),
            call("Namespaces.Create", namespace={"name": "{other}", "labels": {"k": "v" * 4095}}),
            call("Namespaces.Update", namespace={"name": "{other}", "labels": {"k": "v" * 4096}}),
            call(
                "Namespaces.Update",
                namespace={"name": "{other}", "labels": {"k": "v" * 4096}},
                update_mask=mask("labels.k"),
            ),
        ],
    ),
    Program(
        "namespaces: not while a container is there",
        [
            call("Containers.Create", container=container("one")),
            call("Namespaces.Get", name="{ns}"),
            call("Namespaces.Delete", name="{ns}"),
            call("Containers.Delete", id="one"),
            call("Namespaces.Delete", name="{ns}"),
        ],
    ),
    Program(
        "namespaces: not while an image is there",
        [
            call("Images.Create", image=image("one")),
            call("Namespaces.Delete", name="{ns}"),
            call("Images.Delete", name="one"),
            call("Namespaces.Delete", name="{ns}"),
        ],
    ),
    Program(
        "namespaces: not while anything is there",
        [
            call("Leases.Create", id="hold"),
            blob(HELLO, lease="hold"),
            call("Snapshots.Prepare", snapshotter="native", key="one", lease="hold"),
            call("Snapshots.Prepare", snapshotter="overlayfs", key="one", lease="hold"),
            call("Images.Create", image=image("one")),
            call("Containers.Create", container=container("one")),
            call("Namespaces.Delete", name="{ns}"),
        ],
    ),
    Program(
        "namespaces: leases and ingests do not keep one",
        [
            call("Leases.Create", id="hold"),
            write("ref", {"action": WRITE, "data": HELLO}),
            call("Namespaces.Delete", name="{ns}"),
            call("Namespaces.Get", name="{ns}"),
            call("Leases.List"),
            call("Content.ListStatuses"),
        ],
    ),
]
