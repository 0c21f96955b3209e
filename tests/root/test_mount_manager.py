"""The manager of mounts with real loop devices, EROFS, ext4 and overlays; what a crash leaves, and who collects it."""

import asyncio
import contextlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from orlop.base.errdefs import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OrlopError,
    UnimplementedError,
)
from orlop.core.gc import Collector, Kind
from orlop.core.metadata import Database
from orlop.core.metadata.leases import LeaseStore
from orlop.core.mount import Mount, loop
from orlop.core.mount.activation import Handler
from orlop.core.mount.manager import MountManager
from orlop.core.mount.perform import mount_all, mounts_below, temp_mount, unmount_all
from orlop.plugins.mounts.erofs import ErofsHandler
from orlop.plugins.mounts.loop import LoopHandler
from tools import daemons, host

pytestmark = pytest.mark.root

KEPT = {"containerd.io/gc.bref.container": "web"}


class World:
    """A manager on a database, as one run of a daemon has it; `restarted()` is the next run on the same files."""

    def __init__(self, directory, *, over_loop=False):
        self.directory = directory
        self.over_loop = over_loop
        self.targets = directory / "t"
        self.root = directory / "root"

    @contextlib.asynccontextmanager
    async def running(self):
        self.root.mkdir(exist_ok=True)
        with Database(self.directory / "meta.db") as self.db:
            erofs = ErofsHandler(over_loop=self.over_loop)
            handlers: dict[str, Handler] = {"loop": LoopHandler(), "erofs": erofs}
            manager = MountManager(self.db, self.targets, handlers, roots=(self.root,), patience_s=0.1)
            await manager.reconcile()
            try:
                yield manager
            finally:
                await manager.aclose()

    def run(self, test):
        async def main():
            async with self.running() as manager:
                await test(manager)

        asyncio.run(main())

    def left(self):
        """Directories of activations, mounts below them, and loop devices of our files."""
        listed = subprocess.run(
            ["losetup", "--list", "--noheadings", "-O", "BACK-FILE"], check=False, capture_output=True, text=True
        )
        devices = [line for line in listed.stdout.splitlines() if line.startswith(str(self.directory))]
        return sorted(os.listdir(self.targets)), mounts_below(str(self.targets)), devices

    def collect(self, manager):
        content = NoContent()
        return self.db.write_sync(lambda tx: Collector(content, {}, mounts=manager).collect(tx))


class NoContent:
    def is_open(self, _namespace, _ref):
        return False

    def remove_record(self, _tx, _namespace, _digest):
        raise AssertionError("there is no content here")

    def remove_ingest(self, _tx, _namespace, _ref):
        raise AssertionError("there are no ingests here")


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def image(world, name="disk.img", *, size="8MiB"):
    """Mounts of a file that is made, formatted as ext4 and mounted over a loop device."""
    options = (f"X-containerd.mkfs.size={size}", "X-containerd.mkfs.fs=ext4")
    return [
        Mount(type="mkfs/loop", source=f"{world.root}/{name}", options=options),
        Mount(type="format/ext4", source="{{ mount 0 }}"),
    ]


def overlay(lower, world, name="rw"):
    return Mount(
        type="format/mkdir/overlay",
        source="overlay",
        options=(
            f"X-containerd.mkdir.path={world.root}/{name}",
            f"X-containerd.mkdir.path={world.root}/{name}/u:0755",
            f"X-containerd.mkdir.path={world.root}/{name}/w:0711",
            f"upperdir={world.root}/{name}/u",
            f"workdir={world.root}/{name}/w",
            f"lowerdir={lower}",
        ),
    )


@pytest.fixture
def erofs(tmp_path):
    reason = host.lacks_peer("mkfs.erofs")
    if reason:
        pytest.skip(reason)
    if "erofs" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no erofs")

    def make(name):
        (tmp_path / f"tree-{name}").mkdir()
        (tmp_path / f"tree-{name}" / name).write_text(f"file of {name}")
        path = tmp_path / f"{name}.erofs"
        argv = [daemons.program("mkfs.erofs"), "--quiet", path, tmp_path / f"tree-{name}"]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done
        return str(path)

    return make


NOTHING: tuple[list[str], ...] = ([], [], [])


# Quick calls that may stand in a coroutine.
def is_directory(path):
    return os.path.isdir(path)


def is_mount(path):
    return os.path.ismount(path)


def target_of(path):
    return os.path.realpath(path)


def write(path, text):
    Path(path).write_text(text)


def held(path):
    return open(path, "w")


