"""`client.fsck()` on a daemon that is used all the time finds nothing: what only seems wrong is not told.

Images come, run and go by several clients, blobs and snapshots are made and removed, ingests are begun and given up,
and the collector runs as often as it may.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

import pytest

import orlop
from orlop.base.errdefs import NotFoundError
from tools.daemons import Ctr, Orlopd
from tools.images import Image

pytestmark = [pytest.mark.root]

ROUNDS = 4

Work = Callable[[int], None]


@contextlib.contextmanager
def busy(works: dict[str, Work]) -> Iterator[dict[str, int]]:
    """Each work in a thread of its own, again and again; gives how often each was done."""
    stop, done, failures = threading.Event(), dict.fromkeys(works, 0), list[BaseException]()

    def run(name: str, work: Work) -> None:
        try:
            while not stop.is_set():
                work(done[name])
                done[name] += 1
        except BaseException as error:
            error.add_note(f"in {name}")
            failures.append(error)
            done[name] = -1

    threads = [threading.Thread(target=run, args=item) for item in works.items()]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]


def test_a_busy_daemon_has_nothing_wrong(
    new_orlopd: Callable[..., Orlopd], our_ctr: Callable[..., Ctr], busybox_image: Image, tmp_path: os.PathLike[str]
) -> None:
    daemon = new_orlopd()
    names = [f"busy-{os.getpid()}-{kind}" for kind in ("runs", "talks", "blobs", "layers")]
    runs, talks, blobs, layers = (orlop.Client(str(daemon.address), name, timeout_s=60) for name in names)
    ctr = our_ctr(daemon, names[0])

    def come_run_and_go(turn: int) -> None:
        ctr("images", "import", "--snapshotter", ("overlayfs", "erofs", "native")[turn % 3], busybox_image.archive)
        snapshotter = ("--snapshotter", ("overlayfs", "erofs", "native")[turn % 3])
        assert ctr("run", "--rm", *snapshotter, busybox_image.reference, f"one-{turn}", "echo", "hello") == "hello\n"
        ctr("images", "rm", "--sync", busybox_image.reference)

    def write_and_delete(turn: int) -> None:
        digest = blobs.content.write(f"ref-{turn}", b"%d" % turn * 1000)
        with blobs.content.writer(f"given-up-{turn}") as writer:
            writer.write(b"half")
        with contextlib.suppress(NotFoundError):  # the collector may be quicker
            blobs.content.abort(f"given-up-{turn}")
        with contextlib.suppress(NotFoundError):
            blobs.content.delete(digest)

    def prepare_and_remove(turn: int) -> None:
        store = layers.snapshots(("overlayfs", "native", "erofs")[turn % 3])
        held = {"containerd.io/gc.root": "now"}
        store.prepare(f"key-{turn}", labels=held)
        store.commit(f"name-{turn}", f"key-{turn}", labels=held)
        store.prepare(f"upper-{turn}", f"name-{turn}", labels=held)
        store.remove(f"upper-{turn}")
        store.remove(f"name-{turn}")

    def talk(turn: int) -> None:
        """A terminal and an open stdin each take a keeper."""
        terminal = bool(turn % 2)
        options = orlop.SpecOptions(args=["cat"], tty=terminal)
        container = talks.new_container(f"talks-{turn}", busybox_image.reference, options)
        given = None if terminal else b"words"
        io = orlop.FifoIO(stdin=given, stdout=bytearray(), terminal=terminal, directory=f"{tmp_path}/{turn}")
        try:
            task = container.new_task(io)
            try:
                task.start()
            finally:
                task.delete(force=True)
        finally:
            io.close()
            container.delete()

    def make_and_remove(turn: int) -> None:
        write_and_delete(turn)
        prepare_and_remove(turn)

    works: dict[str, Work] = {"runs": come_run_and_go, "makes": make_and_remove, "talks": talk}
    with contextlib.ExitStack() as stack:
        for client in (runs, talks, blobs, layers):
            stack.callback(client.close)
        our_ctr(daemon, names[1])("images", "import", busybox_image.archive)
        with busy(works) as done:
            found = []
            for turn in range(ROUNDS):
                found += list(runs.fsck(quick=turn % 2 == 0, repair=turn % 3 == 2))
                before = dict(done)
                while any(done[name] == before[name] for name in works):
                    found += list(runs.fsck(quick=True))
                    assert -1 not in done.values(), "a work has failed"
        assert found == []
        assert all(done.values()), done
        for name in names:
            daemon.forget_cgroup(name)
