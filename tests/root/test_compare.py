"""Layers made by real workers of real mounts, and what comes of applying them."""

import asyncio
import contextlib
import errno
import io
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orlop.base.errdefs import InvalidArgumentError, OrlopError, ResourceExhaustedError, UnimplementedError
from orlop.core.content import Info, Status
from orlop.core.diff import LayerBlob
from orlop.core.diff.apply import Plan as Unpacking
from orlop.core.diff.compare import Made, Plan, make
from orlop.core.diff.stream import Compression
from orlop.core.diff.workers import Pool
from orlop.core.mount import Mount
from orlop.core.mount.perform import temp_mount
from orlop.oci.digest import Digest
from orlop.testing.trees import all_kinds, describe
from tests.root.layers import apply_file

pytestmark = pytest.mark.root

OLD = 1_500_000_000


class Memory:
    """A writer of content that keeps what it is given."""

    def __init__(self) -> None:
        self.data = b""

    def status(self) -> Status:
        return Status(ref="memory", offset=len(self.data))

    def digest(self) -> Digest:
        raise NotImplementedError

    async def write(self, data: bytes) -> None:
        self.data += data

    async def truncate(self) -> None:
        self.data = b""

    async def commit(self, **_more: Any) -> Info:
        raise NotImplementedError

    async def close(self) -> None:
        pass


class Workers:
    """One pool for many jobs, used without an event loop of one's own."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._pool = Pool(1, idle_s=3600)
        self._runner.run(self._pool.warm())  # what it holds open belongs to no test

    def close(self) -> None:
        self._runner.run(self._pool.close())
        self._runner.close()

    def compare(
        self, lower: list[Mount], upper: list[Mount], *, plan: Plan | None = None, writer: Memory | None = None
    ) -> tuple[bytes, Made]:
        into = writer or Memory()
        wanted = plan or Plan.of(lower, upper)
        made = self._runner.run(make(self._pool, into, wanted, compression=Compression.NONE, epoch=None))
        return into.data, made

    def apply(self, layer: bytes, mounts: list[Mount]) -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(layer)
            file.flush()
            blob = LayerBlob(media_type="", digest="sha256:0")
            self._runner.run(apply_file(self._pool, Path(file.name), blob, Unpacking.of(mounts)))

    def cancelled(self, lower: list[Mount], upper: list[Mount], writer: "Stuck") -> None:
        """Compare, and cancel when the writer is stuck."""

        async def run() -> None:
            task = asyncio.create_task(
                make(self._pool, writer, Plan.of(lower, upper), compression=Compression.NONE, epoch=None)
            )
            await writer.reached.wait()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

        self._runner.run(run())


class Stuck(Memory):
    """A store that takes nothing and does not say so."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()

    async def write(self, data: bytes) -> None:
        self.reached.set()
        await asyncio.Event().wait()


class Full(Memory):
    """A store on a disk that is full."""

    async def write(self, data: bytes) -> None:
        raise ResourceExhaustedError("the disk is full")


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.close()


def bind(path: Path) -> list[Mount]:
    return [Mount(type="bind", source=str(path), options=("rw", "rbind"))]


def overlay(path: Path, *lower: Path, options: tuple[str, ...] = ("index=off",)) -> list[Mount]:
    """An active layer in a new directory `path`."""
    for name in ("upper", "work"):
        (path / name).mkdir(parents=True)
    places = (f"workdir={path}/work", f"upperdir={path}/upper", f"lowerdir={':'.join(map(str, lower))}")
    return [Mount(type="overlay", source="overlay", options=(*options, *places))]


def names(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape") as tar:
        return tar.getnames()


def aged(root: Path) -> None:
    """Give everything a time of whole seconds, as an unpacked layer has."""
    for directory, directories, files in os.walk(root, topdown=False):
        for name in (*directories, *files):
            os.utime(os.path.join(directory, name), (OLD, OLD), follow_symlinks=False)


def seen(mounts: list[Mount]) -> dict[str, Any]:
    """The tree behind mounts; the root itself is no part of a layer."""
    with temp_mount(mounts) as path:
        tree = describe(Path(path))
    del tree["."]
    return tree


# Changes, as data that hypothesis can shrink.

# Devices that do no harm if something opens them.
SPECIAL = [(stat.S_IFIFO, 0), (stat.S_IFCHR, os.makedev(1, 3)), (stat.S_IFCHR, os.makedev(1, 5))]
WORDS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join)
Change = Callable[[Path], object]


