"""Rows about metadata: eight gRPC clients at once, the same generated ones for both engines.

A client is a process of its own with grpcio, `python -m bench.metadata ADDRESS NAME`, that gets a line of JSON for each
piece of work and answers with one. Answers are not decoded, so that the client's own time stays small; it is stated
beside the rows all the same, and it is the same for both engines.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from bench.pair import Samples, Side, alternate
from tools import daemons, peers

CLIENTS: Final = 8
OBJECTS: Final = 40
"""Of each kind, by each client."""

_SPEC: Final = json.dumps({"ociVersion": "1.0.2", "process": {"args": ["true"], "env": ["A=b"] * 300}}).encode()
_DIGEST: Final = f"sha256:{'0' * 64}"
_TIMEOUT_S: Final = 120


def writes(sides: Sequence[Side], runs: int) -> Samples:
    """Containers, images and leases created, labelled and deleted: milliseconds for all of it."""
    return _measured(sides, runs, ["create", "label", "delete"], [])


def reads(sides: Sequence[Side], runs: int) -> Samples:
    """The same objects listed, and read one by one: milliseconds."""
    return _measured(sides, runs, ["read"], ["create"], ["delete"])


def fill(side: Side, kind: str, count: int) -> None:
    """Make so many containers or images, called `fill-…`; `empty` removes them."""
    with clients(side) as crew:
        crew.run(f"fill-{kind}", -(-count // CLIENTS))


def empty(side: Side, kind: str, count: int) -> None:
    with clients(side) as crew:
        crew.run(f"empty-{kind}", -(-count // CLIENTS))


class Crew:
    """Clients that wait for work."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def run(self, work: str, count: int = OBJECTS) -> float:
        """Have all of them do `work` at once; seconds of CPU that they took themselves.

        Raises:
            RuntimeError: one of them failed.
        """
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps({"work": work, "count": count}) + "\n")
            process.stdin.flush()
        return sum(float(_answer(process)["cpu_s"]) for process in self._processes)


@contextlib.contextmanager
def clients(side: Side, count: int = CLIENTS) -> Iterator[Crew]:
    """Connected clients of one engine."""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_client(side, number)) for number in range(count)]
        for process in processes:
            _answer(process)
        yield Crew(processes)


