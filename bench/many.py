"""Rows about many objects: lists of thousands, hundreds of idle containers, a daemon that starts over a full store."""

import contextlib
import hashlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from bench import memory, metadata
from bench.layers import ctr, timed
from bench.pair import Samples, Side, alternate
from tools import images
from tools.daemons import Orlopd

ENTRIES: Final = 10_000
TASKS: Final = 500
IDLE: Final = 200
GROWTH_FROM: Final = 100
BLOBS: Final = 100_000
_BATCH: Final = 5_000
_TIMEOUT_S: Final = 60.0


def list_containers(sides: Sequence[Side], runs: int) -> Samples:
    """`ctr containers ls` with ten thousand of them: milliseconds."""
    return _listed(sides, runs, "containers")


def list_images(sides: Sequence[Side], runs: int) -> Samples:
    """`ctr images ls -q` with ten thousand of them: milliseconds. (Without -q, ctr reads each image's content.)"""
    return _listed(sides, runs, "images")


def _listed(sides: Sequence[Side], runs: int, kind: str) -> Samples:
    for side in sides:
        metadata.fill(side, kind, ENTRIES)
    try:
        return alternate(sides, lambda side: timed(lambda: ctr(side, kind, "ls", "-q")), runs=runs)
    finally:
        for side in sides:
            metadata.empty(side, kind, ENTRIES)


def list_tasks(sides: Sequence[Side], runs: int) -> Samples:
    """`ctr tasks ls` with five hundred running: milliseconds."""
    with contextlib.ExitStack() as stack:
        for side in sides:
            stack.enter_context(_running(side, TASKS))
        return alternate(sides, lambda side: timed(lambda: ctr(side, "tasks", "ls")), runs=runs)


def idle_memory(sides: Sequence[Side], runs: int) -> Samples:
    """PSS outside the containers, with two hundred idle ones: megabytes; beside it the growth of the second hundred."""
    del runs  # memory does not jitter as time does
    samples, growth = Samples(), Samples(unit="kB")
    for side in sides:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_running(side, GROWTH_FROM))
            before = sum(memory.outside_containers(side.engine, side.ctr).values())
            stack.enter_context(_running(side, IDLE - GROWTH_FROM))
            after = sum(memory.outside_containers(side.engine, side.ctr).values())
        samples.add(side.name, after / 1e6)
        growth.add(side.name, max((after - before) / (IDLE - GROWTH_FROM) / 1e3, 0.0))
    samples.beside[f"one more, {GROWTH_FROM} to {IDLE} (aim 0.03 x)"] = growth
    return samples


@contextlib.contextmanager
def _running(side: Side, count: int) -> Iterator[None]:
    """So many idle containers, gone at the end."""
    image = images.image("busybox")
    if image.reference not in ctr(side, "images", "ls", "-q").split():
        ctr(side, "images", "import", image.archive)
    names = [side.fresh_id() for _ in range(count)]
    try:
        for name in names:
            ctr(side, "run", "--detach", *side.run_options, image.reference, name, "sleep", "100000")
        yield
    finally:
        for name in names:
            side.ctr("tasks", "rm", "--force", name, check=False)
            side.ctr("containers", "rm", name, check=False)


# -- a daemon's start ---------------------------------------------------------------------------------------------


def start_up(sides: Sequence[Side], runs: int) -> Samples:
    """From the start of orlopd to its first answer: milliseconds, with a full store and with an empty one."""
    directory = sides[0].engine.directory.parent
    full, empty = Orlopd(directory / "full"), Orlopd(directory / "empty")
    with contextlib.ExitStack() as stack:
        for daemon in (full, empty):
            stack.callback(daemon.close)
            daemon.start()  # makes the directories and the schema
            daemon.stop()
        populate(full.root)
        samples = Samples()
        for number in range(runs + 1):
            for name, daemon in ((f"{ENTRIES} containers, {BLOBS} blobs", full), ("an empty store", empty)):
                taken = first_answer(daemon)
                if number:
                    samples.add(name, taken)
                daemon.stop()
        return samples


def first_answer(daemon: Orlopd) -> float:
    """Start a daemon that is stopped, and return the milliseconds until it has answered a request."""
    import grpc
    from google.protobuf.empty_pb2 import Empty

    daemon.configure()
    with open(daemon.log_path, "ab") as log:
        began = time.perf_counter()
        daemon.process = daemon.spawn(log)
    _connectable(daemon.address)
    with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
        method = "/containerd.services.version.v1.Version/Version"
        call: grpc.UnaryUnaryMultiCallable[Empty, bytes] = channel.unary_unary(method, Empty.SerializeToString)
        call(Empty(), timeout=_TIMEOUT_S)
    return (time.perf_counter() - began) * 1e3


def _connectable(address: Path) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(os.fspath(address))
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"nobody listens at {address}") from None
        time.sleep(0.001)


def populate(root: Path, *, containers: int = ENTRIES, blobs: int = BLOBS) -> None:
    """Fill a stopped daemon's store, as its own modules write rows: through the doors it would take minutes."""
    from orlop.core.containers import Container, Runtime
    from orlop.core.metadata import Database, Transaction
    from orlop.core.metadata import content as rows
    from orlop.core.metadata.containers import ContainerStore

    def some_blobs(tx: Transaction, first: int) -> None:
        tx.ensure_namespace("default")
        for number in range(first, min(first + _BATCH, blobs)):
            data = b"%d" % number
            digest = hashlib.sha256(data).hexdigest()
            (directory / digest).write_bytes(data)
            rows.insert(tx, "default", f"sha256:{digest}", len(data), {"containerd.io/gc.root": "bench"}, owner_uid=0)

    def some_containers(tx: Transaction, first: int) -> None:
        store = ContainerStore(database)
        for number in range(first, min(first + _BATCH, containers)):
            container = Container(id=f"c-{number}", runtime=Runtime(name="io.containerd.runc.v2"), spec=b"s" * 4096)
            store.create(tx, "default", container)

    directory = root / "content" / "blobs" / "sha256"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with Database(root / "meta.db") as database:
        for first in range(0, blobs, _BATCH):
            database.write_sync(lambda tx, first=first: some_blobs(tx, first))  # type: ignore[misc]
        for first in range(0, containers, _BATCH):
            database.write_sync(lambda tx, first=first: some_containers(tx, first))  # type: ignore[misc]
