"""Namespaces kept apart where things run: random programs of tasks, execs, sandboxes, mounts, transfers and streams.

As in `test_isolation`: what one namespace is answered while another one does the same under the same names is what it
is answered alone, and so are the events of it that a subscriber hears.
"""

import contextlib
import hashlib
import io
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import orlop
from orlop.base.errdefs import OrlopError
from orlop.client.connect import Transport
from orlop.client.io import NullIO
from orlop.core.transfer.ends import ImageExportStream, ImageImportStream, ImageStore
from tests.integration.actors import Actor, Place
from tools.daemons import Orlopd

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

NAMES = ("a", "b")
KILL = int(signal.SIGKILL)
BEGIN, END = "begin", "end"
WHO = ("alone", "mine", "other")
BOUND = ("full", "run")
DOORS: tuple[Transport, ...] = ("ttrpc", "grpc")
WAYS = (*DOORS, *BOUND)


class Runner(Actor):
    """An actor that runs things; what is in its namespace is removed after each program, the image stays."""

    def __init__(self, place: Place, archive: Path) -> None:
        super().__init__(place)
        with open(archive, "rb") as opened:
            [image] = self.client.import_(opened)
        self.image_name, self.archive = image.name, archive
        image.unpack()
        self.client.leases.create("held")

    def steps(self) -> Mapping[str, Callable[[Any, str, int], object]]:
        return STEPS

    def clean(self) -> None:
        with orlop.Client(self.place.root, self.namespace, timeout_s=60) as client:
            for state in client.tasks():
                client.task(state.container_id).delete(force=True)
            for container in client.containers.list():
                container.delete()
            for activation in client.mounts.list():
                client.mounts.deactivate(activation.name)
            for sandbox in client.sandboxes.list():
                with contextlib.suppress(OrlopError):
                    sandbox.stop()
                sandbox.delete()
            for image in client.images.list():
                if image.name != self.image_name:
                    image.delete(synchronous=True)
            for one in client.snapshots("native").list():
                client.snapshots("native").remove(one.name)

    def plain(self, text: str) -> str:
        text = re.sub(r"pid=\d+", "pid=N", text)
        text = re.sub(r"/tmp/[^ '\"]*", "PATH", text)
        return super().plain(text)

    # ---- steps that need more than a line

    def create(self, name: str, _number: int) -> object:
        options = orlop.SpecOptions(args=("sh", "-c", f"echo {name}; exec sleep 1000"))
        return self.client.new_container(name, self.image_name, options).id

    def new_task(self, name: str, _number: int) -> object:
        return self.client.containers.get(name).new_task(NullIO()).container_id

    def bring(self, name: str, _number: int) -> object:
        with open(self.archive, "rb") as opened:
            self.client.transfer(ImageImportStream(source=opened), ImageStore(name=f"tag-{name}"))
        return self.client.images.get(f"tag-{name}").target

    def exec(self, name: str, number: int) -> object:
        container = self.client.containers.get(name)
        spec = container.exec_spec(("sh", "-c", f"exit {number}"))
        with self.client.task(name).exec(f"e{number}", spec, io=NullIO()) as process:
            process.start()
            return process.wait().code

    def kill(self, name: str, _number: int) -> object:
        task = self.client.task(name)
        task.kill(KILL)
        return task.wait().code

    def export(self, _name: str, _number: int) -> object:
        target = io.BytesIO()
        self.client.transfer(ImageStore(name=self.image_name), ImageExportStream(target=Written(target)))
        return hashlib.sha256(target.getvalue()).hexdigest()

    def activate(self, name: str, _number: int) -> object:
        """A directory made in a snapshot of one's own, which the daemon does."""
        with contextlib.suppress(OrlopError):
            self.client.snapshots("native").prepare(name, labels={"containerd.io/gc.root": "yes"})
        [mount] = self.client.snapshots("native").mounts(name)
        made = replace(
            mount, type="mkdir/bind", options=(*mount.options, f"X-containerd.mkdir.path={mount.source}/made")
        )
        # Held by a lease: what nothing holds any collection may take, also one that another namespace asks for.
        return self.client.with_lease("held").mounts.activate(name, [made], temporary=True)


class Written:
    """A sink of an export."""

    def __init__(self, target: io.BytesIO) -> None:
        self._target = target

    async def write(self, data: bytes) -> None:
        self._target.write(data)

    async def close(self) -> None:
        pass


