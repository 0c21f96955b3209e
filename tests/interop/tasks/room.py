"""Where a test makes its containers, and what it hears of them."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.field_mask_pb2 import FieldMask

import orlop
from orlop.api.events import namespace_pb2
from orlop.api.services.containers.v1 import containers_pb2
from orlop.api.types.runc.options.oci_pb2 import Options
from orlop.client.channel import drive
from orlop.client.containers import UPDATE

if TYPE_CHECKING:
    from tests.interop.tasks.conftest import Stand

Spec = dict[str, Any]  # JSON


class Room:
    """A client's namespace on a stand."""

    def __init__(self, client: orlop.Client, stand: "Stand", directory: Path) -> None:
        self.client = client
        self.stand = stand
        self.directory = directory
        self.image = client.images.list()[0].name

    def container(
        self,
        *args: str,
        name: str = "c",
        options: Options | None = None,
        change: Callable[[Spec], None] | None = None,
        **more: Any,
    ) -> orlop.Container:
        """A container that runs `args`; `change` has the spec in its hands before it is stored."""
        packed = (
            PackedAny(type_url=Options.DESCRIPTOR.full_name, value=options.SerializeToString()) if options else None
        )
        wishes = orlop.SpecOptions(args=args, **more)
        made = self.client.new_container(name, self.image, wishes, runtime=self.stand.runtime, runtime_options=packed)
        if change is None:
            return made
        spec = json.loads(made.record.spec)
        change(spec)
        container = containers_pb2.Container(id=name)
        container.spec.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
        container.spec.value = json.dumps(spec).encode()
        mask = FieldMask(paths=["spec"])
        request = containers_pb2.UpdateContainerRequest(container=container, update_mask=mask)
        drive(self.client.session.call(UPDATE, request))
        return self.client.containers.get(name)

    def run(self, *args: str, **more: Any) -> tuple[int, str, str]:
        """Run to the end: code, stdout, stderr."""
        output = orlop.Capture(directory=str(self.directory))
        with self.container(*args, **more) as container, container.new_task(output) as task:
            task.start()
            code = task.wait().code
            task.delete()
        return code, bytes(output.stdout).decode(), bytes(output.stderr).decode()

    def start(self, *args: str, **more: Any) -> orlop.Task:
        task = self.container(*args, **more).new_task()
        task.start()
        return task

    def exec(self, task: orlop.Task, *args: str, exec_id: str = "e", **more: Any) -> tuple[int, str]:
        """Run an exec to its end: code and stdout."""
        output = orlop.Capture(directory=str(self.directory))
        process = json.loads(self.client.containers.get(task.container_id).exec_spec(list(args))) | more
        with task.exec(exec_id, json.dumps(process).encode(), io=output) as made:
            made.start()
            code = made.wait().code
            made.delete()
        return code, bytes(output.stdout).decode()


class Listener:
    """The events of tasks in the test's namespace, in order; begins to listen before it is returned."""

    def __init__(self, client: orlop.Client) -> None:
        self.seen: list[tuple[str, Any]] = []
        self._events = client.subscribe([f"namespace=={client.namespace}"])
        self._changed = threading.Condition()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._listen, args=(ready,))
        self._thread.start()
        while not ready.wait(0.05):
            client.publish("/test/marker", namespace_pb2.NamespaceCreate(name="marker"))

    def _listen(self, ready: threading.Event) -> None:
        for event in self._events:
            ready.set()
            if event.topic == "/test/end":
                return
            if event.topic.startswith("/tasks/"):
                with self._changed:
                    self.seen.append((event.topic.removeprefix("/tasks/"), event.message))
                    self._changed.notify_all()

    def until(self, condition: Callable[[list[tuple[str, Any]]], object]) -> list[tuple[str, Any]]:
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.seen), 30), [topic for topic, _event in self.seen]
            return list(self.seen)

    def close(self, client: orlop.Client) -> None:
        client.publish("/test/end", namespace_pb2.NamespaceCreate(name="end"))
        self._thread.join()
        self._events.close()