def test_a_file_becomes_a_file_system_under_an_overlay(world):
    async def test(manager):
        mounts = [*image(world), overlay("{{ mount 1 }}", world)]
        activation = await manager.activate("ns", "web", mounts, labels={"a": "b"})
        device, ext4 = activation.active
        assert (device.mount.type, ext4.mount.type) == ("loop", "ext4")
        assert device.mount.options == ()
        assert os.readlink(device.mount_point) == target_of(ext4.mount.source)
        (left,) = activation.system
        assert left.type == "overlay"
        assert left.options[-1] == f"lowerdir={ext4.mount_point}"
        assert manager.info("ns", "web") == activation
        with temp_mount(activation.system, str(world.directory)) as path:
            assert is_directory(f"{path}/lost+found")
            write(f"{path}/new", "written")
        assert (world.root / "rw" / "u" / "new").read_text() == "written"
        await manager.deactivate("ns", "web")
        with pytest.raises(NotFoundError, match='mount "web" not found'):
            manager.info("ns", "web")
        with pytest.raises(NotFoundError, match='missing mount "web" bucket'):
            await manager.deactivate("ns", "web")

    world.run(test)
    assert world.left() == NOTHING


@pytest.mark.parametrize("over_loop", [False, True])
def test_layers_of_erofs_are_stacked(tmp_path, erofs, over_loop):
    world = World(tmp_path, over_loop=over_loop)

    async def test(manager):
        mounts = [
            Mount(type="erofs", source=erofs("a"), options=("ro", "loop")),
            Mount(type="erofs", source=erofs("b"), options=("ro", "loop")),
            Mount(type="format/overlay", source="overlay", options=("lowerdir={{ overlay 1 0 }}",)),
        ]
        activation = await manager.activate("ns", "web", mounts)
        sources = [one.mount.source for one in activation.active]
        assert all(source.startswith("/dev/loop") == over_loop for source in sources)
        with temp_mount(activation.system, str(world.directory)) as path:
            assert sorted(os.listdir(path)) == ["a", "b"]
        await manager.deactivate("ns", "web")

    world.run(test)
    assert world.left() == NOTHING


def test_everything_is_performed_for_a_while(world):
    async def test(manager):
        activation = await manager.activate("ns", "tmp", image(world), temporary=True)
        assert len(activation.active) == 2
        (bind,) = activation.system
        assert (bind.type, bind.source, bind.options) == ("bind", activation.active[-1].mount_point, ("rbind",))
        (world.directory / "there").mkdir()
        mount_all(activation.system, str(world.directory / "there"))
        assert (world.directory / "there" / "lost+found").is_dir()
        unmount_all(str(world.directory / "there"))
        plain = [Mount(type="tmpfs", source="tmpfs", options=("size=1m",))]
        activation = await manager.activate("ns", "plain", plain, temporary=True)
        assert is_mount(activation.active[0].mount_point)
        for name in ("tmp", "plain"):
            await manager.deactivate("ns", name)

    world.run(test)
    assert world.left() == NOTHING


def test_the_option_loop_works_without_a_manager(world):
    world.root.mkdir()
    subprocess.run(["truncate", "-s", "8M", world.root / "disk"], check=True)
    subprocess.run(["mkfs.ext4", "-q", world.root / "disk"], check=True)
    mounts = [Mount(type="ext4", source=str(world.root / "disk"), options=("loop", "ro"))]
    with temp_mount(mounts, str(world.directory)) as path:
        assert os.listdir(path) == ["lost+found"]
        with pytest.raises(OSError, match="Read-only"):
            write(f"{path}/x", "")
    world.targets.mkdir()
    assert world.left() == NOTHING


def test_what_is_refused(world):
    async def test(manager):
        with pytest.raises(UnimplementedError) as caught:
            await manager.activate("ns", "web", [Mount(type="overlay", source="overlay")])
        assert str(caught.value) == "not implemented"
        with pytest.raises(InvalidArgumentError, match=r"^too many mounts \(256\): maximum 255"):
            await manager.activate("ns", "web", [Mount(type="loop", source="x")] * 256)
        with pytest.raises(InvalidArgumentError, match="mount name must not be empty"):
            await manager.activate("ns", "", image(world))
        with pytest.raises(InvalidArgumentError, match="greater than maximum size"):
            await manager.activate("ns", "web", image(world), labels={"a": "b" * 5000})
        await manager.activate("ns", "web", image(world))
        with pytest.raises(AlreadyExistsError, match=r'^mount "web": already exists$'):
            await manager.activate("ns", "web", image(world))
        other = await manager.activate("other", "web", image(world, "other.img"))
        assert manager.info("other", "web") == other
        for namespace in ("ns", "other"):
            await manager.deactivate(namespace, "web")

    world.run(test)
    assert world.left() == NOTHING


