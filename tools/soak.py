"""Load a daemon for a while and look for what leaks: `make soak MINUTES=20`.

Rounds, until the time is over: many images, content rows and snapshots; a crowd of running containers with waits on all
of them and subscribers, one of whom reads nothing; cycles of create, run and delete by many clients. After each round
everything is deleted. The first round warms up; what the daemon holds after it is compared with what it holds at the
end. Each call has a deadline. Latencies are printed and written to `.soak/`, with the machine, and judged by nobody.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import orlop
from bench import machine
from orlop import aio
from orlop.client.tasks import Task
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor
from tools import host, images, peers
from tools.daemons import Orlopd
from tools.vitals import Vitals, peak_bytes

T = TypeVar("T")

REPORTS: Final = peers.ROOT / ".soak"
NAMESPACE: Final = "soak"
DEADLINE_S: Final = 120.0
"""Of each call. A call that takes longer fails, and with it the soak."""

MEMORY_BYTES: Final = 24 << 20
"""What a process may have more at the end than after the first round, which is smaller: the interpreter's arenas that
are not wholly empty, those of the C library for each thread, SQLite's page caches."""
PEAK_PART: Final = 0.2
"""And of what it had more at its peak, when all rows were listed and collected at once, so much for the same reason."""
PER_CYCLE_BYTES: Final = 512
"""And for each container that came and went: less than any record of one, so that keeping one for each is seen."""
HELD: Final = {"daemon_descriptors": 12, "helper_descriptors": 4, "daemon_threads": 12, "helper_threads": 4}
"""What may be more at the end: threads of pools that grow on demand to their limits, and their database connections.
Processes, mounts, cgroups, rows and files may not be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much of each in a round."""

    containers: int = 500
    waits: int = 1000
    subscribers: int = 100
    cycles: int = 2000
    clients: int = 16
    images: int = 10_000
    blobs: int = 100_000
    snapshots: int = 5_000

    def times(self, factor: float) -> Scale:
        """The same mixture, smaller; as many clients."""
        sizes = {name: max(int(value * factor), 2) for name, value in asdict(self).items()}
        return Scale(**{**sizes, "clients": self.clients})


class SoakError(Exception):
    """Something leaked, or a call failed; the text says what."""


