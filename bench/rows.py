"""What is measured. A row is added by writing a function and entering it in ROWS.

A row's function gets the sides and the number of runs, and returns samples of every side; it leaves each engine as it
found it, so that rows can be picked and put in any order.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import orlop
from bench import hugetlb, layers, many, metadata
from bench.pair import Samples, Side, alternate, containerd_side, finish, start
from tools import images
from tools.images import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        target: the ratio to containerd that is aimed at, or None where none is promised.
        most: units that the first side may take, where it is not compared by a ratio.
        more: units that it may take beyond the second side.
    """

    key: str
    title: str
    unit: str
    target: float | None
    runs: int
    measure: Callable[[Sequence[Side], int], Samples]
    most: float | None = None
    more: float | None = None


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

    with orlop.Client(str(sides[0].engine.address), sides[0].ctr.namespace) as client:
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


def ruler(sides: Sequence[Side], runs: int) -> Samples:
    """containerd beside a second one of the same kind, through `ctr run --rm`: how far the ruler is off."""
    reference = sides[-1]
    directory = reference.engine.directory.parent / "ruler"
    second = containerd_side(directory, reference.registry, name=f"{reference.name} again")
    with second.engine:
        return life([second, reference], runs)


def life_on_crun(sides: Sequence[Side], runs: int) -> Samples:
    """`life`, with crun on orlop's side."""
    with hugetlb.mounted():
        return life(_on_crun(sides), runs)


def life_at_once_on_crun(sides: Sequence[Side], runs: int) -> Samples:
    """`life_at_once`, with crun on orlop's side."""
    with hugetlb.mounted():
        return life_at_once(_on_crun(sides), runs)


def _on_crun(sides: Sequence[Side]) -> list[Side]:
    first, *others = sides
    first.counter += 1_000_000  # the ids of both go on from there
    return [dataclasses.replace(first, run_options=["--runc-binary", "crun"]), *others]


ROWS: Final[Sequence[Row]] = (
    Row(key="ruler", title="containerd beside itself (ctr run --rm)", unit="ms", target=None, runs=10, measure=ruler),
    Row(key="start", title="create, start, wait, delete (ctr run --rm)", unit="ms", target=0.6, runs=20, measure=life),
    Row(key="start-8", title="the same, 8 at once, each", unit="ms", target=0.62, runs=6, measure=life_at_once),
    Row(key="crun", title="the first, orlop on crun", unit="ms", target=0.47, runs=20, measure=life_on_crun),
    Row(key="crun-8", title="8 at once, orlop on crun", unit="ms", target=0.47, runs=6, measure=life_at_once_on_crun),
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
        title=f"memory outside {many.IDLE} idle containers (PSS)",
        unit="MB",
        target=0.14,
        runs=1,
        measure=many.idle_memory,
    ),
    Row(
        key="import",
        title="import and unpack, Debian",
        unit="ms",
        target=None,
        runs=5,
        measure=layers.import_and_unpack,
    ),
    Row(key="pull", title="pull and unpack, Debian", unit="ms", target=None, runs=5, measure=layers.pull_and_unpack),
    Row(
        key="large",
        title="import and unpack one gzip layer, 900 MB, 60,000 files",
        unit="ms",
        target=0.35,
        runs=3,
        measure=layers.import_and_unpack_large,
    ),
    Row(
        key="large-erofs",
        title="the same by `erofs`, until its first process has run",
        unit="ms",
        target=0.25,
        runs=3,
        measure=layers.first_process_large,
    ),
    Row(
        key="ten-gzip",
        title="unpack ten layers of 100 MB, gzip",
        unit="ms",
        target=0.3,
        runs=3,
        measure=partial(layers.unpack_ten, name="ten-gzip"),
    ),
    Row(
        key="ten-zstd",
        title="unpack ten layers of 100 MB, zstd",
        unit="ms",
        target=0.3,
        runs=3,
        measure=partial(layers.unpack_ten, name="ten-zstd"),
    ),
    Row(
        key="pull-20",
        title="pull and unpack 20 layers of 20 MB",
        unit="ms",
        target=0.35,
        runs=3,
        measure=layers.pull_and_unpack_twenty,
    ),
    Row(
        key="import-only",
        title="import 1 GB, not unpacked",
        unit="ms",
        target=0.8,
        runs=3,
        measure=layers.import_only,
    ),
    Row(key="export", title="export 1 GB", unit="ms", target=0.8, runs=3, measure=layers.export),
    Row(key="writes", title="metadata writes, 8 clients", unit="ms", target=1.0, runs=5, measure=metadata.writes),
    Row(key="reads", title="metadata reads, 8 clients", unit="ms", target=2.0, runs=5, measure=metadata.reads),
    Row(
        key="containers-ls",
        title=f"ctr containers ls of {many.ENTRIES}",
        unit="ms",
        target=1.5,
        runs=5,
        measure=many.list_containers,
    ),
    Row(
        key="images-ls",
        title=f"ctr images ls of {many.ENTRIES}",
        unit="ms",
        target=1.5,
        runs=5,
        measure=many.list_images,
    ),
    Row(
        key="tasks-ls",
        title=f"ctr tasks ls of {many.TASKS}",
        unit="ms",
        target=1.5,
        runs=5,
        measure=many.list_tasks,
    ),
    Row(
        key="start-up",
        title="orlopd's start to its first answer",
        unit="ms",
        target=None,
        runs=7,
        measure=many.start_up,
        most=800,
        more=100,
    ),
)


def _imported(sides: Sequence[Side], name: str) -> Image:
    """An image that is there and unpacked on every side."""
    image = images.image(name)
    for side in sides:
        if image.reference not in side.ctr("images", "ls", "-q").split():
            side.ctr("images", "import", image.archive)
    return image
