"""The Images service. Source: containerd's plugins/services/images/local.go."""

import asyncio
from typing import Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from orlop.api.services.images.v1 import images_pb2 as api
from orlop.base import namespaces
from orlop.base.errdefs import InvalidArgumentError, from_status
from orlop.base.rpc import Call, Service, bind
from orlop.core.gc import Scheduler
from orlop.core.images import Image, Target, events
from orlop.core.kinds import GC, GRPC, METADATA
from orlop.core.metadata import Database, Transaction
from orlop.core.metadata.images import ImageStore
from orlop.core.plugin import Context, Registration
from orlop.plugins.services.timestamps import from_timestamp, set_timestamp


class Images:
    """containerd.services.images.v1.Images."""

    def __init__(self, db: Database, collector: Scheduler) -> None:
        self._db = db
        self._collector = collector
        self._store = ImageStore(db)

    def get(self, call: Call, request: api.GetImageRequest) -> api.GetImageResponse:
        namespace = namespaces.validate(call.namespace)
        return api.GetImageResponse(image=_encode(self._store.get(namespace, request.name)))

    async def list(self, call: Call, request: api.ListImagesRequest) -> api.ListImagesResponse:
        namespace = namespaces.validate(call.namespace)
        response = api.ListImagesResponse()
        for page in self._store.pages(namespace, request.filters):
            for image in page:
                _fill(response.images.add(), image)
            await asyncio.sleep(0)
        return response

    async def create(self, call: Call, request: api.CreateImageRequest) -> api.CreateImageResponse:
        namespace = namespaces.validate(call.namespace)
        given = _decode(request.image)
        at = _time(request, request.source_date_epoch)

        def write(tx: Transaction) -> Image:
            image = self._store.create(tx, namespace, given, at=at, lease=call.lease, owner_uid=call.peer.uid)
            events.created(tx, namespace, image)
            return image

        return api.CreateImageResponse(image=_encode(await self._db.write(write)))

    async def update(self, call: Call, request: api.UpdateImageRequest) -> api.UpdateImageResponse:
        namespace = namespaces.validate(call.namespace)
        given = _decode(request.image)
        paths = tuple(request.update_mask.paths)
        at = _time(request, request.source_date_epoch)

        def write(tx: Transaction) -> Image:
            image = self._store.update(tx, namespace, given, paths, at=at, lease=call.lease)
            events.updated(tx, namespace, image)
            return image

        return api.UpdateImageResponse(image=_encode(await self._db.write(write)))

    async def delete(self, call: Call, request: api.DeleteImageRequest) -> Empty:
        namespace = namespaces.validate(call.namespace)
        name, target = request.name, request.target.digest

        def write(tx: Transaction) -> None:
            self._store.delete(tx, namespace, name, target=target, lease=call.lease)
            events.deleted(tx, namespace, name)

        await self._db.write(write)
        if request.sync:
            await self._collector.collect()
        return Empty()


def _decode(message: api.Image) -> Image:
    if not message.name:
        raise from_status(InvalidArgumentError.code, "Image.Name required")
    target = message.target
    return Image(
        name=message.name,
        labels=dict(message.labels),
        target=Target(
            media_type=target.media_type,
            digest=target.digest,
            size=target.size,
            annotations=dict(target.annotations),
        ),
    )


def _encode(image: Image) -> api.Image:
    message = api.Image()
    _fill(message, image)
    return message


def _fill(message: api.Image, image: Image) -> None:
    """Write an image into its message, field by field: by keywords it takes twice the time, which lists feel."""
    message.name = image.name
    if image.labels:
        message.labels.update(image.labels)
    target = message.target
    target.media_type = image.target.media_type
    target.digest = image.target.digest
    target.size = image.target.size
    if image.target.annotations:
        target.annotations.update(image.target.annotations)
    set_timestamp(message.created_at, image.created_at)
    set_timestamp(message.updated_at, image.updated_at)


def _time(request: api.CreateImageRequest | api.UpdateImageRequest, stamp: Timestamp) -> int | None:
    return from_timestamp(stamp) if request.HasField("source_date_epoch") else None


def _init(context: Context) -> Service:
    return bind(api.DESCRIPTOR.services_by_name["Images"], Images(context.get(METADATA), context.get(GC)))


REGISTRATION: Final = Registration(kind=GRPC, id="images", requires=(METADATA, GC), init=_init)