def _change(kind: str, path: str, other: str, number: int) -> Change:
    def change(root: Path) -> object:
        target, second = root / path, root / other
        match kind:
            case "write":
                if target.exists() and not target.is_file():
                    raise OSError(errno.EINVAL, "to open a fifo waits, and a device is the host's")
                return target.write_bytes(bytes([number]) * (number % 50))
            case "mkdir":
                return target.mkdir(parents=True)
            case "remove":
                return shutil.rmtree(target) if target.is_dir() and not target.is_symlink() else target.unlink()
            case "rename":
                return target.rename(second)
            case "link":
                return os.link(target, second, follow_symlinks=False)
            case "symlink":
                return target.symlink_to(other)
            case "chmod":
                return target.chmod(0o600 | number & 0o7077, follow_symlinks=not target.is_symlink())
            case "chown":
                return os.chown(target, number, number * 1000, follow_symlinks=False)
            case "mknod":
                special, device = SPECIAL[number % len(SPECIAL)]
                return os.mknod(target, special | 0o640, device)
            case _:
                if target.is_dir():
                    raise OSError(errno.EINVAL, "a layer cannot say that a directory has lost an attribute")
                return os.setxattr(target, "user.note", bytes([number]))

    return change


KINDS = ["write", "write", "mkdir", "mkdir", "remove", "rename", "link", "symlink", "chmod", "chown", "mknod", "xattr"]
CHANGES = st.lists(st.builds(_change, st.sampled_from(KINDS), WORDS, WORDS, st.integers(0, 255)), max_size=25)


def perform(changes: list[Change], root: Path) -> None:
    for change in changes:
        with contextlib.suppress(OSError, NotImplementedError, shutil.Error):  # what cannot be is no change
            change(root)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(before=CHANGES, after=CHANGES)
def test_a_layer_applied_to_what_is_below_gives_what_is_above(
    workers: Workers, before: list[Change], after: list[Change]
) -> None:
    with tempfile.TemporaryDirectory(prefix="orlop-compare-") as directory:
        base = Path(directory)
        lower = base / "lower"
        lower.mkdir()
        perform(before, lower)
        aged(lower)
        copied, active = copy(lower, base / "copy"), overlay(base / "active", lower)
        perform(after, base / "copy")
        with temp_mount(active) as path:
            perform(after, Path(path))
        for upper in (copied, active):
            layer, made = workers.compare(bind(lower), upper)
            assert made.quick == (upper is active)
            everywhere = replace(Plan.of(bind(lower), upper), changed=None)
            assert workers.compare(bind(lower), upper, plan=everywhere)[0] == layer
            stacked = overlay(base / f"over-{upper[0].type}", lower)
            merged = copy(lower, base / f"merged-{upper[0].type}")
            for target in (stacked, merged):
                workers.apply(layer, target)
                assert seen(target) == seen(upper)
            assert names(workers.compare(bind(lower), stacked)[0]) == names(layer)


def copy(source: Path, target: Path) -> list[Mount]:
    """A tree with the same files, links and times."""
    subprocess.run(["cp", "-a", source, target], check=True)
    return bind(target)


def test_every_kind_of_file(workers: Workers, tmp_path: Path) -> None:
    upper, target = tmp_path / "upper", tmp_path / "target"
    upper.mkdir()
    target.mkdir()
    all_kinds(upper)
    layer, _ = workers.compare([], bind(upper))
    workers.apply(layer, bind(target))
    assert seen(bind(target)) == seen(bind(upper))
    deleted = workers.compare(bind(upper), [])[0]
    assert names(deleted) == [f".wh.{name}" for name in sorted(os.listdir(upper), key=os.fsencode)]


