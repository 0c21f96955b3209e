"""Checkpoints of containers: an image that holds what one needs to make a container again, here or elsewhere.

The image's target is an index whose annotations name the container's image, runtime and snapshotter, and whose entries
are, each where it was asked for:

    the container's image            its own target
    the state of the task            application/vnd.containerd.container.criu.checkpoint.criu.tar
    the options it was taken with    application/vnd.containerd.container.checkpoint.options.v1+proto
    the runtime's options            application/vnd.containerd.container.checkpoint.runtime.options+proto
    the spec                         application/vnd.containerd.container.checkpoint.config.v1+proto
    what was written to the files    application/vnd.oci.image.layer.v1.tar+gzip

Documents of protobuf are an `Any` each. Source: containerd's client/container.go, container_checkpoint_opts.go and
container_restore_opts.go. There only a task's checkpoint has the spec; here each has, so that each can be restored.
"""

import contextlib
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.message import DecodeError

from orlop.api.services.tasks.v1 import tasks_pb2
from orlop.base.errdefs import FailedPreconditionError, InvalidArgumentError, NotFoundError, OrlopError
from orlop.base.labels import GC_REF_CONTENT
from orlop.client import tasks
from orlop.client.containers import SPEC_TYPE_URL, Container, Containers
from orlop.client.content import Content
from orlop.client.descriptors import from_pb
from orlop.client.diff import Diff
from orlop.client.images import Image, Images
from orlop.client.leases import Held
from orlop.client.session import Session
from orlop.client.snapshots import Snapshots
from orlop.client.tasks import TaskStatus
from orlop.core.leases import unique_id
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor, Index, decode_index, encode

IMAGE_NAME: Final = "org.opencontainers.image.ref.name"
RUNTIME_NAME: Final = "io.containerd.checkpoint.runtime"
SNAPSHOTTER_NAME: Final = "io.containerd.checkpoint.snapshotter"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointOptions:
    """What a checkpoint holds beside the container's record.

    Attributes:
        image: the image that the container was made from, whole.
        rw: what was written to its files.
        task: the state of its task, which CRIU takes.
        stop: end the task once its state is taken.
        work_path: where CRIU's logs go.
    """

    image: bool = False
    rw: bool = False
    task: bool = False
    stop: bool = False
    work_path: str = ""


async def checkpoint(session: Session, container: Container, ref: str, options: CheckpointOptions) -> Image:
    """Take a checkpoint of a container; see `Container.checkpoint`."""
    async with Held(session) as held:
        paused = await _pause(container)
        stopped = False
        try:
            entries = await _entries(held, container, options)
            stopped = options.task and options.stop
        finally:
            if paused is not None and not stopped:
                await paused.resume()
        annotations = {
            IMAGE_NAME: container.image,
            RUNTIME_NAME: container.record.runtime,
            SNAPSHOTTER_NAME: container.record.snapshotter,
        }
        blob = encode(Index(manifests=tuple(entries), annotations=annotations))
        labels = {f"{GC_REF_CONTENT}.{number}": str(entry.digest) for number, entry in enumerate(entries)}
        digest = await Content(held).write(f"{container.id}-index-{unique_id()}", blob, labels=labels)
        target = Descriptor(media_type=media_types.OCI_INDEX, digest=Digest.parse(digest), size=len(blob))
        await Images(held).create(ref, target)
    return await Images(session).get(ref)


async def checkpoint_task(session: Session, container: Container, name: str, *, stop: bool, work_path: str) -> Image:
    """Take a checkpoint of a container with its task, its image and what it has written; see `Task.checkpoint_image`.

    Source: Checkpoint in containerd's client/task.go.
    """
    options = CheckpointOptions(
        image=bool(container.image),
        rw=bool(container.record.snapshot_key),
        task=True,
        stop=stop,
        work_path=work_path,
    )
    ref = name or f"containerd.io/checkpoint/{container.id}:{datetime.now().astimezone():%m-%d-%Y-%H:%M:%S}"
    image = await checkpoint(session, container, ref, options)
    return await Images(session).label(image.name, {"containerd.io/checkpoint": "true"})


async def restore(session: Session, container_id: str, ref: str, *, rw: bool) -> Container:
    """Make a container from a checkpoint; see `Client.restore`."""
    async with Held(session) as held:
        image = await Images(held).get(ref)
        index = await read_index(held, image)
        notes = index.annotations
        for name, what in ((IMAGE_NAME, "image name"), (SNAPSHOTTER_NAME, "snapshotter"), (RUNTIME_NAME, "runtime")):
            if not notes.get(name):
                raise NotFoundError(f"{what} of checkpoint {ref}: its index has no annotation {name}")
        spec = await _packed(held, index, media_types.CHECKPOINT_CONFIG, ref)
        if spec is None:
            raise NotFoundError(f"spec of checkpoint {ref}", hint="it was taken without --task by an older client")
        layer = _find(index, media_types.OCI_LAYER_GZIP) if rw else None
        if rw and layer is None:
            raise NotFoundError(f"the rw layer of checkpoint {ref}", hint="it was taken without --rw")
        runtime_options = await _packed(held, index, media_types.CHECKPOINT_RUNTIME_OPTIONS, ref)
        base = await Images(held).get(notes[IMAGE_NAME])
        parent = await base.unpack(snapshotter=notes[SNAPSHOTTER_NAME])
        snapshots = Snapshots(held, notes[SNAPSHOTTER_NAME])
        mounts = await snapshots.prepare(container_id, parent)
        try:
            if layer is not None:
                await Diff(held).apply(layer, mounts)
            made = await Containers(held).create(
                container_id,
                spec.value,
                image=base.name,
                runtime=notes[RUNTIME_NAME],
                runtime_options=runtime_options,
                snapshotter=snapshots.name,
                snapshot_key=container_id,
            )
        except BaseException:
            with contextlib.suppress(OrlopError):  # the first error tells
                await snapshots.remove(container_id)
            raise
    return Container(session, made.record)


