"""What every snapshotter must do, as tests that a plug-in's author can run.

    from orlop.testing.snapshots import SnapshotterContract

    class TestMine(SnapshotterContract):
        def snapshotter(self, root: Path) -> Snapshotter:
            return Mine(root)

Run with pytest, as root: mounts are real, and so are the store, its database and the trash around the snapshotter. The
suite asks what containerd's asks of its own (core/snapshots/testsuite), and what our store relies on.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from orlop.base import errdefs
from orlop.core.metadata import Database
from orlop.core.metadata.trash import Trash
from orlop.core.mount import Mount
from orlop.core.mount.perform import temp_mount
from orlop.core.snapshots import Info, Kind, Snapshot, Snapshotter, Usage, upkeep
from orlop.core.snapshots.store import Store
from orlop.core.snapshots.stores import Stores
from orlop.testing.trees import Change, all_kinds, describe, make_directory, remove_all, write

T = TypeVar("T")

NAMESPACE: Final = "testsuite"
NAME: Final = "under-test"
LAYERS: Final = 125
"""Layers that an image may have: what Docker allows."""


class Bench:
    """A context manager: a snapshotter with its store, to be called without asyncio."""

    def __init__(self, directory: Path, make: Callable[[Path], Snapshotter]) -> None:
        self.root = directory / "root"
        self._make = make
        self._mount_points = directory / "mounts"
        self._stack = contextlib.ExitStack()
        self._keys = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.root.mkdir(exist_ok=True)
            self._mount_points.mkdir(exist_ok=True)
            self._runner = stack.enter_context(asyncio.Runner())
            self.events: list[tuple[str, str, Any]] = []
            self.db = stack.enter_context(Database(self.root / "meta.db", publisher=self._publish))
            self.trash = stack.enter_context(Trash(self.root, self.db))
            home = self.root / "snapshots" / NAME
            home.mkdir(parents=True, exist_ok=True)
            self.snapshotter = self._make(home)
            self.stores = stack.enter_context(Stores(self.db, self.trash, {NAME: self.snapshotter}))
            self.store: Store = self.stores[NAME]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it to its end on the bench's event loop."""
        return self._runner.run(coroutine)

    def prepare(self, key: str, parent: str = "", *, namespace: str = NAMESPACE, **more: Any) -> list[Mount]:
        return self.run(self.store.prepare(namespace, key, parent, **more))

    def view(self, key: str, parent: str = "", *, namespace: str = NAMESPACE, **more: Any) -> list[Mount]:
        return self.run(self.store.view(namespace, key, parent, **more))

    def mounts(self, key: str, *, namespace: str = NAMESPACE) -> list[Mount]:
        return self.run(self.store.mounts(namespace, key))

    def commit(self, name: str, key: str, *, namespace: str = NAMESPACE, **more: Any) -> None:
        self.run(self.store.commit(namespace, name, key, **more))

    def remove(self, key: str, *, namespace: str = NAMESPACE, **more: Any) -> None:
        self.run(self.store.remove(namespace, key, **more))

    def update(self, name: str, labels: Mapping[str, str], *paths: str, namespace: str = NAMESPACE) -> Info:
        return self.run(self.store.update(namespace, name, labels, paths=paths))

    def usage(self, key: str, *, namespace: str = NAMESPACE) -> Usage:
        return self.run(self.store.usage(namespace, key))

    def cleanup(self) -> None:
        self.run(self.stores.cleanup(NAME))

    def stat(self, key: str, *, namespace: str = NAMESPACE) -> Info:
        return self.store.stat(namespace, key)

    def names(self, *filters: str, namespace: str = NAMESPACE) -> list[str]:
        return [info.name for info in self.store.walk(namespace, filters)]

    def number(self, key: str, *, namespace: str = NAMESPACE) -> int:
        row = self.db.one("SELECT number FROM snapshots WHERE namespace = ? AND name = ?", (namespace, key))
        assert row is not None
        number: int = row["number"]
        return number

    @contextlib.contextmanager
    def mounted(self, mounts: Sequence[Mount]) -> Iterator[Path]:
        """The mounts, performed somewhere while in this context."""
        with temp_mount(mounts, os.fspath(self._mount_points)) as path:
            yield Path(path)

    def layer(self, name: str, parent: str, *changes: Change) -> dict[str, Any]:
        """Commit the changes on top of `parent` under `name`; returns the tree as it was seen through the mounts."""
        self._keys += 1
        key = f"layer-{self._keys}"
        with self.mounted(self.prepare(key, parent)) as path:
            for change in changes:
                change(path)
            seen = describe(path)
        self.commit(name, key)
        return seen

    def seen(self, parent: str) -> dict[str, Any]:
        """The tree of a committed snapshot, through a view."""
        self._keys += 1
        key = f"seen-{self._keys}"
        with self.mounted(self.view(key, parent)) as path:
            tree = describe(path)
        self.remove(key)
        return tree

    def _publish(self, namespace: str, topic: str, event: Any) -> None:
        self.events.append((namespace, topic, event))


