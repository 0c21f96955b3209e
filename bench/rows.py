"""What is measured. A row is added by writing a function and entering it in ROWS.

A row's function gets the sides and the number of runs, and returns samples of every side; it leaves each engine as it
found it, so that rows can be picked and put in any order.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import orlop
from bench import memory
from bench.pair import Samples, Side, alternate, finish, start
from tools import images
from tools.images import Image

IDLE_CONTAINERS: Final = 50
GROWTH_FROM: Final = 50
GROWTH_TO: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    `target` is the ratio to containerd that is aimed at, or None where nothing is promised.
    """

    key: str
    title: str
    unit: str
    target: float | None
    runs: int
    measure: Callable[[Sequence[Side], int], Samples]


def life(sides: Sequence[Side], runs: int) -> Samples:
    """Create, start, wait, delete through `ctr run --rm`: milliseconds."""
    image = _imported(sides, "busybox")

    def measure(side: Side) -> float:
        began = time.perf_counter()
        side.run(image, "/bin/true")
        return (time.perf_counter() - began) * 1e3

    return alternate(sides, measure, runs=runs, warm_up=3)


def life_at_once(sides: Sequence[Side], runs: int, *, count: int = 8) -> Samples:
    """The same, eight at once: milliseconds for each."""
    image = _imported(sides, "busybox")

    def measure(side: Side) -> float:
        commands = [side.run_argv(image, "/bin/true") for _ in range(count)]
        began = time.perf_counter()
        finish([start(command) for command in commands])
        return (time.perf_counter() - began) * 1e3 / count

    return alternate(sides, measure, runs=runs)


def life_by_python(sides: Sequence[Side], runs: int) -> Samples:
    """The same life by a running Python program with our client, beside containerd's through `ctr`: milliseconds."""
    image = _imported(sides, "busybox")

    def measure(side: Side) -> float:
        if side.name != sides[0].name:
            began = time.perf_counter()
            side.run(image, "/bin/true")
            return (time.perf_counter() - began) * 1e3
        began = time.perf_counter()
        options = orlop.SpecOptions(args=["/bin/true"])
        container = client.new_container(side.fresh_id(), image.reference, options)
        task = container.new_task()
        task.start()
        task.wait()
        task.delete()
        container.delete()
        return (time.perf_counter() - began) * 1e3

    with orlop.Client(str(sides[0].engine.address), "default") as client:
        return alternate(sides, measure, runs=runs, warm_up=3)


def exec_in_running(sides: Sequence[Side], runs: int) -> Samples:
    """`ctr tasks exec` of a command in a running container: milliseconds."""
    image = _imported(sides, "busybox")
    names = {side.name: side.fresh_id() for side in sides}
    for side in sides:
        side.ctr("run", "--detach", *side.run_options, image.reference, names[side.name], "sleep", "100000")

    def measure(side: Side) -> float:
        argv = side.ctr.argv("tasks", "exec", "--exec-id", side.fresh_id(), names[side.name], "/bin/true")
        began = time.perf_counter()
        finish([start(argv)])
        return (time.perf_counter() - began) * 1e3

    samples = alternate(sides, measure, runs=runs, warm_up=3)
    for side in sides:
        side.ctr("tasks", "rm", "--force", names[side.name])
        side.ctr("containers", "rm", names[side.name])
    return samples


def output(sides: Sequence[Side], runs: int) -> Samples:
    """Two gigabytes of output from a container to its client: milliseconds."""
    image = _imported(sides, "busybox")

    def measure(side: Side) -> float:
        argv = side.run_argv(image, "dd", "if=/dev/zero", "bs=1M", "count=2048")
        began = time.perf_counter()
        finish([start(argv)])
        return (time.perf_counter() - began) * 1e3

    return alternate(sides, measure, runs=runs)


