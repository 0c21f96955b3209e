"""Checkpoints of tasks as content: the directory that the OCI runtime dumps into, as a tar archive and back.

    CHECKPOINT          the directory, uncompressed
    CHECKPOINT_CONFIG   the container's spec as a serialised `Any`

These two blobs are what Tasks.Checkpoint answers with; an index over them, with image and writable layer, is made by
the client. Source: Checkpoint and Create in containerd's plugins/services/tasks/local.go.
"""

import asyncio
import contextlib
import io
import os
import shutil
import stat
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from orlop.base.errdefs import AlreadyExistsError, DataLossError, InternalError, OrlopError, UnimplementedError
from orlop.core.content import Store
from orlop.core.diff import Differ, LayerBlob
from orlop.core.mount import Mount
from orlop.oci import media_types

_CHUNK: Final = 1 << 20
_BLOCK: Final = 512


class Checkpoints:
    """Puts checkpoints into the content store and lays them out again.

    Args:
        differ: unpacks, in a process of its own, for an archive may be anybody's; None where there is none.
    """

    def __init__(self, store: Store, differ: Differ | None) -> None:
        self._store = store
        self._differ = differ

    async def lay_out(self, namespace: str, blob: LayerBlob, directory: Path) -> None:
        """Unpack a checkpoint into the empty `directory`.

        Raises:
            NotFoundError: the namespace has no such blob.
            OrlopError: it is no archive, or the disk is full; see `Differ.apply`.
        """
        if self._differ is None:
            raise UnimplementedError(f"checkpoint {blob.digest}: no differ to unpack it with")
        archive = LayerBlob(media_type=media_types.OCI_LAYER, digest=blob.digest, size=blob.size)
        await self._differ.apply(namespace, archive, [Mount(type="bind", source=os.fspath(directory))])

    async def store(self, namespace: str, directory: Path, spec: bytes, *, lease: str) -> list[LayerBlob]:
        """Write the checkpoint in `directory`, and the container's spec, into the content store.

        Returns:
            Both blobs, the checkpoint first. Nothing refers to them yet but the lease, if one is named.
        """
        ref = os.fspath(directory)
        checkpoint = await self._write(namespace, media_types.CHECKPOINT, ref, archive(directory), lease)
        config = await self._write(namespace, media_types.CHECKPOINT_CONFIG, f"{ref}/spec", iter([spec]), lease)
        return [checkpoint, config]

    async def _write(self, namespace: str, media_type: str, ref: str, data: Iterator[bytes], lease: str) -> LayerBlob:
        size = 0
        writer = await self._store.writer(namespace, ref, lease=lease)
        try:
            while chunk := await asyncio.to_thread(next, data, b""):
                await writer.write(chunk)
                size += len(chunk)
            with contextlib.suppress(AlreadyExistsError):  # the same bytes are there, which is as good
                await writer.commit()
        except BaseException:
            await asyncio.shield(self._abort(namespace, ref, lease))
            raise
        finally:
            await writer.close()
        return LayerBlob(media_type=media_type, digest=writer.digest(), size=size)

    async def _abort(self, namespace: str, ref: str, lease: str) -> None:
        with contextlib.suppress(OrlopError):  # the first failure is the caller's; the collector takes old ingests
            await self._store.abort(namespace, ref, lease=lease)


def archive(directory: Path) -> Iterator[bytes]:
    """The tree in `directory` as a tar archive, in chunks: names relative and in order, links not followed.

    Raises:
        DataLossError: a file became shorter while it was read.
    """
    # Never written to: it knows which inodes it has seen, for hard links.
    scribe = tarfile.TarFile(fileobj=io.BytesIO(), mode="w", format=tarfile.PAX_FORMAT)
    for path in sorted(directory.rglob("*")):
        if stat.S_ISSOCK(path.lstat().st_mode):  # no archive has sockets
            continue
        info = scribe.gettarinfo(path, arcname=os.fspath(path.relative_to(directory)))
        info.uname = info.gname = ""
        yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if info.isreg():
            yield from _contents(path, info.size)
    yield bytes(2 * _BLOCK)


def _contents(path: Path, size: int) -> Iterator[bytes]:
    left = size
    with open(path, "rb", buffering=0) as file:
        while left:
            chunk = file.read(min(_CHUNK, left))
            if not chunk:
                raise DataLossError(f"checkpoint: {path} became shorter while it was read")
            left -= len(chunk)
            yield chunk
    if size % _BLOCK:
        yield bytes(_BLOCK - size % _BLOCK)


@contextlib.asynccontextmanager
async def scratch(work: Path) -> AsyncIterator[Path]:
    """A directory of the task's own, on disk, for a dump that becomes content; it is removed on leaving."""
    directory = work / f"checkpoint-{os.urandom(8).hex()}"
    try:
        await asyncio.to_thread(directory.mkdir, 0o700)
    except OSError as error:
        raise InternalError(f"checkpoint: make {directory}: {error.strerror}") from error
    try:
        yield directory
    finally:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True))