@pytest.mark.parametrize(
    "second",
    [
        Mount(type="format/ext4", source="{{ mount 0 }}"),  # there is no file system in it
        Mount(type="format/ext4", source="{{ mount 1 }}"),
        Mount(type="loop", source="/dev/null"),
        Mount(type="erofs", source="/nowhere"),
    ],
)
def test_a_failure_leaves_nothing(world, second):
    async def test(manager):
        (world.root / "empty").write_bytes(bytes(1 << 20))
        mounts = [Mount(type="loop", source=f"{world.root}/empty"), second, overlay("/x", world)]
        with pytest.raises(OrlopError):
            await manager.activate("ns", "web", mounts)
        assert world.left() == NOTHING
        assert not manager.exists("ns", "web")
        await manager.activate("ns", "web", mounts[:1])
        await manager.deactivate("ns", "web")

    world.run(test)


def test_two_at_once(world):
    async def test(manager):
        async with asyncio.timeout(60):
            results = await asyncio.gather(
                *(manager.activate("ns", "same", image(world, f"{n}.img")) for n in range(4)),
                *(manager.activate("ns", f"own-{n}", image(world, "shared.img")[:1]) for n in range(4)),
                return_exceptions=True,
            )
        assert sum(isinstance(one, AlreadyExistsError) for one in results[:4]) == 3
        assert not any(isinstance(one, BaseException) for one in results[4:])
        listed = [one.name for page in manager.pages("ns") for one in page]
        assert listed == ["own-0", "own-1", "own-2", "own-3", "same"]
        await asyncio.gather(*(manager.deactivate("ns", name) for name in listed))

    world.run(test)
    assert world.left() == NOTHING


