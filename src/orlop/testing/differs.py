"""What every differ must do, as tests that a plug-in's author can run as root.

    from orlop.testing.differs import DifferContract

    class TestMine(DifferContract):
        @contextlib.asynccontextmanager
        async def differ(self, root: Path) -> AsyncIterator[tuple[Differ, Store]]:
            yield Mine(...), store

Run with pytest. A differ that only applies, or only makes layers, raises UnimplementedError for the other half; such a
class sets `applies` or `compares` to False.
"""

import asyncio
import contextlib
import gzip
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import ClassVar

import pytest

from orlop.base.errdefs import NotFoundError, OrlopError, UnavailableError, UnimplementedError
from orlop.base.labels import UNCOMPRESSED
from orlop.core.content import Store
from orlop.core.diff import Differ, LayerBlob
from orlop.core.mount import Mount
from orlop.oci.digest import Digest
from orlop.oci.media_types import OCI_LAYER, OCI_LAYER_GZIP
from orlop.testing.content import NAMESPACE, OTHER, read_blob, write_blob
from orlop.testing.trees import all_kinds, describe

Test = Callable[[Differ, Store], Awaitable[None]]


def bind(path: Path) -> list[Mount]:
    """Mounts that are a directory."""
    return [Mount(type="bind", source=str(path), options=("rw", "rbind"))]


def tree(base: Path) -> Path:
    """A directory beside the differ's own."""
    path = base / "tree"
    path.mkdir(exist_ok=True)
    return path


