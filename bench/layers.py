"""Rows about layers: importing, exporting, pulling and unpacking.

What is timed ends when the client does, under each engine's own rules of durability. Beside it stands the time until
everything is on the disk: for orlop until no snapshot is left without `synced_at`, for containerd, which never syncs
what it unpacks, with a syncfs(2) after it.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import images as synthetic
from bench.pair import Samples, Side, alternate
from orlop.linux._libc import libc, oserror
from tools import images
from tools.daemons import Containerd
from tools.images import Image

_TIMEOUT_S = 300.0


def import_and_unpack(sides: Sequence[Side], runs: int) -> Samples:
    """`ctr images import` of the Debian image's archive, which also unpacks: milliseconds."""
    image = images.image("debian")
    return _imported(sides, runs, image)


def import_and_unpack_large(sides: Sequence[Side], runs: int) -> Samples:
    """The same of one gzip layer of 900 MB and 60,000 files."""
    return _imported(sides, runs, synthetic.image("large"))


def first_process_large(sides: Sequence[Side], runs: int) -> Samples:
    """The same layer until the first process has run: ours by the `erofs` snapshotter, milliseconds."""
    image = synthetic.image("large-run")

    def work(side: Side) -> None:
        snapshotter = "overlayfs" if isinstance(side.engine, Containerd) else "erofs"
        ctr(side, "images", "import", "--snapshotter", snapshotter, image.archive)
        ctr(side, "run", "--rm", "--snapshotter", snapshotter, image.reference, side.fresh_id(), "/bin/busybox", "true")

    return _synced(sides, runs, lambda _: None, work, lambda side: ctr(side, "images", "rm", "--sync", image.reference))


def unpack_ten(sides: Sequence[Side], runs: int, *, name: str) -> Samples:
    """`ctr snapshots unpack` of ten layers of 100 MB whose content is there: milliseconds."""
    image = synthetic.image(name)

    def prepare(side: Side) -> None:
        # In a namespace that has never unpacked, for there nothing is unpacked while it arrives: that is not to count.
        side.ctr = side.ctr.within(f"{homes[side.name]}-{side.fresh_id()}")
        ctr(side, "images", "import", "--no-unpack", image.archive)

    def unpack(side: Side) -> None:
        ctr(side, "snapshots", "unpack", digest)

    def tidy(side: Side) -> None:
        ctr(side, "images", "rm", "--sync", image.reference)

    homes = {side.name: side.ctr.namespace for side in sides}
    prepare(sides[0])
    digest = next(
        line.split()[2] for line in ctr(sides[0], "images", "ls").splitlines() if line.startswith(image.reference)
    )
    tidy(sides[0])
    try:
        return _synced(sides, runs, prepare, unpack, tidy)
    finally:
        for side in sides:
            side.ctr = side.ctr.within(homes[side.name])


def pull_and_unpack(sides: Sequence[Side], runs: int) -> Samples:
    """`ctr images pull` of the Debian image from a registry on loopback: milliseconds."""
    return _pulled(sides, runs, images.image("debian"))


def pull_and_unpack_twenty(sides: Sequence[Side], runs: int) -> Samples:
    """The same of twenty layers of 20 MB."""
    return _pulled(sides, runs, synthetic.image("twenty"))


def import_only(sides: Sequence[Side], runs: int) -> Samples:
    """`ctr images import --no-unpack` of 1 GB: milliseconds."""
    image = synthetic.image("plain")

    def measure(side: Side) -> float:
        taken = timed(lambda: ctr(side, "images", "import", "--no-unpack", image.archive))
        ctr(side, "images", "rm", "--sync", image.reference)
        return taken

    return alternate(sides, measure, runs=runs)


def export(sides: Sequence[Side], runs: int) -> Samples:
    """`ctr images export` of 1 GB: milliseconds."""
    image = synthetic.image("plain")
    for side in sides:
        ctr(side, "images", "import", "--no-unpack", image.archive)

    def measure(side: Side) -> float:
        archive = side.engine.directory.parent / "export.tar"
        taken = timed(lambda: ctr(side, "images", "export", archive, image.reference))
        archive.unlink()
        return taken

    try:
        return alternate(sides, measure, runs=runs)
    finally:
        for side in sides:
            ctr(side, "images", "rm", "--sync", image.reference)


def _imported(sides: Sequence[Side], runs: int, image: Image) -> Samples:
    return _synced(
        sides,
        runs,
        lambda _: None,
        lambda side: ctr(side, "images", "import", image.archive),
        lambda side: ctr(side, "images", "rm", "--sync", image.reference),
    )


def _pulled(sides: Sequence[Side], runs: int, image: Image) -> Samples:
    reference = sides[0].registry.push(image)
    return _synced(
        sides,
        runs,
        lambda _: None,
        lambda side: ctr(side, "images", "pull", "--plain-http", reference),
        lambda side: ctr(side, "images", "rm", "--sync", reference),
    )


def _synced(
    sides: Sequence[Side],
    runs: int,
    prepare: Callable[[Side], object],
    work: Callable[[Side], object],
    tidy: Callable[[Side], object],
) -> Samples:
    """Time `work`, and beside it how long it takes until what it did is on the disk."""
    beside = Samples()

    def measure(side: Side) -> float:
        prepare(side)
        _sync(side.engine.directory)  # what is left of the run before is not this one's
        began = time.perf_counter()
        work(side)
        taken = time.perf_counter() - began
        _settle(side)
        beside.add(side.name, (time.perf_counter() - began) * 1e3)
        tidy(side)
        return taken * 1e3

    samples = alternate(sides, measure, runs=runs)
    beside.forget(len(sides))  # the warm-up
    samples.beside["until it is on the disk"] = beside
    return samples


def _settle(side: Side) -> None:
    if isinstance(side.engine, Containerd):
        _sync(side.engine.directory)
        return
    deadline = time.monotonic() + _TIMEOUT_S
    with contextlib.closing(sqlite3.connect(f"file:{side.engine.root}/meta.db?mode=ro", uri=True)) as db:
        while db.execute("SELECT 1 FROM snapshots WHERE kind = 3 AND synced_at IS NULL").fetchone():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{side.name}: snapshots were not synced within {_TIMEOUT_S:.0f} s")
            time.sleep(0.005)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if libc.syncfs(fd) < 0:
            raise oserror("syncfs")
    finally:
        os.close(fd)


def timed(work: Callable[[], object]) -> float:
    """Milliseconds that `work` takes."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def ctr(side: Side, *arguments: str | Path) -> str:
    """Run Debian's ctr, for as long as large images take."""
    return side.ctr(*arguments, timeout_s=_TIMEOUT_S)
