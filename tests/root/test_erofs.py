"""Layers as EROFS images beside the same layers extracted: both must show the same tree, or refuse the same archive."""

import contextlib
import os
import random
import signal
import socket
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orlop.base.errdefs import DataLossError, InvalidArgumentError, UnimplementedError
from orlop.core.diff import index_job, indexing, tar
from orlop.core.diff.erofs import Node
from orlop.core.diff.errors import ArchiveError, UnsuitableError
from orlop.core.diff.extract import Extractor
from orlop.core.diff.indexing import Builder
from orlop.core.diff.job import Job
from orlop.core.diff.tree import Tree
from orlop.core.mount import Mount
from orlop.core.mount.perform import temp_mount
from orlop.core.plugin import SkipPlugin
from orlop.core.snapshots import GID_MAPPING, UID_MAPPING, Kind, Snapshot
from orlop.linux import mount as mnt
from orlop.linux.probe import Verdict
from orlop.plugins.snapshots import erofs as erofs_plugin
from orlop.plugins.snapshots.erofs import Erofs, maps_ids, verdict
from tests.root.layers import apply_bytes, archive, digest, directory, entry, file, hardlink, symlink, tree
from tests.root.shims import until

pytestmark = pytest.mark.root


def sparse() -> tuple[tarfile.TarInfo, bytes]:
    headers = {"GNU.sparse.map": "0,4", "GNU.sparse.numblocks": "1", "GNU.sparse.size": "8192"}
    return file("sparse", b"data", pax_headers=headers)


NOW = 1_700_000_000_000_000_000  # what gets its time from the clock has one after this