STEPS: dict[str, Callable[[Runner, str, int], object]] = {
    "containers.new": Runner.create,
    "containers.delete": lambda a, name, _n: a.client.containers.get(name).delete(),
    "tasks.create": Runner.new_task,
    "tasks.start": lambda a, name, _n: bool(a.client.task(name).start()),
    "tasks.exec": Runner.exec,
    "tasks.kill": Runner.kill,
    "tasks.pause": lambda a, name, _n: a.client.task(name).pause(),
    "tasks.resume": lambda a, name, _n: a.client.task(name).resume(),
    "tasks.state": lambda a, name, _n: a.client.task(name).state().status,
    "tasks.list": lambda a, _name, _n: sorted((one.container_id, one.status) for one in a.client.tasks()),
    "tasks.pids": lambda a, name, _n: bool(a.client.task(name).pids()),
    "tasks.metrics": lambda a, name, _n: a.client.task(name).metrics().id,
    "tasks.delete": lambda a, name, _n: a.client.task(name).delete(force=True).code,
    "sandboxes.create": lambda a, name, _n: a.client.sandboxes.create(f"s-{name}", b"{}").id,
    "sandboxes.start": lambda a, name, _n: bool(a.client.sandboxes.get(f"s-{name}").start()),
    "sandboxes.status": lambda a, name, _n: a.client.sandboxes.get(f"s-{name}").status().state,
    "sandboxes.stop": lambda a, name, _n: a.client.sandboxes.get(f"s-{name}").stop(),
    "sandboxes.delete": lambda a, name, _n: a.client.sandboxes.get(f"s-{name}").delete(),
    "mounts.activate": Runner.activate,
    "mounts.get": lambda a, name, _n: a.client.mounts.get(name),
    "mounts.list": lambda a, _name, _n: a.client.mounts.list(),
    "mounts.deactivate": lambda a, name, _n: a.client.mounts.deactivate(name),
    "transfer.tag": lambda a, name, _n: a.client.transfer(
        ImageStore(name=a.image_name), ImageStore(name=f"tag-{name}")
    ),
    "transfer.import": Runner.bring,
    "transfer.export": Runner.export,
    "images.delete": lambda a, name, _n: a.client.images.delete(f"tag-{name}", synchronous=True),
    "images.list": lambda a, _name, _n: sorted(one.name for one in a.client.images.list()),
}
STEP = st.tuples(st.sampled_from(sorted(STEPS)), st.sampled_from(NAMES), st.integers(0, 2))
# What a program begins with, so that there is something to do with tasks.
FIRST = [(step, "a", 1) for step in ("containers.new", "tasks.create", "tasks.start", "sandboxes.create")]


@contextlib.contextmanager
def heard(runner: Runner) -> Iterator[list[tuple[str, str]]]:
    """Topic and type of the namespace's events while this lasts, sorted and complete when it is left."""
    events: list[tuple[str, str]] = []
    begun = threading.Event()

    def listen() -> None:
        with runner.place.connect() as client:
            for event in client.subscribe([f"namespace=={runner.namespace}"]):
                name = getattr(event.message, "name", "")
                begun.set()
                if name == END and event.topic == "/images/delete":
                    return
                if name not in (BEGIN, END):
                    events.append((event.topic, event.type_url))

    thread = threading.Thread(target=listen)
    thread.start()
    while not begun.wait(0.02):  # only what comes after the subscription is heard
        mark(runner, BEGIN)
    try:
        yield events
    finally:
        mark(runner, END)
        thread.join(60)
        assert not thread.is_alive()
        events.sort()


def mark(runner: Runner, name: str) -> None:
    with orlop.Client(runner.place.root, runner.namespace, timeout_s=60) as client:
        client.images.create(name, client.images.get(runner.image_name).target)
        client.images.delete(name)


@pytest.fixture(scope="module")
def runners(short_directory, busybox_image):
    """Runners by way and who; a daemon that collects only when it is told to."""
    home = Path(tempfile.mkdtemp(prefix="i.", dir=short_directory))
    sockets = "".join(
        f'[sockets.{role}-{who}]\naddress = "{home}/{role}-{who}"\nnamespace = "{role}-{who}"\nrole = "{role}"\n'
        for role in BOUND
        for who in WHO
    )
    config = f'[plugins."io.containerd.gc.v1.scheduler"]\nmutation_threshold = 0\n{sockets}'
    with contextlib.ExitStack() as stack:
        root = str(stack.enter_context(Orlopd(home, config=config)).address)
        made = {}
        for who in WHO:
            places = {way: Place(f"{way}-{who}", root, f"{home}/{way}-{who}") for way in BOUND}
            places |= {way: Place(f"{way}-{who}", root, root, way) for way in DOORS}
            for way, place in places.items():
                made[way, who] = stack.enter_context(contextlib.closing(Runner(place, busybox_image.archive)))
        yield made


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=2, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(program=st.lists(st.tuples(st.booleans(), STEP), min_size=15, max_size=30))
def test_what_runs_in_another_namespace_changes_no_answer(runners, way, program):
    alone, mine, other = (runners[way, who] for who in WHO)
    program = [(theirs, step) for step in FIRST for theirs in (True, False)] + program
    try:
        with heard(alone) as expected_events:
            expected = [alone.act(step) for theirs, step in program if not theirs]
            alone.clean()
        found = []
        with heard(mine) as events:
            for theirs, step in program:
                answer = (other if theirs else mine).act(step)
                if not theirs:
                    found.append(answer)
            mine.clean()
        assert found == expected
        assert events == expected_events
    finally:
        for runner in (alone, mine, other):
            runner.clean()
