"""What every handler of a type of mounts must do, as tests that a plug-in's author can run.

    from orlop.testing.mounts import MountHandlerContract

    class TestMine(MountHandlerContract):
        def handler(self) -> Handler:
            return Mine()

        def example(self, directory: Path) -> Mount:
            return Mount(type="mine", source=make_something(directory))

Run with pytest, as root: mounts are real. The suite asks what our manager of mounts relies on when it undoes an
activation that failed half-way, starts again after a crash, or takes one away that somebody uses.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orlop.base.errdefs import OrlopError
from orlop.core.mount import Mount
from orlop.core.mount.activation import ActiveMount, Handler
from orlop.core.mount.perform import mounts_below, unmount_all


class MountHandlerContract:
    """Subclass it and define `handler` and `example`."""

    def handler(self) -> Handler:
        """A handler as the daemon has it; called anew where a later run of the daemon is meant."""
        raise NotImplementedError

    def example(self, directory: Path) -> Mount:
        """A mount of its type, of something made in `directory`, which is empty; nothing has to stand before it."""
        raise NotImplementedError

    @pytest.fixture
    def mount(self, tmp_path: Path) -> Mount:
        """What `example` makes."""
        (tmp_path / "made").mkdir()
        return self.example(tmp_path / "made")

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Path]:
        """Where the manager would have it performed: nothing is there, and nothing must stay."""
        directory = tmp_path / "targets"
        directory.mkdir()
        yield directory / "0"
        left = os.listdir(directory)
        for path in mounts_below(str(directory)):
            unmount_all(path)
        shutil.rmtree(directory)
        # The manager removes an empty directory itself.
        assert [name for name in left if name != "0"] == [], "something is left beside the target"

    def test_it_stands_and_goes(self, mount: Mount, place: Path) -> None:
        handler = self.handler()
        active = handler.mount(mount, str(place), [])
        assert active.mount_point == str(place)
        assert active.mount.type == mount.type
        assert active.mounted_at > 0
        assert place.exists()
        assert handler.is_active(active)
        handler.unmount(str(place))
        assert not handler.is_active(active)
        assert mounts_below(str(place.parent)) == []

    def test_a_later_run_knows_it_by_what_was_recorded(self, mount: Mount, place: Path) -> None:
        active = self.handler().mount(mount, str(place), [])
        later = self.handler()
        assert later.is_active(active)
        later.unmount(str(place))
        assert not later.is_active(active)

    def test_undone_twice_or_never_done(self, mount: Mount, place: Path) -> None:
        handler = self.handler()
        handler.unmount(str(place))
        handler.mount(mount, str(place), [])
        handler.unmount(str(place))
        handler.unmount(str(place))

    def test_again_at_the_same_place(self, mount: Mount, place: Path) -> None:
        handler = self.handler()
        for _ in range(3):
            active = handler.mount(mount, str(place), [])
            assert handler.is_active(active)
            handler.unmount(str(place))
            if place.is_dir():
                place.rmdir()

    def test_two_of_the_same_source(self, mount: Mount, place: Path) -> None:
        """Such as one layer under two containers."""
        handler, other = self.handler(), place.with_name("1")
        first = handler.mount(mount, str(place), [])
        second = handler.mount(mount, str(other), [first])
        handler.unmount(str(place))
        assert not handler.is_active(first)
        assert handler.is_active(second)
        handler.unmount(str(other))
        if other.is_dir():
            other.rmdir()

    def test_what_cannot_be_performed_leaves_nothing(self, mount: Mount, place: Path, tmp_path: Path) -> None:
        handler = self.handler()
        missing = replace(mount, source=str(tmp_path / "missing"))
        with pytest.raises(OrlopError, match="missing"):
            handler.mount(missing, str(place), [])
        assert mounts_below(str(place.parent)) == []
        assert not handler.is_active(ActiveMount(mount=missing, mount_point=str(place), mounted_at=1))
        handler.unmount(str(place))