async def read_index(session: Session, image: Image) -> Index:
    """The index of a checkpoint's image. Raises InvalidArgumentError for an image that is none."""
    blob = await Content(session).read(image.target.digest)
    return decode_index(blob, what=f"checkpoint {image.name}")


async def task_digest(session: Session, image: Image) -> str:
    """The digest of the task's state in a checkpoint, for `Container.new_task`. Raises NotFoundError if it has none."""
    found = _find(await read_index(session, image), media_types.CHECKPOINT)
    if found is None:
        raise NotFoundError(f"a task's state in checkpoint {image.name}", hint="it was taken without --task")
    return str(found.digest)


async def _pause(container: Container) -> "tasks.Task | None":
    """Freeze a task that runs, so that what is read belongs together; the task if we have done so."""
    try:
        task = await container.task()
        if await task.status() is not TaskStatus.RUNNING:
            return None
        await task.pause()
    except NotFoundError:
        return None
    return task


async def _entries(session: Session, container: Container, options: CheckpointOptions) -> list[Descriptor]:
    record = container.record
    entries = []
    if record.runtime_options is not None and record.runtime_options.type_url:
        blob = record.runtime_options.SerializeToString()
        entries.append(await _stored(session, blob, media_types.CHECKPOINT_RUNTIME_OPTIONS))
    if options.image:
        if not container.image:
            raise FailedPreconditionError(f"container {container.id} was made from no image")
        entries.append((await Images(session).get(container.image)).target)
    if options.rw:
        entries.append(await _rw_layer(session, container))
    if options.task:
        entries += await _task_state(session, container, options)
    if not any(entry.media_type == media_types.CHECKPOINT_CONFIG for entry in entries):
        spec = PackedAny(type_url=SPEC_TYPE_URL, value=record.spec)
        entries.append(await _stored(session, spec.SerializeToString(), media_types.CHECKPOINT_CONFIG))
    return entries


async def _rw_layer(session: Session, container: Container) -> Descriptor:
    """What the container has written, as a layer."""
    record = container.record
    if not record.snapshot_key:
        raise FailedPreconditionError(f"container {container.id} has no snapshot")
    snapshots = Snapshots(session, record.snapshotter)
    info = await snapshots.stat(record.snapshot_key)
    key = f"{info.parent or record.snapshot_key}-view-{unique_id()}"
    lower = await snapshots.view(key, info.parent)
    try:
        upper = await snapshots.mounts(record.snapshot_key)
        ref = f"checkpoint-rw-{record.snapshot_key}-{unique_id()}"
        return await Diff(session).compare(lower, upper, media_type=media_types.OCI_LAYER_GZIP, ref=ref)
    finally:
        with contextlib.suppress(NotFoundError):
            await snapshots.remove(key)


async def _task_state(session: Session, container: Container, options: CheckpointOptions) -> list[Descriptor]:
    from orlop.api.types.runc.options import oci_pb2

    wanted = oci_pb2.CheckpointOptions(exit=options.stop, file_locks=True, work_path=options.work_path)
    packed = PackedAny(type_url=wanted.DESCRIPTOR.full_name, value=wanted.SerializeToString())
    request = tasks_pb2.CheckpointTaskRequest(container_id=container.id, options=packed)
    answer = await session.call(tasks.CHECKPOINT, request, endless=True)
    found = [from_pb(one) for one in answer.descriptors]
    return [*found, await _stored(session, packed.SerializeToString(), media_types.CHECKPOINT_OPTIONS)]


async def _stored(session: Session, blob: bytes, media_type: str) -> Descriptor:
    digest = await Content(session).write(f"checkpoint-{Digest.of(blob)}-{unique_id()}", blob)
    return Descriptor(media_type=media_type, digest=Digest.parse(digest), size=len(blob))


async def _packed(session: Session, index: Index, media_type: str, ref: str) -> PackedAny | None:
    found = _find(index, media_type)
    if found is None:
        return None
    packed = PackedAny()
    try:
        packed.ParseFromString(await Content(session).read(found.digest))
    except DecodeError as error:
        raise InvalidArgumentError(f"checkpoint {ref}: {media_type} cannot be read: {error}") from error
    return packed


def _find(index: Index, media_type: str) -> Descriptor | None:
    return next((one for one in index.manifests if one.media_type == media_type), None)