def idle_growth(sides: Sequence[Side], runs: int) -> Samples:
    """What a container more costs, from `GROWTH_FROM` idle ones to `GROWTH_TO` (PSS): kilobytes each."""
    del runs
    image = _imported(sides, "busybox")
    samples = Samples()
    for side in sides:
        names = [f"grow-{number}" for number in range(GROWTH_TO)]
        seen = []
        for number, name in enumerate(names, start=1):
            side.ctr("run", "--detach", *side.run_options, image.reference, name, "sleep", "100000")
            if number in (GROWTH_FROM, GROWTH_TO):
                seen.append(sum(memory.outside_containers(side.engine, side.ctr).values()))
        samples.add(side.name, max((seen[1] - seen[0]) / (GROWTH_TO - GROWTH_FROM) / 1e3, 0.0))
        for name in names:
            side.ctr("tasks", "rm", "--force", name)
            side.ctr("containers", "rm", name)
    return samples


def idle_memory(sides: Sequence[Side], runs: int) -> Samples:
    """PSS outside the containers, with fifty idle ones: megabytes."""
    del runs  # memory does not jitter as time does
    image = _imported(sides, "busybox")
    samples = Samples()
    for side in sides:
        names = [f"idle-{number}" for number in range(IDLE_CONTAINERS)]
        for name in names:
            side.ctr("run", "--detach", *side.run_options, image.reference, name, "sleep", "100000")
        samples.add(side.name, sum(memory.outside_containers(side.engine, side.ctr).values()) / 1e6)
        for name in names:
            side.ctr("tasks", "rm", "--force", name)
            side.ctr("containers", "rm", name)
    return samples


def import_and_unpack(sides: Sequence[Side], runs: int) -> Samples:
    """`ctr images import` of the Debian image's archive, which also unpacks: milliseconds."""
    image = images.image("debian")

    def measure(side: Side) -> float:
        began = time.perf_counter()
        side.ctr("images", "import", image.archive)
        taken = (time.perf_counter() - began) * 1e3
        side.ctr("images", "rm", "--sync", image.reference)
        return taken

    return alternate(sides, measure, runs=runs)


def pull_and_unpack(sides: Sequence[Side], runs: int) -> Samples:
    """`ctr images pull` of the Debian image from a registry on loopback: milliseconds."""
    image = images.image("debian")
    reference = sides[0].registry.push(image)

    def measure(side: Side) -> float:
        began = time.perf_counter()
        side.ctr("images", "pull", "--plain-http", reference)
        taken = (time.perf_counter() - began) * 1e3
        side.ctr("images", "rm", "--sync", reference)
        return taken

    return alternate(sides, measure, runs=runs)


ROWS: Final[Sequence[Row]] = (
    Row(
        key="start",
        title="create, start, wait, delete (ctr run --rm)",
        unit="ms",
        target=0.85,
        runs=20,
        measure=life,
    ),
    Row(key="start-8", title="the same, 8 at once, each", unit="ms", target=0.85, runs=6, measure=life_at_once),
    Row(
        key="python",
        title="the same by a Python program / by ctr",
        unit="ms",
        target=0.5,
        runs=20,
        measure=life_by_python,
    ),
    Row(key="exec", title="exec in a running container", unit="ms", target=0.75, runs=15, measure=exec_in_running),
    Row(key="output", title="2 GB of output to the client", unit="ms", target=0.7, runs=3, measure=output),
    Row(
        key="memory",
        title=f"memory outside {IDLE_CONTAINERS} idle containers (PSS)",
        unit="MB",
        target=0.4,
        runs=1,
        measure=idle_memory,
    ),
    Row(
        key="growth",
        title=f"memory of one more, {GROWTH_FROM} to {GROWTH_TO} idle",
        unit="kB",
        target=0.03,
        runs=1,
        measure=idle_growth,
    ),
    Row(key="import", title="import and unpack, Debian", unit="ms", target=0.6, runs=5, measure=import_and_unpack),
    Row(key="pull", title="pull and unpack, Debian", unit="ms", target=0.6, runs=5, measure=pull_and_unpack),
)


def _imported(sides: Sequence[Side], name: str) -> Image:
    """An image that is there and unpacked on every side."""
    image = images.image(name)
    for side in sides:
        if image.reference not in side.ctr("images", "ls", "-q").split():
            side.ctr("images", "import", image.archive)
    return image