@dataclass(slots=True)
class Soak:
    """One daemon under load.

    Attributes:
        latencies: seconds of each call, by kind.
    """

    daemon: Orlopd
    image: str
    say: Callable[[str], None] = lambda _line: None
    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cycles: int = 0
    rounds: int = 0

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[aio.Client]:
        """A client of its own connection."""
        async with aio.Client(str(self.daemon.address), NAMESPACE, timeout_s=DEADLINE_S) as made:
            yield made

    async def timed(self, kind: str, call: Awaitable[T]) -> T:
        """Await a call and note how long it took."""
        begun = time.monotonic()
        result = await call
        self.latencies[kind].append(time.monotonic() - begun)
        return result

    async def round(self, scale: Scale) -> None:
        """Everything once, and everything deleted."""
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(self.client()) for _ in range(scale.clients)]
            await self._phase(f"{scale.blobs} blobs, {scale.images} images", self._rows(clients, scale))
            await self._phase(f"{scale.containers} containers at once", self._crowd(clients, scale))
            await self._phase(f"{scale.cycles} cycles by {scale.clients} clients", self._cycles(clients, scale))
        self.rounds += 1

    async def _phase(self, what: str, work: Awaitable[None]) -> None:
        begun = time.monotonic()
        await work
        self.say(f"  {what}: {time.monotonic() - begun:.1f} s")

    # -- rows ---------------------------------------------------------------------------------------------------------

    async def _rows(self, clients: list[aio.Client], scale: Scale) -> None:
        first = clients[0]
        lease = await first.leases.create()
        held = [client.with_lease(lease.id) for client in clients]

        async def blob(client: aio.Client, number: int) -> None:
            await self.timed("write a blob", client.content.write(f"soak-{number}", b"blob %d" % number))

        async def image(client: aio.Client, number: int) -> None:
            data = b"blob %d" % (number % scale.blobs)
            target = Descriptor(media_type="application/octet-stream", digest=Digest.of(data), size=len(data))
            await self.timed("create an image", client.images.create(f"soak/{number}:latest", target))

        async def snapshot(client: aio.Client, number: int) -> None:
            await self.timed("prepare a snapshot", client.snapshots().prepare(f"soak-{number}"))

        await spread(held, range(scale.blobs), blob, each=4)
        await spread(clients, range(scale.images), image, each=4)
        await spread(held, range(scale.snapshots), snapshot, each=4)
        listed = await self.timed("list images", first.images.list())
        if len(listed) != scale.images + 1:
            raise SoakError(f"{len(listed)} images are listed, {scale.images + 1} were made")
        await self.timed("list snapshots", first.snapshots().list())
        await self.timed("walk content", _count(first.content.walk()))
        await self.timed("collect, nothing to remove", _collect(first))
        names = [one.name for one in listed if one.name != self.image]
        await spread(clients, names, lambda client, name: self.timed("delete an image", client.images.delete(name)), 4)
        await self.timed("collect all of it", first.leases.delete(lease.id, synchronous=True))
        left = await _count(first.content.walk(['labels."soak"=="none"']))
        if left:
            raise SoakError("a filter that fits nothing found something")

    # -- the crowd ----------------------------------------------------------------------------------------------------

    async def _crowd(self, clients: list[aio.Client], scale: Scale) -> None:
        async with asyncio.TaskGroup() as group, contextlib.AsyncExitStack() as stack:
            stuck = stack.enter_context(_stuck_subscriber(self.daemon))
            readers = []
            for _ in range(scale.subscribers - 1):
                reader = _Reader(await stack.enter_async_context(self.client()), scale.containers)
                readers.append(reader)
                reader.task = group.create_task(reader.run())
            while not all(reader.subscribed for reader in readers) or not stuck.subscribed():
                await clients[0].namespaces.label(NAMESPACE, {"asked": str(time.monotonic_ns())})
            stuck.stop()
            tasks = await spread(clients, range(scale.containers), self._start, each=1)
            states = await self.timed("list tasks", clients[0].tasks())
            if len(states) != scale.containers:
                raise SoakError(f"{len(states)} tasks are listed, {scale.containers} were started")
            waits = [
                group.create_task(tasks[number % len(tasks)].wait(), name=f"wait {number}")
                for number in range(scale.waits)
            ]
            await spread(clients, tasks[: len(tasks) // 10], self._look, each=1)
            await asyncio.sleep(0)
            await spread(clients, tasks, lambda _client, task: self.timed("kill", task.kill("SIGKILL")), each=1)
            for wait in waits:
                if (await wait).code != 137:
                    raise SoakError(f"{wait.get_name()}: a killed container ended otherwise")
            await spread(clients, tasks, self._remove, each=1)
            for reader in readers:
                async with asyncio.timeout(DEADLINE_S):
                    await reader.task
            if not stuck.alive():
                raise SoakError("the stuck subscriber is not there any more")

    async def _start(self, client: aio.Client, number: int) -> Task:
        options = orlop.SpecOptions(args=("sleep", "100000"))
        made = client.new_container(f"crowd-{number}", self.image, options)
        container = await self.timed("create a container", made)
        task = await self.timed("create a task", container.new_task())
        await self.timed("start", task.start())
        return task

    async def _look(self, _client: aio.Client, task: Task) -> None:
        await self.timed("state", task.state())
        await self.timed("metrics", task.metrics())

    async def _remove(self, client: aio.Client, task: Task) -> None:
        await self.timed("delete a task", task.delete())
        container = await client.containers.get(task.container_id)
        await self.timed("delete a container", container.delete())

    # -- cycles -------------------------------------------------------------------------------------------------------

    async def _cycles(self, clients: list[aio.Client], scale: Scale) -> None:
        await spread(clients, range(scale.cycles), self._cycle, each=1)
        self.cycles += scale.cycles

    async def _cycle(self, client: aio.Client, number: int) -> None:
        begun = time.monotonic()
        container = await client.new_container(f"cycle-{number}", self.image, orlop.SpecOptions(args=("true",)))
        task = await container.new_task()
        await task.start()
        code = (await task.wait()).code
        await task.delete()
        await container.delete()
        self.latencies["create, run, delete"].append(time.monotonic() - begun)
        if code:
            raise SoakError(f"cycle {number}: `true` ended with {code}")


async def spread(
    clients: list[aio.Client],
    things: Iterable[Any],
    work: Callable[[aio.Client, Any], Awaitable[T]],
    each: int,
) -> list[T]:
    """Do `work` for every thing, `each` at once by each client; the results, in no order."""
    waiting = iter(things)
    done: list[T] = []

    async def worker(client: aio.Client) -> None:
        for thing in waiting:
            done.append(await work(client, thing))

    async with asyncio.TaskGroup() as group:
        for client in clients:
            for _ in range(each):
                group.create_task(worker(client))
    return done


async def _count(things: AsyncIterator[object]) -> int:
    return sum([1 async for _ in things])


async def _collect(client: aio.Client) -> None:
    await client.leases.delete((await client.leases.create()).id, synchronous=True)


class _Reader:
    """A subscriber that ends when it has seen `count` exits."""

    task: asyncio.Task[None]

    def __init__(self, client: aio.Client, count: int) -> None:
        self._client, self._count = client, count
        self.subscribed = False

    async def run(self) -> None:
        mine = f"namespace=={NAMESPACE}"
        async for event in self._client.subscribe([f'topic=="/tasks/exit",{mine}', 'topic=="/namespaces/update"']):
            self.subscribed = True
            self._count -= event.topic == "/tasks/exit"
            if not self._count:
                return


class _Stuck:
    """A process that has subscribed to everything and is stopped then."""

    _CODE = "import sys, orlop\nfor _ in orlop.Client(sys.argv[1], 'soak').subscribe(): print('seen', flush=True)\n"

    def __init__(self, daemon: Orlopd) -> None:
        command = [sys.executable, "-c", self._CODE, str(daemon.address)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)

    def subscribed(self) -> bool:
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def _stuck_subscriber(daemon: Orlopd) -> Iterator[_Stuck]:
    stuck = _Stuck(daemon)
    try:
        yield stuck
    finally:
        stuck.end()


# -- judging and telling ------------------------------------------------------------------------------------------


def judge(before: Vitals, after: Vitals, cycles: int, peak: int = 0) -> list[str]:
    """What is held at the end and should not be. `peak` is the most that the daemon had, in bytes."""
    problems = []
    allowed = MEMORY_BYTES + cycles * PER_CYCLE_BYTES + int(max(peak - before.daemon_bytes, 0) * PEAK_PART)
    for name in ("daemon_bytes", "helper_bytes"):
        grown = getattr(after, name) - getattr(before, name)
        if grown > allowed:
            problems.append(f"{name}: {grown / 2**20:.1f} MiB more than after the first round")
    for name, count in after.counts().items():
        grown = count - before.counts()[name]
        if grown > HELD.get(name, 0):
            problems.append(f"{name}: {grown} more than after the first round")
    return problems


def table(latencies: dict[str, list[float]]) -> list[str]:
    """One line for each kind of call."""
    lines = [f"  {'call':<28}{'count':>8}{'median':>11}{'95 %':>11}{'longest':>11}"]
    for kind, taken in sorted(latencies.items()):
        if taken:
            ordered = sorted(taken)
            shown = (statistics.median(ordered), ordered[int(len(ordered) * 0.95)], ordered[-1])
            lines.append(f"  {kind:<28}{len(ordered):>8}" + "".join(f"{one * 1000:>8.1f} ms" for one in shown))
    return lines


async def _drive(soak: Soak, scale: Scale, warm: Scale, end: float) -> tuple[Vitals, Vitals]:
    await soak.round(warm)
    before = await asyncio.to_thread(Vitals.settled, soak.daemon, f"/{NAMESPACE}")
    soak.latencies.clear()
    soak.cycles = 0
    while True:
        begun = time.monotonic()
        await soak.round(scale)
        if time.monotonic() + (time.monotonic() - begun) > end:
            break
    async with soak.client() as client:
        await _collect(client)
    return before, await asyncio.to_thread(Vitals.settled, soak.daemon, f"/{NAMESPACE}")


def soak(directory: Path, scale: Scale, warm: Scale, *, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Load a daemon of its own in `directory`: a warm-up, then rounds while another fits into `seconds`, at least one.

    Raises:
        SoakError: something is held that should not be.
    """
    end = time.monotonic() + seconds
    with Orlopd(directory) as daemon:
        with (
            orlop.Client(str(daemon.address), NAMESPACE) as client,
            open(images.image("busybox").archive, "rb") as file,
        ):
            [image] = client.import_(file)
            image.unpack()
        running = Soak(daemon, image.name, say)
        before, after = asyncio.run(_drive(running, scale, warm, end))
        peak = peak_bytes(daemon.pid)
    say("\n".join(table(running.latencies)))
    for name, value in asdict(after).items():
        old = asdict(before)[name]
        shown = (f"{old / 2**20:.1f} MiB", f"{value / 2**20:.1f} MiB") if name.endswith("bytes") else (old, value)
        say(f"  {name:<28}{shown[0]:>14}{shown[1]:>14}")
    say(f"  the daemon's peak: {peak / 2**20:.1f} MiB resident; {running.rounds} rounds, {running.cycles} cycles")
    problems = judge(before, after, running.cycles + scale.containers * running.rounds, peak)
    if problems:
        raise SoakError("held at the end:\n" + "\n".join(problems))
    return {
        "scale": asdict(scale),
        "rounds": running.rounds,
        "before": asdict(before),
        "after": asdict(after),
        "peak_bytes": peak,
        "latencies": {kind: sorted(taken) for kind, taken in running.latencies.items()},
    }


def main() -> int:
    """Run for the time asked for; 1 if something leaked or a call failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers in a round; 1 is the whole load")
    arguments = parser.parse_args()
    reason = host.forbids_root_tests()
    if reason is not None:
        print(f"soak: {reason}", file=sys.stderr)
        return 1
    scale = Scale().times(arguments.scale)
    facts = machine.facts()
    print("\n".join(f"  {name}: {value}" for name, value in facts.items()), flush=True)
    directory = Path(tempfile.mkdtemp(prefix="soak."))
    report: dict[str, Any] = {}
    try:
        report = soak(
            directory / "daemon",
            scale,
            scale.times(0.1),
            seconds=arguments.minutes * 60,
            say=lambda line: print(line, flush=True),
        )
    except* (SoakError, orlop.OrlopError) as errors:
        traceback.print_exception(errors)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if not report:
        return 1
    REPORTS.mkdir(exist_ok=True)
    path = REPORTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps({"machine": facts, "load": machine.load(), **report}))
    print(f"soak: nothing is held, no call was late; see {os.path.relpath(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