class Pair:
    """The same layers twice: extracted, and as images."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.extracted: list[str] = []
        self.images: list[str] = []
        self._undo = contextlib.ExitStack()
        self._undo.callback(os.umask, os.umask(0))

    def close(self) -> None:
        self._undo.close()

    def add(self, blob: bytes) -> str:
        """One more layer on both; what was said against it, or an empty string."""
        number = len(self.extracted)
        upper = self.base / f"tree{number}"
        upper.mkdir(mode=0o755)
        image = self.base / f"image{number}"
        with self._lower(self.extracted) as lower:
            refused = self._extract(blob, upper, lower)
        with self._lower(self.images) as lower:
            said = self._index(blob, image, lower)
        assert bool(refused) == bool(said), (refused, said)
        if refused:
            return refused
        point = self.base / f"mounted{number}"
        point.mkdir()
        mnt.mount(image, point, "erofs", mnt.MS_RDONLY)
        self._undo.callback(mnt.umount2, point, mnt.MNT_DETACH)
        self.extracted.insert(0, str(upper))
        self.images.insert(0, str(point))
        return ""

    def seen(self) -> tuple[dict[str, tuple], dict[str, tuple]]:
        """What both show now, without times of the clock."""
        views = []
        for layers in (self.extracted, self.images):
            with temp_mount(_view(layers), str(self.base)) as merged:
                views.append({path: _timeless(found) for path, found in tree(merged).items()})
        return views[0], views[1]

    @contextlib.contextmanager
    def _lower(self, layers: Sequence[str]) -> Iterator[int]:
        if not layers:
            yield -1
            return
        with temp_mount(_view(layers), str(self.base)) as merged:
            fd = os.open(merged, os.O_RDONLY | os.O_DIRECTORY)
            try:
                yield fd
            finally:
                os.close(fd)

    def _extract(self, blob: bytes, upper: Path, lower: int) -> str:
        here = os.open(".", os.O_RDONLY)
        root = os.open(upper, os.O_RDONLY | os.O_DIRECTORY)
        made = Tree(root, lower, layered=lower >= 0)
        try:
            result = Extractor(tar.Reader([blob]), made).run()
            for path in result.opaque:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    if (upper / os.fsdecode(path)).is_dir() and not _through_link(upper, path):
                        os.setxattr(upper / os.fsdecode(path), "trusted.overlay.opaque", b"y")
        except ArchiveError as error:
            return str(error)
        finally:
            made.close()
            os.fchdir(here)
            os.close(here)
            os.close(root)
        return ""

    def _index(self, blob: bytes, image: Path, lower: int) -> str:
        root = Node(0o40755, 0, 0, NOW)
        pieces = [blob[start : start + 700] for start in range(0, len(blob), 700)]
        with open(image, "wb") as file:
            builder = Builder(pieces, file.fileno(), root, lower_fd=lower, layered=lower >= 0, now=NOW)
            try:
                builder.run()
            except ArchiveError as error:
                return str(error)
        if lower >= 0:
            self._compare_alone(pieces, image)
        return ""

    def _compare_alone(self, pieces: Sequence[bytes], image: Path) -> None:
        """What can be made without the layers below is what was made with them, byte by byte."""
        with open(self.base / "alone", "w+b") as file:
            root = Node(0o40755, 0, 0, NOW)
            try:
                Builder(pieces, file.fileno(), root, layered=True, alone=True, now=NOW).run()
            except ArchiveError:
                return
            file.seek(0)
            assert file.read() == image.read_bytes()


def _view(layers: Sequence[str]) -> list[Mount]:
    if len(layers) == 1:
        return [Mount(type="bind", source=layers[0], options=("ro", "rbind"))]
    return [Mount(type="overlay", source="overlay", options=("index=off", f"lowerdir={':'.join(layers)}"))]


def _through_link(upper: Path, path: bytes) -> bool:
    return os.path.realpath(upper / os.fsdecode(path)) != str(upper / os.fsdecode(path))


def _timeless(found: tuple) -> tuple:
    return tuple("now" if index == 4 and value >= NOW else value for index, value in enumerate(found[:8]))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    works = verdict(tmp_path)
    if not works:
        pytest.skip(works.reason)
    one = Pair(tmp_path)
    yield one
    one.close()


def same(pair: Pair, *layers: Sequence[tuple[tarfile.TarInfo, bytes]]) -> dict[str, tuple]:
    for layer in layers:
        assert pair.add(archive(*layer)) == ""
    extracted, images = pair.seen()
    assert images == extracted
    return images


def test_every_kind_of_entry(pair: Pair) -> None:
    seen = same(
        pair,
        [
            directory("./etc/", mode=0o750, uid=3, gid=4),
            file("etc/file", b"words", uid=5, gid=6, mode=0o4755),
            hardlink("etc/again", "etc/file", uid=5, gid=6, mode=0o4755),
            symlink("etc/link", "/nowhere", uid=7),
            symlink("etc/long", "x" * 2000),
            entry("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
            entry("dev/loop", tarfile.BLKTYPE, devmajor=700, devminor=70000, mode=0o660, gid=6),
            entry("run/fifo", tarfile.FIFOTYPE, mode=0o600),
            file("sticky/empty", b""),
            file("big", random.Random(1).randbytes(3_000_001)),
            directory("tmp", mode=0o1777),
            file("caps", pax_headers={"SCHILY.xattr.user.x": "value", "SCHILY.xattr.user.empty": ""}),
            directory("attributed", pax_headers={"SCHILY.xattr.user.x": "v" * 3000, "mtime": "1234.5"}),
        ],
    )
    assert seen["caps"][7]["user.x"] == b"value"
    assert seen["attributed"][4] == 1_234_500_000_000


def test_directories_of_every_size(pair: Pair) -> None:
    same(pair, [file(f"d{count}/{'n' * (index % 200)}{index}", b"") for count in range(40) for index in range(count)])
    same(pair, [file(f"large/{index:05}", str(index).encode()) for index in range(3000)])


def test_layers_on_each_other(pair: Pair) -> None:
    """Parents that are links below, that have owners below, whiteouts, opaque ones, hard links to what lies below."""
    seen = same(
        pair,
        [
            directory("usr/lib", uid=9, mode=0o751, pax_headers={"SCHILY.xattr.user.x": "below"}),
            symlink("lib", "usr/lib"),
            file("usr/lib/a", b"a" * 1000, uid=4),
            directory("opaque"),
            file("opaque/hidden"),
            file("gone"),
            directory("replaced"),
            file("replaced/inner"),
        ],
        [
            file("lib/b", b"b"),
            hardlink("copy", "lib/a", uid=4),
            file("opaque/.wh..wh..opq", b""),
            file("opaque/new"),
            file(".wh.gone", b""),
            file("replaced"),
        ],
        [directory("replaced"), file("replaced/other"), file("usr/.wh.lib", b""), file("usr/lib/c")],
    )
    assert "usr/lib/a" not in seen
    assert "usr/lib/c" in seen
    assert seen["copy"][5] is not None
    assert "opaque/hidden" not in seen
    assert "gone" not in seen
    assert seen["lib"][5] == "usr/lib"


def test_an_opaque_root(pair: Pair) -> None:
    seen = same(pair, [file("a/x"), file("b")], [file("a/y"), file(".wh..wh..opq", b""), file("c")])
    assert set(seen) == {"a", "a/y", "c"}


@pytest.mark.parametrize(
    "bad",
    [
        entry("file", pax_headers={"SCHILY.xattr.system.posix_acl_access": "x"}),
        entry("file", pax_headers={"SCHILY.xattr.security.selinux": "x"}),
        entry("file", pax_headers={"SCHILY.xattr.security.capability": "x"}),
        entry("file", pax_headers={"GNU.sparse.map": "0,0", "GNU.sparse.numblocks": "1", "GNU.sparse.size": "4096"}),
    ],
)
def test_what_an_index_cannot_show_is_left_to_the_extractor(tmp_path: Path, bad: tuple[tarfile.TarInfo, bytes]) -> None:
    with open(tmp_path / "image", "wb") as file, pytest.raises(UnsuitableError):
        Builder([archive(bad)], file.fileno(), Node(0o40755, 0, 0, NOW)).run()


@pytest.mark.parametrize("value", ["v" * 65535, "v" * 65536])
def test_attributes_of_every_size(tmp_path: Path, value: str) -> None:
    headers = {f"SCHILY.xattr.user.{number}": value for number in range(5)}
    blob = archive(file("file", pax_headers=headers))
    with open(tmp_path / "image", "wb") as image, pytest.raises(UnsuitableError):
        Builder([blob], image.fileno(), Node(0o40755, 0, 0, NOW)).run()


def test_more_entries_than_memory_is_meant_for_are_left_to_the_extractor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "MAX_ENTRIES", 10)
    blob = archive(*(file(f"file-{number}", b"") for number in range(11)))
    with open(tmp_path / "image", "wb") as image, pytest.raises(UnsuitableError, match="10 entries"):
        Builder([blob], image.fileno(), Node(0o40755, 0, 0, NOW)).run()


@pytest.mark.parametrize(
    "layer",
    [
        (file("usr/file"),),
        (directory("usr"), file("usr/bin/file")),
        (directory("etc"), hardlink("etc/again", "etc/below")),
        (file("usr/.wh.gone", b""),),
        (file(".wh..wh..opq", b""),),
        (symlink("lib", "usr/lib"), file("lib/file")),
    ],
    ids=["parent", "grandparent", "link", "whiteout's parent", "opaque root", "behind a link"],
)
def test_what_depends_on_the_layers_below_is_not_made_alone(
    tmp_path: Path, layer: tuple[tuple[tarfile.TarInfo, bytes], ...]
) -> None:
    with open(tmp_path / "image", "wb") as image, pytest.raises(ArchiveError, match="depends on the layers below"):
        Builder([archive(*layer)], image.fileno(), Node(0o40755, 0, 0, NOW), layered=True, alone=True).run()


# -- the worker ----------------------------------------------------------------------------------------------------


def built_until(path: Path, blob: bytes, step: int) -> bool:
    """Make an image in a process that is killed before its call number `step`; whether it had that many."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **named)

            return wrapped

        try:
            for name in ("open", "write", "lseek", "fsync", "rename"):
                setattr(os, name, counted(getattr(os, name)))
            ours, _theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with index_job.image_file(str(path), sync=True, job=Job({}, -1, connection=ours, life=-1)) as fd:
                pieces = [blob[start : start + 4096] for start in range(0, len(blob), 4096)]
                Builder(pieces, fd, Node(0o40755, 0, 0, NOW), now=NOW).run()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return status != 0


