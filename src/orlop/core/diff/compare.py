"""Making a layer of what differs between two lists of mounts: the plan of the job, and how its output becomes content.

The worker writes into a pipe, compressed, and the daemon moves that into an ingest as it comes: any content store will
do, and a slow one slows the worker down.
"""

import asyncio
import base64
import contextlib
import dataclasses
import fcntl
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Final

from orlop.base import errdefs
from orlop.base.labels import UNCOMPRESSED
from orlop.core.content import Info, Store, Writer
from orlop.core.diff import LayerBlob
from orlop.core.diff.apply import failure
from orlop.core.diff.stream import Compression
from orlop.core.diff.workers import JobError, Message, Pool, readable
from orlop.core.mount import Mount, options
from orlop.oci import media_types

log: Final = logging.getLogger(__name__)

_COMPRESSIONS: Final = {
    media_types.OCI_LAYER: Compression.NONE,
    media_types.OCI_LAYER_GZIP: Compression.GZIP,
    media_types.OCI_LAYER_ZSTD: Compression.ZSTD,
}
_PIPE: Final = 1 << 20
_SUBJECT: Final = "make a layer"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the worker is given to read.

    Attributes:
        changed: directory that overlayfs merges over `lower` to give `upper`, or None where that is not so.
        marks: prefix of overlayfs's extended attributes in it: `trusted.overlay` or `user.overlay`.
    """

    lower: Sequence[Mount]
    upper: Sequence[Mount]
    changed: str | None = None
    marks: str = "trusted.overlay"

    @classmethod
    def of(cls, lower: Sequence[Mount], upper: Sequence[Mount]) -> "Plan":
        """The quickest way to compare."""
        above, below = _layers(upper), _layers(lower)
        if above is None or below is None or not below or above[1:] != below:
            return cls(lower=lower, upper=upper)
        marks = "user.overlay" if "userxattr" in upper[0].options else "trusted.overlay"
        return cls(lower=lower, upper=upper, changed=above[0], marks=marks)

    def request(self, *, compression: Compression, epoch: int | None) -> Message:
        """As the zygote takes it."""
        changed = [Mount(type="bind", source=self.changed, options=("ro", "rbind"))] if self.changed else []
        trees = {"lower": self.lower, "upper": self.upper, "changed": changed}
        return {
            "kind": "compare",
            **{name: [dataclasses.asdict(mount) for mount in mounts] for name, mounts in trees.items()},
            "marks": self.marks,
            "compression": compression.value,
            "epoch": epoch,
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """An archive as it came out.

    Attributes:
        digest, size: of the uncompressed archive.
        quick: whether a layer of an overlay told where to look.
    """

    digest: str
    size: int
    quick: bool


async def compare(
    pool: Pool,
    store: Store,
    namespace: str,
    lower: Sequence[Mount],
    upper: Sequence[Mount],
    *,
    media_type: str,
    ref: str = "",
    labels: Mapping[str, str],
    source_date_epoch: int | None = None,
    lease: str = "",
) -> LayerBlob:
    """Put what turns `lower` into `upper` into the content store; see `Differ.compare`."""
    compression = _COMPRESSIONS.get(media_type)
    if compression is None:
        raise errdefs.UnimplementedError(f"unsupported diff media type: {media_type}")
    ingest = ref or _unique_ref()
    writer = await store.writer(namespace, ingest, lease=lease)
    try:
        if writer.status().offset:
            await writer.truncate()
        made = await make(pool, writer, Plan.of(lower, upper), compression=compression, epoch=source_date_epoch)
        every = dict(labels)
        if compression is not Compression.NONE:
            every[UNCOMPRESSED] = made.digest
        info = await _commit(store, namespace, writer, every)
    except BaseException:
        await writer.close()
        if not ref:
            await _abort(store, namespace, ingest, lease)
        raise
    return LayerBlob(media_type=media_type, digest=info.digest, size=info.size)


async def make(pool: Pool, writer: Writer, plan: Plan, *, compression: Compression, epoch: int | None) -> Made:
    """Have the layer made and write it to `writer`; see `Differ.compare` for what is raised."""
    request = plan.request(compression=compression, epoch=epoch)
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        os.set_blocking(read_end, False)
        with contextlib.suppress(PermissionError):  # beyond the user's share of pipe pages
            fcntl.fcntl(read_end, fcntl.F_SETPIPE_SZ, _PIPE)
        async with asyncio.TaskGroup() as group:
            group.create_task(_move(read_end, writer))
            try:
                done = await pool.run(request, write_end)
            finally:
                os.close(write_end)  # the worker is dead, so this was the last: `_move` sees the end
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]
        raise (failure(_SUBJECT, first) if isinstance(first, JobError) else first) from None
    finally:
        os.close(read_end)
    return Made(digest=done["digest"], size=done["size"], quick=done["quick"])


async def _move(source: int, writer: Writer) -> None:
    """Everything that comes out of a pipe, into an ingest."""
    while True:
        try:
            data = os.read(source, _PIPE)
        except BlockingIOError:
            await readable(source)
            continue
        if not data:
            return
        await writer.write(data)


async def _commit(store: Store, namespace: str, writer: Writer, labels: Mapping[str, str]) -> Info:
    """Turn the ingest into content; a blob that is there already gets the label that it lacks."""
    digest = writer.digest()
    try:
        return await writer.commit(labels=labels)
    except errdefs.AlreadyExistsError:
        info = await store.info(namespace, digest)
    if UNCOMPRESSED in labels and UNCOMPRESSED not in info.labels:
        info = await store.update(namespace, digest, {UNCOMPRESSED: labels[UNCOMPRESSED]}, [f"labels.{UNCOMPRESSED}"])
    return info


async def _abort(store: Store, namespace: str, ref: str, lease: str) -> None:
    try:
        await store.abort(namespace, ref, lease=lease)
    except errdefs.NotFoundError:
        pass  # it became content, or was aborted by someone else
    except errdefs.OrlopError:
        log.warning("the ingest of a layer that could not be made stays", extra={"ref": ref}, exc_info=True)


def _unique_ref() -> str:
    return f"{time.time_ns()}-{base64.urlsafe_b64encode(os.urandom(3)).decode()}"


def _layers(mounts: Sequence[Mount]) -> tuple[str, ...] | None:
    """The directories that are merged, topmost first, or None if that cannot be told."""
    if not mounts:
        return ()
    if len(mounts) > 1:
        return None
    (mount,) = mounts
    if mount.target or any(option.startswith(("uidmap=", "gidmap=")) for option in mount.options):
        return None
    if mount.type == "bind":
        return (mount.source,)
    lower = options.value(mount.options, "lowerdir")
    if mount.type != "overlay" or lower is None:
        return None
    upper = options.value(mount.options, "upperdir")
    layers = (*([upper] if upper is not None else []), *options.split_layers(lower))
    return layers if all(layers) else None  # "::" begins layers that hold data only
