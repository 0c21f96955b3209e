"""Snapshots: the rules of keys, names, parents and kinds; labels; leases."""

from typing import Any, Final

from tests.interop.api.steps import Program, Step, call, mask

N: Final = "native"


def _snapshot(method: str, snapshotter: str = N, **fields: Any) -> Step:
    return call(f"Snapshots.{method}", snapshotter=snapshotter, **fields)


def _base(snapshotter: str = N) -> list[Step]:
    """A committed snapshot `base`, held by the lease `hold`."""
    return [
        call("Leases.Create", id="hold"),
        call("Snapshots.Prepare", snapshotter=snapshotter, key="making", lease="hold"),
        call("Snapshots.Commit", snapshotter=snapshotter, key="making", name="base", lease="hold"),
    ]


def _update(*paths: str, name: str = "base", **labels: str) -> Step:
    return _snapshot("Update", info={"name": name, "labels": labels}, update_mask=mask(*paths))


PROGRAMS: Final = [
    *(
        Program(
            f"snapshots: a life on {snapshotter}",
            [
                _snapshot("Stat", snapshotter, key="a"),
                _snapshot("Prepare", snapshotter, key="a", labels={"x": "1", "e": "", "containerd.io/snapshot/y": "2"}),
                _snapshot("Prepare", snapshotter, key="a"),
                _snapshot("View", snapshotter, key="a"),
                _snapshot("Stat", snapshotter, key="a"),
                _snapshot("Mounts", snapshotter, key="a"),
                _snapshot("Commit", snapshotter, key="a", name="one", labels={"y": "2"}),
                _snapshot("Stat", snapshotter, key="a"),
                _snapshot("Stat", snapshotter, key="one"),
                _snapshot("Mounts", snapshotter, key="one", note="of a committed one"),
                _snapshot("Prepare", snapshotter, key="b", parent="one"),
                _snapshot("View", snapshotter, key="v", parent="one"),
                _snapshot("Mounts", snapshotter, key="b"),
                _snapshot("Mounts", snapshotter, key="v"),
                _snapshot("Commit", snapshotter, key="b", name="two"),
                _snapshot("Prepare", snapshotter, key="c", parent="two"),
                _snapshot("View", snapshotter, key="w", parent="two"),
                _snapshot("List", snapshotter),
                _snapshot("Remove", snapshotter, key="one", note="of a parent"),
                *(_snapshot("Remove", snapshotter, key=key) for key in ("w", "c", "two", "v", "one", "one")),
                _snapshot("List", snapshotter),
            ],
        )
        for snapshotter in (N, "overlayfs")
    ),
    Program(
        "snapshots: snapshotters that are none",
        [
            call(f"Snapshots.{method}", snapshotter=name, **fields)
            for name in ("", "none", "a/b")
            for method, fields in (
                ("Prepare", {"key": "a"}),
                ("View", {"key": "a"}),
                ("Mounts", {"key": "a"}),
                ("Commit", {"key": "a", "name": "b"}),
                ("Remove", {"key": "a"}),
                ("Stat", {"key": "a"}),
                ("Update", {"info": {"name": "a"}}),
                ("List", {}),
                ("Usage", {"key": "a"}),
                ("Cleanup", {}),
            )
        ],
    ),
    Program(
        "snapshots: namespaces that are none",
        [
            call("Snapshots.Prepare", ns="", snapshotter=N, key="a"),
            call("Snapshots.View", ns="", snapshotter=N, key="a"),
            call("Snapshots.Mounts", ns="", snapshotter=N, key="a"),
            call("Snapshots.Commit", ns="", snapshotter=N, key="a", name="b"),
            call("Snapshots.Remove", ns="", snapshotter=N, key="a"),
            call("Snapshots.Stat", ns="", snapshotter=N, key="a"),
            call("Snapshots.Update", ns="", snapshotter=N, info={"name": "a"}),
            call("Snapshots.List", ns="", snapshotter=N),
            call("Snapshots.Usage", ns="", snapshotter=N, key="a"),
            call("Snapshots.Cleanup", ns="", snapshotter=N),
            call("Snapshots.Prepare", ns="a b", snapshotter=N, key="a"),
        ],
    ),
    Program(
        "snapshots: what is missing",
        [
            _snapshot("Prepare"),
            _snapshot("View"),
            _snapshot("Mounts"),
            _snapshot("Commit"),
            _snapshot("Remove"),
            _snapshot("Stat"),
            _snapshot("Update", info={}),
            _snapshot("Usage"),
            _snapshot("Prepare", key="a", parent="none"),
            _snapshot("View", key="a", parent="none"),
            _snapshot("Mounts", key="none"),
            _snapshot("Commit", key="none", name="x"),
            _snapshot("Remove", key="none"),
            _snapshot("Update", info={"name": "none"}),
            _snapshot("Update", info={"name": "none"}, update_mask=mask("labels.x")),
            _snapshot("Usage", key="none"),
        ],
    ),
    Program(
        "snapshots: names",
        [_snapshot("Prepare", key=key) for key in (" ", "a/b", "../x", "ä", "with\nnewline", "x" * 300)]
        + [_snapshot("List"), _snapshot("Commit", key=" ", name=""), _snapshot("Commit", key=" ", name="a/b")],
    ),
    Program(
        "snapshots: parents that cannot be",
        [
            *_base(),
            _snapshot("Prepare", key="active", parent="base"),
            _snapshot("Prepare", key="x", parent="active"),
            _snapshot("View", key="x", parent="active"),
            _snapshot("View", key="view", parent="base"),
            _snapshot("Prepare", key="x", parent="view"),
            _snapshot("Prepare", key="base"),
            _snapshot("View", key="base"),
            _snapshot("Prepare", key="base", parent="none"),
            _snapshot("Prepare", key="self", parent="self"),
        ],
    ),
    Program(
        "snapshots: commits that cannot be",
        [
            *_base(),
            _snapshot("View", key="view", parent="base"),
            _snapshot("Prepare", key="active", parent="base"),
            _snapshot("Commit", key="view", name="x"),
            _snapshot("Commit", key="base", name="x"),
            _snapshot("Commit", key="none", name="x"),
            _snapshot("Commit", key="active", name="base"),
            _snapshot("Commit", key="active", name="view"),
            _snapshot("Commit", key="active", name=""),
            _snapshot("Commit", key="active", name="labelled", labels={"k": "v" * 4096}),
            _snapshot("Commit", key="active", name="active"),
            _snapshot("List"),
        ],
    ),
    Program(
        "snapshots: labels' sizes",
        [
            _snapshot("Prepare", key="one", labels={"k": "v" * 4096}),
            _snapshot("View", key="one", labels={"k": "v" * 4096}),
            _snapshot("Prepare", key="one", labels={"k": "v" * 4095}),
            _snapshot("Update", info={"name": "one", "labels": {"k": "v" * 4096}}),
            _update("labels.k", name="one", k="v" * 4096),
            _snapshot("Prepare", key="two", labels={"": "v"}),
        ],
    ),
    Program(
        "snapshots: update by masks",
        [
            *_base(),
            _snapshot("Update", info={"name": "base", "labels": {"a": "1", "b": "2"}}),
            _update("labels.a", a="9", c="not named"),
            _update("labels.a"),
            _update("labels.d.e", **{"d.e": "1"}),
            _update("labels", only="this"),
            _update("labels.x", "labels.y", x="1", y="2"),
            _update("labels"),
            _update("labels.containerd.io/snapshot/x", **{"containerd.io/snapshot/x": "1"}),
            _update("name"),
            _update("parent"),
            _update("kind"),
            _update("nonsense"),
            _update("labels.a", "nonsense", a="1"),
            _update(""),
            _snapshot("Update", info={"name": "base", "parent": "x", "kind": 1, "labels": {"n": "1"}}),
            _snapshot("Update", info={"name": "base"}),
            _snapshot("Stat", key="base"),
        ],
    ),
    Program(
        "snapshots: namespaces are apart",
        [
            *_base(),
            call("Snapshots.Stat", snapshotter=N, key="base", ns="{other}"),
            call("Snapshots.Prepare", snapshotter=N, key="x", parent="base", ns="{other}"),
            call("Snapshots.Prepare", snapshotter=N, key="base", ns="{other}"),
            call("Snapshots.Remove", snapshotter=N, key="base", ns="{other}"),
            call("Snapshots.List", snapshotter=N, ns="{other}"),
        ],
    ),
    Program(
        "snapshots: leases",
        [
            call("Leases.Create", id="hold"),
            call("Snapshots.Prepare", snapshotter=N, key="x", lease="none"),
            call("Snapshots.Prepare", snapshotter=N, key="x", lease="hold"),
            call("Snapshots.Prepare", snapshotter=N, key="x", lease="hold", note="again"),
            call("Leases.ListResources", id="hold"),
            call("Snapshots.Commit", snapshotter=N, key="x", name="y", lease="none"),
            call("Snapshots.Commit", snapshotter=N, key="x", name="y", lease="hold"),
            call("Leases.ListResources", id="hold"),
            call("Snapshots.View", snapshotter=N, key="v", parent="y", lease="hold"),
            call("Snapshots.Remove", snapshotter=N, key="v", lease="hold"),
            call("Leases.ListResources", id="hold"),
            call("Snapshots.Remove", snapshotter=N, key="y", lease="none"),
            call("Leases.ListResources", id="hold"),
            call("Snapshots.Prepare", snapshotter=N, key="z"),
            call("Snapshots.Commit", snapshotter=N, key="z", name="zz", lease="hold"),
            call("Leases.ListResources", id="hold"),
        ],
    ),
    Program(
        "snapshots: targets that are there",
        [
            *_base(),
            _snapshot("Prepare", key="t", labels={"containerd.io/snapshot.ref": "base"}),
            call(
                "Snapshots.Prepare",
                snapshotter=N,
                key="t",
                labels={"containerd.io/snapshot.ref": "base"},
                lease="hold",
                note="with a lease",
            ),
            _snapshot("Prepare", key="t", labels={"containerd.io/snapshot.ref": "other"}),
            _snapshot("Stat", key="t"),
            _snapshot("View", key="u", labels={"containerd.io/snapshot.ref": "base"}),
            call("Leases.ListResources", id="hold"),
        ],
    ),
    Program(
        "snapshots: usage",
        [
            *_base(),
            _snapshot("Usage", key="base", note="of an empty one"),
            _snapshot("View", key="v", parent="base"),
            _snapshot("Usage", key="v"),
        ],
    ),
    Program(
        "snapshots: cleanup",
        [_snapshot("Cleanup"), _snapshot("Prepare", key="a"), _snapshot("Cleanup"), _snapshot("Stat", key="a")],
    ),
    Program(
        "snapshots: many, in order",
        [
            *(_snapshot("Prepare", key=f"k{index % 7}{index}") for index in range(25)),
            call("Snapshots.List", snapshotter=N, sort=True),
            call("Snapshots.List", snapshotter=N, filters=["name~=k1"], sort=True),
        ],
    ),
]