def test_killed_at_each_step_there_is_a_whole_image_or_none(tmp_path: Path) -> None:
    if not (works := verdict(tmp_path)):
        pytest.skip(works.reason)
    blob = archive(*(file(f"d/{number}", b"x" * 1000) for number in range(40)))
    path, steps, whole = tmp_path / "layer.erofs", 0, 0
    while built_until(path, blob, steps + 1):
        steps += 1
        if path.exists():
            whole += 1
            with temp_mount([Mount(type="erofs", source=str(path), options=("ro",))], str(tmp_path)) as seen:
                assert len(os.listdir(f"{seen}/d")) == 40
                assert (Path(seen) / "d/39").read_bytes() == b"x" * 1000
            path.unlink()
    assert steps > 15
    assert whole == 1  # killed before its directory is synced
    assert path.exists()
    assert sorted(os.listdir(tmp_path)) == ["layer.erofs"]


@pytest.mark.parametrize("over_loop", [False, True], ids=["file", "loop"])
def test_a_layer_through_workers(tmp_path: Path, over_loop: bool) -> None:
    """An image where it can be one, a tree where it cannot; either way what the layer has is there."""
    if not (works := verdict(tmp_path, over_loop=over_loop)):
        pytest.skip(works.reason)
    snapshotter = Erofs(tmp_path / "e", options=("index=off",), over_loop=over_loop)
    layers = [
        archive(directory("a"), file("a/one", b"1"), symlink("l", "a")),
        archive(file("l/two", b"2"), sparse()),
        archive(file("a/.wh.one", b""), file("a/three", b"3" * 4000)),
    ]
    digests = []
    try:
        for number, blob in enumerate(layers, 1):
            parents = tuple(range(number - 1, 0, -1))
            active = Snapshot(number=number, parents=parents, kind=Kind.ACTIVE)
            snapshotter.prepare(active)
            image = snapshotter.image(number)
            assert image is not None
            digests.append(apply_bytes(blob, snapshotter.mounts(active), tmp_path, image=image).digest)
            snapshotter.commit(active)
        assert digests == [digest(blob) for blob in layers]
        kinds = [os.path.exists(f"{tmp_path}/e/{number}/layer.erofs") for number in (1, 2, 3)]
        assert kinds == [True, False, True]
        view = Snapshot(number=4, parents=(3, 2, 1), kind=Kind.VIEW)
        snapshotter.prepare(view)
        with temp_mount(snapshotter.mounts(view), str(tmp_path)) as seen:
            assert sorted(os.listdir(f"{seen}/a")) == ["three", "two"]
            assert os.path.getsize(f"{seen}/sparse") == 8192
        for number in (4, 3, 2, 1):
            snapshotter.remove(number)
        assert os.listdir(tmp_path / "e" / "mounted") == []
    finally:
        snapshotter.close()