@contextlib.contextmanager
def _client(side: Side, number: int) -> Iterator[subprocess.Popen[str]]:
    place = (os.fspath(side.engine.address), side.ctr.namespace)
    command = [sys.executable, "-m", "bench.metadata", *place, f"{side.fresh_id()}-{number}"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=peers.ROOT,
        env=daemons.environment(),
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _answer(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a client of the metadata rows ended: {process.stderr.read()}")
    return json.loads(line)


def _measured(
    sides: Sequence[Side], runs: int, timed: Sequence[str], before: Sequence[str], after: Sequence[str] = ()
) -> Samples:
    own = Samples()
    with contextlib.ExitStack() as stack:
        crews = {side.name: stack.enter_context(clients(side)) for side in sides}

        def measure(side: Side) -> float:
            crew = crews[side.name]
            for work in before:
                crew.run(work)
            began = time.perf_counter()
            cpu_s = sum(crew.run(work) for work in timed)
            taken = time.perf_counter() - began
            own.add(side.name, cpu_s * 1e3)
            for work in after:
                crew.run(work)
            return taken * 1e3

        samples = alternate(sides, measure, runs=runs)
    own.forget(len(sides))
    samples.beside["CPU of the clients themselves"] = own
    return samples


# -- the client's process -----------------------------------------------------------------------------------------


class Client:
    """What one client does; every method takes how many objects of a kind."""

    def __init__(self, address: str, namespace: str, name: str) -> None:
        import grpc

        self._name = name
        self._channel = grpc.insecure_channel(
            f"unix:{address}", options=[("grpc.max_receive_message_length", 64 << 20)]
        )
        self._metadata = (("containerd-namespace", namespace),)
        self._calls: dict[str, Callable[..., bytes]] = {}

    def call(self, method: str, request: Any) -> None:
        """Make a unary call of `containers.v1.Containers/Get` and the like; the answer is left as it is."""
        made = self._calls.get(method)
        if made is None:
            made = self._channel.unary_unary(f"/containerd.services.{method}", type(request).SerializeToString)
            self._calls[method] = made
        made(request, metadata=self._metadata, timeout=_TIMEOUT_S)

    def create(self, count: int) -> None:
        self._containers(count, self._name)
        self._images(count, self._name)
        from orlop.api.services.leases.v1 import leases_pb2

        for number in range(count):
            self.call("leases.v1.Leases/Create", leases_pb2.CreateRequest(id=f"{self._name}-{number}"))

    def label(self, count: int) -> None:
        from google.protobuf.field_mask_pb2 import FieldMask

        from orlop.api.services.containers.v1 import containers_pb2
        from orlop.api.services.images.v1 import images_pb2

        mask = FieldMask(paths=["labels.bench"])
        for number in range(count):
            name = f"{self._name}-{number}"
            container = containers_pb2.Container(id=name, labels={"bench": "yes"})
            self.call(
                "containers.v1.Containers/Update",
                containers_pb2.UpdateContainerRequest(container=container, update_mask=mask),
            )
            image = images_pb2.Image(name=name, labels={"bench": "yes"})
            self.call("images.v1.Images/Update", images_pb2.UpdateImageRequest(image=image, update_mask=mask))

    def read(self, count: int) -> None:
        from orlop.api.services.containers.v1 import containers_pb2
        from orlop.api.services.images.v1 import images_pb2
        from orlop.api.services.leases.v1 import leases_pb2

        for number in range(count):
            name = f"{self._name}-{number}"
            self.call("containers.v1.Containers/Get", containers_pb2.GetContainerRequest(id=name))
            self.call("images.v1.Images/Get", images_pb2.GetImageRequest(name=name))
            if number % 8 == 0:
                self.call("containers.v1.Containers/List", containers_pb2.ListContainersRequest())
                self.call("images.v1.Images/List", images_pb2.ListImagesRequest())
                self.call("leases.v1.Leases/List", leases_pb2.ListRequest())

    def delete(self, count: int) -> None:
        from orlop.api.services.containers.v1 import containers_pb2
        from orlop.api.services.images.v1 import images_pb2
        from orlop.api.services.leases.v1 import leases_pb2

        for number in range(count):
            name = f"{self._name}-{number}"
            self.call("containers.v1.Containers/Delete", containers_pb2.DeleteContainerRequest(id=name))
            self.call("images.v1.Images/Delete", images_pb2.DeleteImageRequest(name=name))
            self.call("leases.v1.Leases/Delete", leases_pb2.DeleteRequest(id=name))

    def fill_containers(self, count: int) -> None:
        self._containers(count, self._fill)

    def fill_images(self, count: int) -> None:
        self._images(count, self._fill)

    def empty_containers(self, count: int) -> None:
        from orlop.api.services.containers.v1 import containers_pb2

        for number in range(count):
            request = containers_pb2.DeleteContainerRequest(id=f"{self._fill}-{number}")
            self.call("containers.v1.Containers/Delete", request)

    def empty_images(self, count: int) -> None:
        from orlop.api.services.images.v1 import images_pb2

        for number in range(count):
            self.call("images.v1.Images/Delete", images_pb2.DeleteImageRequest(name=f"{self._fill}-{number}"))

    @property
    def _fill(self) -> str:
        return f"fill-{self._name.rpartition('-')[2]}"

    def _containers(self, count: int, name: str) -> None:
        from google.protobuf.any_pb2 import Any as Packed

        from orlop.api.services.containers.v1 import containers_pb2

        spec = Packed(type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=_SPEC)
        runtime = containers_pb2.Container.Runtime(name="io.containerd.runc.v2")
        for number in range(count):
            container = containers_pb2.Container(
                id=f"{name}-{number}", image="bench", runtime=runtime, spec=spec, labels={"a": "b"}
            )
            request = containers_pb2.CreateContainerRequest(container=container)
            self.call("containers.v1.Containers/Create", request)

    def _images(self, count: int, name: str) -> None:
        from orlop.api.services.images.v1 import images_pb2
        from orlop.api.types import descriptor_pb2

        target = descriptor_pb2.Descriptor(
            media_type="application/vnd.oci.image.manifest.v1+json", digest=_DIGEST, size=1
        )
        for number in range(count):
            image = images_pb2.Image(name=f"{name}-{number}", target=target, labels={"a": "b"})
            self.call("images.v1.Images/Create", images_pb2.CreateImageRequest(image=image))


def main(address: str, namespace: str, name: str) -> None:
    client = Client(address, namespace, name)
    from orlop.api.services.version.v1 import version_pb2  # noqa: F401 - so that importing is no part of the figures

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        work: Callable[[int], None] = getattr(client, order["work"].replace("-", "_"))
        before = resource.getrusage(resource.RUSAGE_SELF)
        work(order["count"])
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps({"cpu_s": cpu_s}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