def code(call: Callable[[], object]) -> type[errdefs.OrlopError] | None:
    """The class of the error that a call raises; None if it succeeds."""
    try:
        call()
    except errdefs.OrlopError as error:
        return type(error)
    return None


class SnapshotterContract:
    """The suite. Subclass it, define `snapshotter`, and let pytest find it.

    Attributes:
        layers: how high a stack is built; fewer for a snapshotter that copies them all.
        locates: whether it finds a snapshot by a path in its mounts, so that what an unpacker counted is believed.
    """

    layers = LAYERS
    locates = True

    def snapshotter(self, root: Path) -> Snapshotter:
        """A snapshotter that keeps all it has below the existing directory `root`."""
        raise NotImplementedError

    # -- names, kinds and parents -----------------------------------------------------------------------------------

    def test_life_of_layers(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            first = bench.layer(
                "one", "", write("foo", "foo\n", 0o777), make_directory("a"), make_directory("a/b"), write("a/b/c", "")
            )
            assert bench.stat("one").parent == ""
            assert bench.stat("one").kind == Kind.COMMITTED
            assert code(lambda: bench.stat("layer-1")) is errdefs.NotFoundError
            assert bench.seen("one") == first
            second = bench.layer("two", "one", write("bar", "bar\n"), write("foo", "bar\n"), remove_all("a/b"))
            assert second["foo"][4] == b"bar\n"
            assert "a/b" not in second
            assert bench.stat("two").parent == "one"
            assert bench.seen("two") == second
            assert bench.seen("one") == first
            assert bench.names() == ["one", "two"]
            assert code(lambda: bench.remove("one")) is errdefs.FailedPreconditionError
            bench.remove("two")
            bench.remove("one")
            assert bench.names() == []

    def test_active_snapshot(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            mounts = bench.prepare("active")
            assert mounts
            assert bench.mounts("active") == mounts
            with bench.mounted(mounts) as path:
                write("foo", "foo\n")(path)
                assert path.stat().st_mode & 0o7777 == 0o755
            info = bench.stat("active")
            assert (info.name, info.kind, info.parent) == ("active", Kind.ACTIVE, "")
            with bench.mounted(bench.mounts("active")) as path:
                assert (path / "foo").read_text() == "foo\n"

    def test_a_key_is_used_once(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            bench.layer("base", "")
            bench.prepare("active", "base")
            bench.view("view", "base")
            for key in ("active", "view", "base"):
                assert code(lambda key=key: bench.prepare(key, "base")) is errdefs.AlreadyExistsError  # type: ignore[misc]
                assert code(lambda key=key: bench.view(key, "base")) is errdefs.AlreadyExistsError  # type: ignore[misc]
            assert code(lambda: bench.commit("base", "active")) is errdefs.AlreadyExistsError
            assert bench.stat("active").kind == Kind.ACTIVE

    def test_parents_must_be_committed(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            bench.layer("base", "")
            bench.prepare("active", "base")
            bench.view("view", "base")
            assert code(lambda: bench.prepare("x", "active")) is errdefs.InvalidArgumentError
            assert code(lambda: bench.prepare("x", "view")) is errdefs.InvalidArgumentError
            assert code(lambda: bench.prepare("x", "nowhere")) is errdefs.NotFoundError
            assert bench.names() == ["active", "base", "view"]

    def test_only_active_snapshots_are_committed(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            bench.layer("base", "")
            bench.view("view", "base")
            assert code(lambda: bench.commit("x", "view")) is errdefs.FailedPreconditionError
            assert code(lambda: bench.commit("x", "base")) is errdefs.FailedPreconditionError
            assert code(lambda: bench.commit("x", "nowhere")) is errdefs.NotFoundError
            assert code(lambda: bench.mounts("base")) is errdefs.FailedPreconditionError
            assert code(lambda: bench.mounts("nowhere")) is errdefs.NotFoundError

    def test_removal_goes_from_the_top(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            bench.layer("base", "")
            bench.layer("middle", "base")
            bench.prepare("top", "middle")
            assert code(lambda: bench.remove("middle")) is errdefs.FailedPreconditionError
            for key in ("top", "middle", "base"):
                bench.remove(key)
            assert code(lambda: bench.remove("base")) is errdefs.NotFoundError

    def test_a_removed_key_can_be_used_again(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            bench.layer("base", "", write("foo", "foo"))
            bench.prepare("reused", "base")
            bench.remove("reused")
            bench.view("reused", "base")
            bench.remove("reused")
            with bench.mounted(bench.prepare("reused")) as path:
                assert not list(path.iterdir())
            bench.remove("base")
            bench.commit("base", "reused")
            assert list(bench.seen("base")) == ["."]

    def test_labels(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            bench.layer("base", "")
            bench.prepare("active", "base", labels={"a": "1", "empty": ""})
            assert bench.stat("active").labels == {"a": "1"}
            before = bench.stat("active")
            after = bench.update("active", {"l1": "v1", "l2": "v2"})
            assert after == bench.stat("active")
            assert after.labels == {"l1": "v1", "l2": "v2"}
            assert after.created_at == before.created_at < after.updated_at
            assert bench.update("active", {"l1": "new", "l4": "v4"}, "labels.l1", "labels.l2").labels == {"l1": "new"}
            assert code(lambda: bench.update("active", {}, "parent")) is errdefs.InvalidArgumentError
            assert code(lambda: bench.update("nowhere", {})) is errdefs.NotFoundError
            bench.commit("top", "active", labels={"own": "label"})
            assert bench.stat("top").labels == {"own": "label"}
            assert bench.stat("top").parent == "base"

    def test_lists_and_filters(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            bench.layer("p", "")
            bench.prepare("a-np")
            bench.prepare("a", "p", labels={"l": "2"})
            bench.view("v", "p", labels={"l": "3"})
            assert bench.names() == ["a", "a-np", "p", "v"]
            assert bench.names("kind==active") == ["a", "a-np"]
            assert bench.names("kind==view") == ["v"]
            assert bench.names("kind==committed") == ["p"]
            assert bench.names("parent==p") == ["a", "v"]
            assert bench.names('labels."l"==2', "name==p") == ["a", "p"]
            assert code(lambda: bench.names("kind=")) is errdefs.InvalidArgumentError

    def test_namespaces_are_apart(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            mine = bench.layer("same", "", write("mine", "1"))
            bench.prepare("key", namespace="other")
            bench.commit("same", "key", namespace="other")
            assert bench.seen("same") == mine
            with bench.mounted(bench.view("view", "same", namespace="other")) as path:
                assert not list(path.iterdir())
            assert bench.names(namespace="other") == ["same", "view"]
            assert bench.names() == ["same"]
            assert code(lambda: bench.prepare("x", "view", namespace="third")) is errdefs.NotFoundError
            for call in (bench.stat, bench.mounts, bench.remove, bench.usage):
                assert code(lambda call=call: call("view")) is errdefs.NotFoundError  # type: ignore[misc]

    # -- what is seen through the mounts ----------------------------------------------------------------------------

    def test_a_view_is_read_only(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            bench.layer("one", "", write("foo", "foo"))
            bench.layer("two", "one", write("bar", "bar"))
            for parent in ("", "one", "two"):
                with bench.mounted(bench.view(f"view-{parent}", parent)) as path:
                    assert _refuses(lambda path=path: write("x", "")(path))  # type: ignore[misc]
            assert bench.usage("view-two") == Usage()

    def test_what_a_child_changes_stays_in_the_child(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            below = bench.layer("one", "", write("same", "1"), write("gone", "1"), write("changed", "1"))
            with bench.mounted(bench.prepare("child", "one")) as path:
                (path / "gone").unlink()
                write("changed", "2")(path)
                os.chown(path / "same", 1, 2)
                (path / "same").chmod(0o4711)
            assert bench.seen("one") == below
            bench.commit("two", "child")
            above = bench.seen("two")
            assert "gone" not in above
            assert above["changed"][4] == b"2"
            assert above["same"][1:4] == (0o4711, 1, 2)

    def test_directories_are_removed_and_made_again(self, tmp_path: Path) -> None:
        """A directory that comes back is empty: what was below must not shine through (opaque)."""
        with Bench(tmp_path, self.snapshotter) as bench:
            bench.layer(
                "one", "", make_directory("d"), write("d/old", ""), make_directory("d/sub"), write("d/sub/x", "")
            )
            bench.layer("two", "one", remove_all("d"))
            assert list(bench.seen("two")) == ["."]
            bench.layer("three", "one", remove_all("d"), make_directory("d", 0o700), write("d/new", ""))
            assert sorted(bench.seen("three")) == [".", "d", "d/new"]
            bench.layer("four", "two", make_directory("d"))
            assert sorted(bench.seen("four")) == [".", "d"]

    def test_files_move_between_directories(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            bench.layer(
                "one",
                "",
                make_directory("dir1", 0o700),
                write("dir1/f1", "Hello"),
                make_directory("dir2"),
                write("dir2/f2", "..."),
            )
            bench.layer(
                "two",
                "one",
                make_directory("dir3"),
                lambda root: (root / "dir1/f1").rename(root / "dir3/f1"),
                lambda root: os.link(root / "dir2/f2", root / "dir3/f2"),
                remove_all("dir2/f2"),
                remove_all("dir1"),
            )
            tree = bench.seen("two")
            assert sorted(tree) == [".", "dir2", "dir3", "dir3/f1", "dir3/f2"]
            assert (tree["dir3/f1"][4], tree["dir3/f2"][4]) == (b"Hello", b"...")

    def test_directories_are_renamed(self, tmp_path: Path) -> None:
        """Programs take EXDEV for an answer, as from rename(2) of a directory of a lower layer, and copy."""
        with Bench(tmp_path, self.snapshotter) as bench:
            bench.layer("one", "", make_directory("old"), write("old/file", "1"))

            def move(root: Path) -> None:
                try:
                    (root / "old").rename(root / "new")
                except OSError:
                    (root / "new").mkdir()
                    (root / "old/file").rename(root / "new/file")
                    (root / "old").rmdir()
                (root / "made").mkdir()
                (root / "made").rename(root / "renamed")

            bench.layer("two", "one", move)
            assert sorted(bench.seen("two")) == [".", "new", "new/file", "renamed"]

    def testall_kinds_of_files_are_kept(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            below = bench.layer("one", "", all_kinds)
            assert bench.seen("one") == below
            with bench.mounted(bench.prepare("child", "one")) as path:
                assert describe(path) == below
            assert below["hard-1"][6] == below["hard-2"][6]

    def test_owner_of_the_root_directory_is_inherited(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            bench.layer("one", "", lambda root: os.chown(root, 1000, 1001))
            bench.layer("two", "one", write("file", ""))
            assert bench.seen("two")["."][2:4] == (1000, 1001)

    def test_an_image_of_many_layers(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            flat = tmp_path / "flat"
            flat.mkdir()
            parent = ""
            for index in range(self.layers):
                changes = _layer(index)
                key = f"extract-{index}"
                with bench.mounted(bench.prepare(key, parent)) as path:
                    for change in changes:
                        change(path)
                        change(flat)
                bench.store.note_usage(NAMESPACE, key, Usage(index, index))  # as an unpacker: not synced one by one
                parent = f"layer-{index}"
                bench.commit(parent, key)
            assert _contents(bench.seen(parent)) == _contents(describe(flat))
            with bench.mounted(bench.prepare("container", parent)) as path:
                write("written", "here")(path)
                assert (path / "bottom").read_text() == "way at the bottom\n"

    # -- what the store relies on -----------------------------------------------------------------------------------

    def test_usage(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            with bench.mounted(bench.prepare("active")) as path:
                empty = bench.usage("active")
                write("file", b"x" * 100_000)(path)
                os.link(path / "file", path / "again")
                os.sync()
            full = bench.usage("active")
            assert full.inodes == empty.inodes + 1
            assert full.size >= empty.size + 100_000
            bench.commit("name", "active")
            assert bench.usage("name") == full

    def test_commit_may_be_repeated(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            with bench.mounted(bench.prepare("active")) as path:
                write("file", "1")(path)
            snapshot = Snapshot(number=bench.number("active"), kind=Kind.ACTIVE)
            bench.snapshotter.commit(snapshot)
            bench.commit("name", "active")
            assert "file" in bench.seen("name")

    def test_nothing_is_left_of_what_was_removed(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            bench.layer("base", "", write("file", "1"))
            bench.prepare("active", "base")
            bench.view("view", "base")
            assert sorted(bench.snapshotter.numbers()) == sorted(map(bench.number, ("base", "active", "view")))
            for key in ("active", "view", "base"):
                bench.remove(key)
            bench.cleanup()
            assert list(bench.snapshotter.numbers()) == []

    def test_what_has_no_row_is_swept(self, tmp_path: Path) -> None:
        """A daemon that died between the bytes and the row leaves a number that nobody knows."""
        with Bench(tmp_path, self.snapshotter) as bench:
            base = bench.layer("base", "", write("file", "1"))
            below = (bench.number("base"),)
            bench.snapshotter.prepare(Snapshot(number=900, parents=below, kind=Kind.ACTIVE))
            bench.snapshotter.prepare(Snapshot(number=901, kind=Kind.VIEW))
            assert {900, 901} <= set(bench.snapshotter.numbers())
            assert upkeep.sweep(bench.db, bench.store).thrown_away == (900, 901)
            assert list(bench.snapshotter.numbers()) == [bench.number("base")]
            assert bench.seen("base") == base

    def test_numbers_are_not_used_again(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            bench.prepare("one")
            used = bench.number("one")
            bench.remove("one")
            bench.cleanup()
        with Bench(tmp_path, self.snapshotter) as bench:
            bench.prepare("two")
            assert bench.number("two") > used

    def test_a_restart_changes_nothing(self, tmp_path: Path) -> None:
        with Bench(tmp_path, self.snapshotter) as bench:
            below = bench.layer("base", "", write("file", "1"))
            mounts = bench.prepare("active", "base")
        with Bench(tmp_path, self.snapshotter) as bench:
            assert bench.seen("base") == below
            assert bench.mounts("active") == mounts
            bench.layer("two", "base", write("file", "2"))

    def test_written_paths_are_located(self, tmp_path: Path) -> None:
        """The diff service finds the snapshot that it unpacks into by its mounts."""
        with Bench(tmp_path, self.snapshotter) as bench:
            bench.layer("base", "")
            for key, parent in (("extract-1", ""), ("extract-2", "base")):
                bench.stores.note_applied(bench.prepare(key, parent), Usage(4711, 17))
                bench.commit(f"of-{key}", key)
                noted = bench.usage(f"of-{key}") == Usage(4711, 17)
                assert noted is (self.locates and not bench.snapshotter.whole)

    def test_rebase(self, tmp_path: Path) -> None:
        """A snapshotter either can put a layer on its parent when it is committed, or says that it cannot."""
        with Bench(tmp_path, self.snapshotter) as bench:
            bench.layer("base", "", write("below", "1"))
            with bench.mounted(bench.prepare("active")) as path:
                write("above", "2")(path)
            if "rebase" not in bench.snapshotter.capabilities:
                assert code(lambda: bench.commit("top", "active", parent="base")) is errdefs.UnimplementedError
                return
            bench.prepare("child", "base")
            bench.layer("other", "")
            assert code(lambda: bench.commit("x", "child", parent="other")) is errdefs.InvalidArgumentError
            assert code(lambda: bench.commit("x", "active", parent="nowhere")) is errdefs.NotFoundError
            assert code(lambda: bench.commit("x", "active", parent="child")) is errdefs.FailedPreconditionError
            bench.commit("top", "active", parent="base")
            assert bench.stat("top").parent == "base"
            assert sorted(bench.seen("top")) == [".", "above", "below"]


def _layer(index: int) -> list[Change]:
    if index == 0:
        return [
            write("bottom", "way at the bottom\n"),
            write("overwritten", "first\n"),
            make_directory("added"),
            make_directory("replaced"),
            write("replaced/bottom", "bye\n"),
        ]
    return [
        write("overwritten", f"{index} was here\n"),
        write(f"added/file-{index}", "same\n"),
        remove_all("replaced"),
        make_directory("replaced"),
        write(f"replaced/file-{index}", "only me\n"),
    ]


def _contents(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A tree without what differs between file systems made one after the other."""
    return {name: (entry[0], entry[1], entry[4]) for name, entry in tree.items() if name != "."}


def _refuses(call: Callable[[], object]) -> bool:
    try:
        call()
    except OSError:
        return True
    return False