def test_a_cut_image_is_not_mounted(tmp_path: Path) -> None:
    if not (works := verdict(tmp_path)):
        pytest.skip(works.reason)
    snapshotter = Erofs(tmp_path / "e")
    active = Snapshot(number=1, kind=Kind.ACTIVE)
    snapshotter.prepare(active)
    image = snapshotter.image(1)
    assert image is not None
    apply_bytes(archive(file("a", b"x" * 10000)), snapshotter.mounts(active), tmp_path, image=image)
    os.truncate(image, os.path.getsize(image) - 512)
    view = Snapshot(number=2, parents=(1,), kind=Kind.VIEW)
    snapshotter.prepare(view)
    with pytest.raises(DataLossError, match="incomplete"):
        snapshotter.mounts(view)
    assert os.listdir(tmp_path / "e" / "mounted") == []


def test_a_file_system_whose_files_cannot_be_mounted_takes_loop_devices(tmp_path: Path) -> None:
    with temp_mount([Mount(type="tmpfs", source="tmpfs")], str(tmp_path)) as root:
        straight = verdict(Path(root))
        assert not straight
        assert "from a file" in straight.reason
        if not (works := verdict(Path(root), over_loop=True)):
            pytest.skip(works.reason)
        snapshotter = Erofs(Path(root) / "e", options=("index=off",), over_loop=True)
        try:
            layer(snapshotter, 1, archive(file("a", b"words")))
            (mount,) = snapshotter.mounts(Snapshot(number=2, parents=(1,), kind=Kind.VIEW))
            assert Path(mount.source, "a").read_bytes() == b"words"
            devices = loops(root)
            assert len(devices) == 1
            snapshotter.remove(1)
            until(lambda: not loops(root), "loop devices are left")
        finally:
            snapshotter.close()


