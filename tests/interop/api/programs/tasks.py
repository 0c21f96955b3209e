"""Tasks without any that runs: what is asked for that is not there."""

from typing import Any, Final

from tests.interop.api.steps import Program, Step, call, container

METHODS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("Create", {}),
    ("Start", {}),
    ("Delete", {}),
    ("DeleteProcess", {"exec_id": "e"}),
    ("Get", {}),
    ("Kill", {"signal": 9}),
    ("Exec", {"exec_id": "e"}),
    ("ResizePty", {"width": 1, "height": 1}),
    ("CloseIO", {"stdin": True}),
    ("Pause", {}),
    ("Resume", {}),
    ("ListPids", {}),
    ("Checkpoint", {}),
    ("Update", {}),
    ("Wait", {}),
)


def _all(container_id: str, ns: str = "{ns}", **extra: Any) -> list[Step]:
    return [call(f"Tasks.{name}", ns=ns, container_id=container_id, **{**fields, **extra}) for name, fields in METHODS]


PROGRAMS: Final = [
    Program("tasks: of no container", _all("none")),
    Program("tasks: without an id", _all("")),
    Program(
        "tasks: without a namespace", [*_all("one", ns=""), call("Tasks.List", ns=""), call("Tasks.Metrics", ns="")]
    ),
    Program("tasks: in a namespace that is none", [*_all("one", ns="a b"), call("Tasks.List", ns="a b")]),
    Program(
        "tasks: of a container without one",
        [
            call("Containers.Create", container=container("one")),
            *(step for step in _all("one") if step.method not in {"Tasks.Create"}),
            call("Tasks.List"),
            call("Tasks.Metrics"),
            call("Tasks.Start", container_id="one", exec_id="e"),
            call("Tasks.Get", container_id="one", exec_id="e"),
            call("Tasks.Exec", container_id="one"),
        ],
    ),
    Program(
        "tasks: runtimes that are none",
        [
            call("Containers.Create", container=container("one", runtime={"name": "io.containerd.none.v9"})),
            call("Tasks.Create", container_id="one"),
            call("Containers.Create", container=container("two", runtime={"name": "nonsense"})),
            call("Tasks.Create", container_id="two"),
            call("Containers.Create", container=container("three", runtime={"name": "/no/such/shim"})),
            call("Tasks.Create", container_id="three"),
            call("Tasks.List"),
        ],
    ),
]