def test_who_goes_away_does_not_leave_half_of_it(world):
    async def test(manager):
        task = asyncio.create_task(manager.activate("ns", "web", image(world)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await manager.deactivate("ns", "web")  # waits for the other to be done

    world.run(test)
    assert world.left() == NOTHING


def test_labels_and_filters(world):
    async def test(manager):
        for name in ("a", "b"):
            await manager.activate("ns", name, image(world, name)[:1], labels={"role": name, "x": "1"})

        def listed(*filters):
            return [one.name for page in manager.pages("ns", filters) for one in page]

        assert listed("name==b") == ["b"]
        assert listed("labels.role==a", "name==b") == ["a", "b"]
        updated = await manager.update("ns", "a", {"role": "new"}, ["labels.role", "labels.x"])
        assert updated.labels == {"role": "new"}
        assert (await manager.update("ns", "a", {"all": "new"})).labels == {"all": "new"}
        with pytest.raises(InvalidArgumentError, match=r'^cannot update "active" field on mount "a"'):
            await manager.update("ns", "a", {}, ["active"])
        with pytest.raises(NotFoundError, match=r'^mount "c" not found'):
            await manager.update("ns", "c", {})
        assert manager.info("ns", "a").labels == {"all": "new"}
        for name in ("a", "b"):
            await manager.deactivate("ns", name)

    world.run(test)


# -- the life of a daemon ---------------------------------------------------------------------------------------------


def test_the_next_run_finds_what_stands(world):
    activations = []

    async def first(manager):
        activations.append(await manager.activate("ns", "web", image(world), temporary=True))

    async def second(manager):
        assert manager.info("ns", "web") == activations[0]
        assert is_directory(f"{activations[0].active[1].mount_point}/lost+found")
        await manager.deactivate("ns", "web")

    world.run(first)
    world.run(second)
    assert world.left() == NOTHING


def test_the_next_run_drops_what_does_not_stand(world):
    async def first(manager):
        activation = await manager.activate("ns", "web", image(world), temporary=True)
        unmount_all(activation.active[1].mount_point)

    async def second(manager):
        assert not manager.exists("ns", "web")

    world.run(first)
    assert world.left() != NOTHING
    world.run(second)
    assert world.left() == NOTHING


def test_the_next_run_sweeps_what_a_crash_left(world):
    async def first(manager):
        for name in ("unfinished", "without-row"):
            await manager.activate("ns", name, image(world, name))
        rows = world.db.all("SELECT number, name FROM mounts")
        numbers = {row["name"]: row["number"] for row in rows}

        def crash(tx):
            tx.execute("UPDATE mounts SET completed_at = NULL WHERE number = ?", (numbers["unfinished"],))
            tx.execute("DELETE FROM mounts WHERE number = ?", (numbers["without-row"],))

        await world.db.write(crash)
        assert [one for page in manager.pages("ns") for one in page] == []
        with pytest.raises(NotFoundError):
            manager.info("ns", "unfinished")
        assert manager.exists("ns", "unfinished")
        # Within the same run a name that was never completed is taken over.
        await manager.activate("ns", "unfinished", image(world, "again"))

    async def second(manager):
        await manager.deactivate("ns", "unfinished")

    world.run(first)
    (world.targets / "77").mkdir()
    (world.targets / "77" / "1-type").write_text("")
    world.run(second)
    assert world.left() == NOTHING


def test_a_device_that_is_somebody_elses_by_now_is_left_alone(world):
    async def second(manager):
        assert not manager.exists("ns", "web")

    world.root.mkdir()
    (world.root / "foreign").write_bytes(bytes(1 << 20))
    with loop.attached(str(world.root / "foreign")) as device:
        loop.keep(device)
        try:

            async def both(manager):
                activation = await manager.activate("ns", "web", image(world)[:1])
                place = activation.active[0].mount_point
                loop.let_go(os.readlink(place))
                os.unlink(place)
                os.symlink(device.path, place)

            world.run(both)
            world.run(second)
            assert loop.backing(device.path) != ""
        finally:
            loop.let_go(device.path)
    assert world.left() == NOTHING


def test_what_is_busy_goes_later(world):
    async def test(manager):
        activation = await manager.activate("ns", "web", image(world), temporary=True)
        with held(f"{activation.active[1].mount_point}/held"):
            with pytest.raises(FailedPreconditionError, match="Device or resource busy"):
                await manager.deactivate("ns", "web")
            assert not manager.exists("ns", "web")
            assert world.left() != NOTHING
            # The name is free at once.
            await manager.activate("ns", "web", image(world, "other"))
        world.collect(manager)
        manager.collected()

    world.run(test)
    assert world.left() == NOTHING


def test_the_collector_takes_what_nobody_holds(world):
    async def test(manager):
        leases = LeaseStore(world.db)

        def rows(tx):
            leases.create(tx, "ns", "held", {})
            leases.create(tx, "ns", "expired", {"containerd.io/gc.expire": "2001-02-03T04:05:06Z"})
            tx.execute(
                "INSERT INTO containers (namespace, id, image, runtime_name, snapshotter, snapshot_key, created_at,"
                " updated_at, used_at, labels) VALUES ('ns', 'web', '', 'r', '', '', 0, 0, 0, ?)",
                ('{"containerd.io/gc.ref.mount.x":"named"}',),
            )

        await world.db.write(rows)
        holders: dict[str, dict[str, Any]] = {
            "leased": {"lease": "held"},
            "expired": {"lease": "expired"},
            "gone-lease": {"lease": "no-such"},
            "of-container": {"labels": KEPT},
            "of-nobody": {"labels": {"containerd.io/gc.bref.container": "no-such"}},
            "named": {},
            "root": {"labels": {"containerd.io/gc.root": "1"}},  # containerd knows no roots among mounts
        }
        for name, more in holders.items():
            await manager.activate("ns", name, image(world, name)[:1], **more)
        await manager.activate("elsewhere", "of-container", image(world, "elsewhere")[:1], labels=KEPT)

        def listed():
            return [one.name for page in manager.pages("ns") for one in page]

        stats = await asyncio.to_thread(world.collect, manager)
        assert stats.removed[Kind.MOUNT] == 5
        assert listed() == ["leased", "named", "of-container"]
        assert not next(iter(manager.pages("elsewhere")))

        def let_go(tx):
            leases.delete(tx, "ns", "held")
            tx.execute("DELETE FROM containers")

        await world.db.write(let_go)
        await asyncio.to_thread(world.collect, manager)
        assert listed() == []

    world.run(test)
    assert world.left() == NOTHING


def test_mounts_for_a_block_of_the_daemon_s_own(world):
    async def test(manager):
        plain = [Mount(type="bind", source="/", options=("rbind",))]
        async with manager.performed("ns", plain) as left:
            assert left == plain
        async with manager.performed("ns", image(world)) as left:
            assert [mount.type for mount in left] == ["ext4"]
            assert [one for page in manager.pages("ns") for one in page] == []
            await asyncio.to_thread(world.collect, manager)
            with temp_mount(left) as path:
                write(f"{path}/file", "")
        assert world.left() == NOTHING
        with pytest.raises(ZeroDivisionError):
            async with manager.performed("ns", image(world)):
                raise ZeroDivisionError
        assert world.left() == NOTHING
        with pytest.raises(FailedPreconditionError):
            async with manager.performed("ns", [*image(world), Mount(type="loop", source=f"{world.root}/absent")]):
                raise AssertionError("it cannot be performed")
        assert world.left() == NOTHING

        async def in_it():
            async with manager.performed("ns", image(world)):
                await asyncio.Event().wait()

        for pause_s in (0, 0.01, 0.5):
            task = asyncio.create_task(in_it())
            await asyncio.sleep(pause_s)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert world.left() == NOTHING

    world.run(test)