def archive(*names: str) -> bytes:
    """An archive of files that contain their names; one that ends in a slash is a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.mode = 0o755 if name.endswith("/") else 0o644
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            data = b"" if name.endswith("/") or ".wh." in name else name.encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


async def compare(
    differ: Differ,
    lower: Sequence[Mount],
    upper: Sequence[Mount],
    *,
    media_type: str = OCI_LAYER,
    ref: str = "",
    labels: dict[str, str] | None = None,
    epoch: int | None = None,
) -> LayerBlob:
    """`Differ.compare` with defaults."""
    return await differ.compare(
        NAMESPACE,
        lower,
        upper,
        media_type=media_type,
        ref=ref,
        labels=labels or {},
        source_date_epoch=epoch,
        lease="",
    )


async def apply(differ: Differ, store: Store, data: bytes, target: Path, media_type: str = OCI_LAYER) -> str:
    """Store an archive and apply it to a directory; the DiffID that the differ answers."""
    digest = await write_blob(store, data)
    layer = LayerBlob(media_type=media_type, digest=digest, size=len(data))
    return (await differ.apply(NAMESPACE, layer, bind(target))).digest


class DifferContract:
    """The suite; say `differ` to use it."""

    applies: ClassVar[bool] = True
    compares: ClassVar[bool] = True

    def differ(self, root: Path) -> AbstractAsyncContextManager[tuple[Differ, Store]]:
        """A context with a new differ and the content store that it works on, both below `root`."""
        raise NotImplementedError

    def run(self, root: Path, test: Test, *, applies: bool = False, compares: bool = False) -> None:
        """Run a test, unless it needs a half that the differ does not have."""
        if (applies and not self.applies) or (compares and not self.compares):
            pytest.skip("this differ does not do that")

        async def inside() -> None:
            (root / "differ").mkdir()
            async with self.differ(root / "differ") as (differ, store):
                await test(differ, store)

        asyncio.run(inside())

    def test_a_layer_is_unpacked_and_its_archive_named(self, tmp_path: Path) -> None:
        data = archive("dir/", "dir/file", "file")

        async def test(differ: Differ, store: Store) -> None:
            for blob, media_type in ((data, OCI_LAYER), (gzip.compress(data), OCI_LAYER_GZIP)):
                target = tmp_path / media_type.rpartition(".")[2]
                target.mkdir()
                assert await apply(differ, store, blob, target, media_type) == Digest.of(data)
                assert (target / "dir/file").read_text() == "dir/file"
                assert (target / "file").read_text() == "file"

        self.run(tmp_path, test, applies=True)

    def test_a_layer_deletes_what_was_below(self, tmp_path: Path) -> None:
        async def test(differ: Differ, store: Store) -> None:
            target = tmp_path / "target"
            target.mkdir()
            await apply(differ, store, archive("a/", "a/one", "b/", "b/two", "c"), target)
            await apply(differ, store, archive(".wh.a", "b/.wh..wh..opq", "b/three", ".wh.c"), target)
            assert sorted(str(path.relative_to(target)) for path in target.rglob("*")) == ["b", "b/three"]

        self.run(tmp_path, test, applies=True)

    def test_nothing_leaves_the_tree(self, tmp_path: Path) -> None:
        async def test(differ: Differ, store: Store) -> None:
            target, outside = tmp_path / "target", tmp_path / "outside"
            target.mkdir()
            outside.mkdir()
            (target / "link").symlink_to(outside)
            for number, name in enumerate(("../outside/one", "link/two", "/../../three")):
                inner = target / str(number)
                shutil.copytree(target, inner, symlinks=True, ignore=shutil.ignore_patterns("[0-9]"))
                with contextlib.suppress(OrlopError):  # refused, or made inside
                    await apply(differ, store, archive(name), inner)
            assert os.listdir(outside) == []
            assert not (tmp_path / "three").exists()

        self.run(tmp_path, test, applies=True)

    def test_what_is_no_archive_is_an_error_that_names_the_layer(self, tmp_path: Path) -> None:
        async def test(differ: Differ, store: Store) -> None:
            data = b"no archive, but long enough for the header of one" * 20
            with pytest.raises(OrlopError, match=str(Digest.of(data))):
                await apply(differ, store, data, tree(tmp_path))

        self.run(tmp_path, test, applies=True)

    def test_blobs_of_others_cannot_be_unpacked(self, tmp_path: Path) -> None:
        async def test(differ: Differ, store: Store) -> None:
            digest = await write_blob(store, archive("file"), namespace=OTHER)
            with pytest.raises(NotFoundError):
                await differ.apply(NAMESPACE, LayerBlob(media_type=OCI_LAYER, digest=digest), bind(tree(tmp_path)))
            assert not (tree(tmp_path) / "file").exists()

        self.run(tmp_path, test, applies=True)

    def test_media_types_of_others_are_left_to_them(self, tmp_path: Path) -> None:
        async def test(differ: Differ, store: Store) -> None:
            with pytest.raises(UnimplementedError):
                await compare(differ, [], bind(tree(tmp_path)), media_type="application/vnd.example.unheard-of")
            with pytest.raises(UnimplementedError):
                await apply(differ, store, archive("file"), tree(tmp_path), "application/vnd.example.unheard-of")

        self.run(tmp_path, test)

    def test_a_layer_applied_to_what_is_below_gives_what_is_above(self, tmp_path: Path) -> None:
        async def test(differ: Differ, store: Store) -> None:
            lower, upper, target = (tmp_path / name for name in ("lower", "upper", "target"))
            for path in (lower, upper, target):
                path.mkdir()
                (path / "gone").mkdir()
                (path / "gone/inside").touch()
                (path / "replaced").touch()
                (path / "kept").write_text("as it was")
                os.utime(path / "kept", (1, 1))
            shutil.rmtree(upper / "gone")
            (upper / "replaced").unlink()
            (upper / "replaced").mkdir()
            all_kinds(upper)
            layer = await compare(differ, bind(lower), bind(upper))
            data = await read_blob(store, layer.digest)
            with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
                assert "kept" not in tar.getnames()
            await differ.apply(NAMESPACE, layer, bind(target))
            found, expected = describe(target), describe(upper)
            del found["."], expected["."]  # the root itself is no part of a layer
            assert found == expected

        self.run(tmp_path, test, applies=True, compares=True)

    def test_layers_are_stored_with_their_labels(self, tmp_path: Path) -> None:
        async def test(differ: Differ, store: Store) -> None:
            upper = tmp_path / "upper"
            upper.mkdir()
            (upper / "file").write_text("contents")
            plain = await compare(differ, [], bind(upper), labels={"colour": "blue"})
            assert plain.media_type == OCI_LAYER
            info = await store.info(NAMESPACE, plain.digest)
            assert (info.size, info.labels) == (plain.size, {"colour": "blue"})
            zipped = await compare(differ, [], bind(upper), media_type=OCI_LAYER_GZIP)
            assert (await store.info(NAMESPACE, zipped.digest)).labels == {UNCOMPRESSED: plain.digest}
            data = gzip.decompress(await read_blob(store, zipped.digest))
            assert f"sha256:{hashlib.sha256(data).hexdigest()}" == plain.digest

        self.run(tmp_path, test, compares=True)

    def test_the_same_trees_give_the_same_layer(self, tmp_path: Path) -> None:
        async def test(differ: Differ, store: Store) -> None:
            for name in ("one", "two"):
                (tmp_path / name).mkdir()
                for number in range(10):
                    (tmp_path / name / str(number)).write_text("contents")
            os.utime(tmp_path / "one/5", (10**9, 10**9))
            layers = [await compare(differ, [], bind(tmp_path / name), epoch=5 * 10**9) for name in ("one", "two")]
            assert layers[0] == layers[1]
            with tarfile.open(fileobj=io.BytesIO(await read_blob(store, layers[0].digest))) as tar:
                assert {member.mtime for member in tar} == {5}

        self.run(tmp_path, test, compares=True)

    def test_equal_trees_give_an_empty_layer(self, tmp_path: Path) -> None:
        async def test(differ: Differ, store: Store) -> None:
            (tree(tmp_path) / "file").touch()
            layer = await compare(differ, bind(tree(tmp_path)), bind(tree(tmp_path)))
            assert not (await read_blob(store, layer.digest)).strip(b"\0")

        self.run(tmp_path, test, compares=True)

    def test_refs_are_begun_again_and_have_one_writer(self, tmp_path: Path) -> None:
        async def test(differ: Differ, store: Store) -> None:
            writer = await store.writer(NAMESPACE, "mine")
            await writer.write(b"something else")
            with pytest.raises(UnavailableError):
                await compare(differ, [], bind(tree(tmp_path)), ref="mine")
            await writer.close()
            layer = await compare(differ, [], bind(tree(tmp_path)), ref="mine")
            assert layer == await compare(differ, [], bind(tree(tmp_path)))
            assert not await store.list_statuses(NAMESPACE)

        self.run(tmp_path, test, compares=True)

    def test_mounts_that_cannot_be_leave_no_ingest(self, tmp_path: Path) -> None:
        async def test(differ: Differ, store: Store) -> None:
            with pytest.raises(OrlopError):
                await compare(differ, [], bind(tmp_path / "none"))
            assert not await store.list_statuses(NAMESPACE)

        self.run(tmp_path, test, compares=True)