def test_a_directory_that_hides_what_was_below(workers: Workers, tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    (lower / "dir/deep").mkdir(parents=True)
    for name in ("dir/one", "dir/two", "dir/deep/three"):
        (lower / name).write_text(name)
    upper = overlay(tmp_path / "active", lower)
    with temp_mount(upper) as path:
        shutil.rmtree(f"{path}/dir")
        Path(path, "dir").mkdir()
        Path(path, "dir/two").write_text("new")
    assert os.getxattr(tmp_path / "active/upper/dir", "trusted.overlay.opaque") == b"y"
    layer, made = workers.compare(bind(lower), upper)
    assert made.quick
    assert names(layer) == ["dir", "dir/.wh.deep", "dir/.wh.one", "dir/two"]


def test_a_directory_that_overlayfs_has_moved(workers: Workers, tmp_path: Path) -> None:
    """Its layer does not name what is in it, so it cannot tell where to look."""
    lower = tmp_path / "lower"
    (lower / "old").mkdir(parents=True)
    (lower / "new").mkdir()
    for name in ("old/file", "new/file", "new/gone"):
        (lower / name).write_text(name)
    upper = overlay(tmp_path / "active", lower, options=("index=off", "redirect_dir=on"))
    with temp_mount(upper) as path:
        shutil.rmtree(f"{path}/new")
        os.rename(f"{path}/old", f"{path}/new")
    assert "trusted.overlay.redirect" in os.listxattr(tmp_path / "active/upper/new")
    layer, made = workers.compare(bind(lower), upper)
    assert not made.quick
    assert names(layer) == ["new", "new/file", "new/.wh.gone", ".wh.old"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        file = tar.extractfile("new/file")
        assert file is not None
        assert file.read() == b"old/file"


def test_a_file_of_which_overlayfs_has_copied_the_metadata_only(workers: Workers, tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    lower.mkdir()
    (lower / "file").write_bytes(b"contents" * 1000)
    upper = overlay(tmp_path / "active", lower, options=("index=off", "metacopy=on"))
    with temp_mount(upper) as path:
        Path(path, "file").chmod(0o600)
    assert "trusted.overlay.metacopy" in os.listxattr(tmp_path / "active/upper/file")
    layer, made = workers.compare(bind(lower), upper)
    assert made.quick
    assert b"contents" * 1000 in layer


def test_a_layer_among_many(workers: Workers, tmp_path: Path) -> None:
    layers: list[Path] = []
    for number in range(20):
        path = tmp_path / str(number)
        path.mkdir()
        (path / f"file{number}").touch()
        layers.insert(0, path)

    def view(first: int) -> list[Mount]:
        option = f"lowerdir={':'.join(map(str, layers[first:]))}"
        return [Mount(type="overlay", source="overlay", options=("index=off", option))]

    assert names(workers.compare(view(1), view(0))[0]) == ["file19"]
    layer, made = workers.compare(view(3), view(0))
    assert (names(layer), made.quick) == (["file17", "file18", "file19"], False)
    assert names(workers.compare(view(0), view(1))[0]) == [".wh.file19"]


def test_a_tree_whose_ids_are_mapped(workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.chown(tmp_path / "file", 1000, 2000)
    maps = ("uidmap=0:100000:65536", "gidmap=0:200000:65536")
    mapped = [Mount(type="bind", source=str(tmp_path), options=("ro", "rbind", *maps))]
    try:
        with temp_mount(mapped):
            pass
    except UnimplementedError as error:
        pytest.skip(str(error))
    layer, _ = workers.compare([], mapped)
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        [member] = tar.getmembers()
    assert (member.uid, member.gid) == (101000, 202000)


def test_trees_are_not_written_to(workers: Workers, tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    lower.mkdir()
    (lower / "file").write_text("x")
    upper = overlay(tmp_path / "active", lower)
    with temp_mount(upper) as path:
        Path(path, "file").write_text("y")
        before = [os.stat(tmp_path / name) for name in ("lower", "lower/file", "active/upper", "active/upper/file")]
        workers.compare(bind(lower), upper)  # in use
        after = [os.stat(tmp_path / name) for name in ("lower", "lower/file", "active/upper", "active/upper/file")]
    assert before == after


def test_names_that_would_delete_are_told_by_their_path(workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/.wh.x").touch()
    with pytest.raises(InvalidArgumentError, match=r'^make a layer: compare: entry "dir/\.wh\.x": a name that begins'):
        workers.compare([], bind(tmp_path))


def test_a_tree_that_is_too_deep(workers: Workers, tmp_path: Path) -> None:
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(tmp_path)
        for _ in range(25):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
    finally:
        os.fchdir(before)
        os.close(before)
    with pytest.raises(ResourceExhaustedError, match="lies too deep"):
        workers.compare([], bind(tmp_path))


def test_mounts_that_cannot_be(workers: Workers, tmp_path: Path) -> None:
    with pytest.raises(OrlopError, match=r"^make a layer: prepare: mount"):
        workers.compare([], bind(tmp_path / "none"))


def jobs() -> list[str]:
    """Our processes that read trees."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().strip() in ("orlop-compare", "orlop-layer"):
                status = (path.parent / "status").read_text()
                [parent] = [line.split()[1] for line in status.splitlines() if line.startswith("PPid")]
                command = Path("/proc", parent, "status").read_text()
                if f"PPid:\t{os.getpid()}\n" in command:
                    found.append(path.parent.name)
    return found


def test_who_cancels_leaves_nothing(workers: Workers, tmp_path: Path) -> None:
    with open(tmp_path / "big", "wb") as file:
        file.truncate(1 << 30)
    descriptors = os.listdir("/proc/self/fd")
    workers.cancelled([], bind(tmp_path), Stuck())
    assert jobs() == []
    assert os.listdir("/proc/self/fd") == descriptors


def test_a_store_that_fails_ends_the_worker(workers: Workers, tmp_path: Path) -> None:
    with open(tmp_path / "big", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ResourceExhaustedError, match="the disk is full"):
        workers.compare([], bind(tmp_path), writer=Full())
    assert jobs() == []