def test_what_a_host_can_decides_how_images_are_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    can = {False: Verdict(True), True: Verdict(True)}
    monkeypatch.setattr(erofs_plugin, "verdict", lambda _root, *, over_loop=False: can[over_loop])
    assert erofs_plugin.needs_loop(tmp_path, over_loop=False) is False
    assert erofs_plugin.needs_loop(tmp_path, over_loop=True) is True
    can[False] = Verdict(False, "no files")
    assert erofs_plugin.needs_loop(tmp_path, over_loop=False) is True
    can[True] = Verdict(False, "no loops")
    with pytest.raises(SkipPlugin, match="no files; no loops"):
        erofs_plugin.needs_loop(tmp_path, over_loop=False)


def loops(directory: str) -> list[str]:
    """Loop devices of files below a directory."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it has gone
            if path.read_text().startswith(f"{directory}/"):
                found.append(path.parts[3])
    return found


def layer(snapshotter: Erofs, number: int, blob: bytes) -> None:
    """A committed snapshot with one layer, on top of the one with the number before."""
    active = Snapshot(number=number, parents=tuple(range(number - 1, 0, -1)), kind=Kind.ACTIVE)
    snapshotter.prepare(active)
    base = snapshotter.home(number)
    apply_bytes(blob, snapshotter.mounts(active), base.parents[1], image=snapshotter.image(number) or "")
    snapshotter.commit(active)


MAPS = {UID_MAPPING: "0:100000:65536", GID_MAPPING: "0:200000:65536"}


def test_ids_are_mapped_by_labels(tmp_path: Path) -> None:
    """Images and directories alike, for whoever performs plain mounts; and found again, and gone with the snapshot."""
    if not (works := verdict(tmp_path)):
        pytest.skip(works.reason)
    if not maps_ids():
        pytest.skip("no user namespaces here")
    snapshotter = Erofs(tmp_path / "e", options=("index=off",), maps_ids=True)
    try:
        layer(snapshotter, 1, archive(file("one", uid=1, gid=2), file("mine", uid=0, gid=0)))
        layer(snapshotter, 2, archive(file("two", uid=3, gid=4), sparse()))
        active = Snapshot(number=3, parents=(2, 1), kind=Kind.ACTIVE, labels=MAPS)
        snapshotter.prepare(active)
        mounts = snapshotter.mounts(active)
        assert snapshotter.mounts(active) == mounts
        assert not [option for mount in mounts for option in mount.options if option.startswith(("uidmap", "gidmap"))]
        with temp_mount(mounts, str(tmp_path)) as merged:
            owners = {name: os.stat(f"{merged}/{name}") for name in (".", "one", "two", "mine")}
            assert {name: (one.st_uid, one.st_gid) for name, one in owners.items()} == {
                ".": (100000, 200000),
                "one": (100001, 200002),
                "two": (100003, 200004),
                "mine": (100000, 200000),
            }
            view = Snapshot(number=4, parents=(1,), kind=Kind.VIEW, labels=MAPS)
            snapshotter.prepare(view)
            (mount,) = snapshotter.mounts(view)
            assert os.stat(f"{mount.source}/one").st_uid == 100001
            unmapped = snapshotter.mounts(Snapshot(number=5, parents=(1,), kind=Kind.VIEW))
            assert os.stat(f"{unmapped[0].source}/one").st_uid == 1
            again = Erofs(tmp_path / "e", options=("index=off",), maps_ids=True)  # after a kill
            assert again.mounts(active) == mounts
            for number in (4, 3, 2, 1):
                again.remove(number)
            assert os.stat(f"{merged}/one").st_uid == 100001  # whoever has it mounted keeps it
        assert os.listdir(tmp_path / "e/mapped") == os.listdir(tmp_path / "e/mounted") == []
    finally:
        snapshotter.close()


def test_ids_that_cannot_be_mapped_are_refused(tmp_path: Path) -> None:
    snapshotter = Erofs(tmp_path / "e")
    with pytest.raises(UnimplementedError, match="id mapping by label"):
        snapshotter.prepare(Snapshot(number=1, kind=Kind.ACTIVE, labels=MAPS))
    snapshotter = Erofs(tmp_path / "e", maps_ids=True)
    with pytest.raises(InvalidArgumentError, match="does not map root"):
        snapshotter.prepare(Snapshot(number=1, kind=Kind.ACTIVE, labels={**MAPS, UID_MAPPING: "1:100000:65536"}))


# -- whatever an archive holds --------------------------------------------------------------------------------------

_NAMES = [
    "a",
    "b",
    "a/b",
    "a/b/c",
    "l",
    "l/x",
    "a/l",
    "a/l/y",
    "../a",
    "/b/../a",
    "a/./b/",
    ".wh.a",
    ".wh.b",
    "a/.wh.b",
    "l/.wh.x",
    "a/.wh..wh..opq",
    "b/.wh..wh..opq",
    ".wh..wh..opq",
    ".wh.l",
    "a/.wh.l",
    ".wh..",
    "./",
    "n" * 256,
]
_TARGETS = ["a", "/a", "..", "../..", "l", "a/l", "b/c", "/", "x", "."]


@st.composite
def members(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    name = draw(st.sampled_from(_NAMES))
    kind = draw(
        st.sampled_from(
            [
                tarfile.REGTYPE,
                tarfile.DIRTYPE,
                tarfile.DIRTYPE,
                tarfile.SYMTYPE,
                tarfile.SYMTYPE,
                tarfile.LNKTYPE,
                tarfile.CHRTYPE,
                tarfile.FIFOTYPE,
            ]
        )
    )
    fields: dict[str, object] = {
        "uid": draw(st.integers(0, 2)),
        "gid": draw(st.integers(0, 2)),
        "mode": draw(st.sampled_from([0o755, 0o644, 0o2775, 0o4711, 0o1777, 0])),
        "mtime": draw(st.integers(0, 2_000_00)),
    }
    if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        fields["linkname"] = draw(st.sampled_from(_TARGETS if kind == tarfile.SYMTYPE else _NAMES))
    if kind == tarfile.CHRTYPE:
        fields["devmajor"] = fields["devminor"] = draw(st.integers(0, 1))
    if draw(st.integers(0, 5)) == 0:
        fields["pax_headers"] = {"SCHILY.xattr.user.k": draw(st.sampled_from(["", "v", "w" * 300]))}
    data = draw(st.sampled_from([b"", b"data", b"z" * 512, b"y" * 5000])) if kind == tarfile.REGTYPE else b""
    return entry(name, kind, data, **fields)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.lists(members(), max_size=8), min_size=1, max_size=3))
def test_whatever_an_archive_holds(tmp_path_factory: pytest.TempPathFactory, layers: list[list]) -> None:
    base = tmp_path_factory.mktemp("pair")
    if not (works := verdict(base)):
        pytest.skip(works.reason)
    pair = Pair(base)
    try:
        for layer in layers:
            if pair.add(archive(*layer)):
                return
            extracted, images = pair.seen()
            assert images == extracted
    finally:
        pair.close()
