"""The ends of a transfer as messages, with names of streams in place of what runs over them."""

from collections.abc import Iterable

from google.protobuf.message import Message

from orlop.api.types import descriptor_pb2, platform_pb2
from orlop.api.types.transfer import imagestore_pb2, importexport_pb2, progress_pb2, registry_pb2
from orlop.base.platforms import Platform
from orlop.core.transfer.ends import (
    HTTPDebug,
    ImageExportStream,
    ImageImportStream,
    ImageReference,
    ImageStore,
    OCIRegistry,
    UnpackConfiguration,
)
from orlop.core.transfer.progress import Event
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor


def registry_message(registry: OCIRegistry, *, auth_stream: str = "", logs_stream: str = "") -> Message:
    """A registry for the wire."""
    return registry_pb2.OCIRegistry(
        reference=registry.reference,
        resolver=registry_pb2.RegistryResolver(
            auth_stream=auth_stream,
            headers=registry.headers,
            host_dir=registry.host_dir,
            default_scheme=registry.default_scheme,
            http_debug=int(registry.http_debug),  # type: ignore[arg-type]  # protobuf enums are ints
            logs_stream=logs_stream,
        ),
    )


def store_message(store: ImageStore) -> Message:
    """An image store for the wire."""
    return imagestore_pb2.ImageStore(
        name=store.name,
        labels=store.labels,
        platforms=[_platform_message(one) for one in store.platforms],
        all_metadata=store.all_metadata,
        manifest_limit=store.manifest_limit,
        extra_references=[
            imagestore_pb2.ImageReference(
                name=one.name,
                is_prefix=one.is_prefix,
                allow_overwrite=one.allow_overwrite,
                add_digest=one.add_digest,
                skip_named_digest=one.skip_named_digest,
            )
            for one in store.extra_references
        ],
        unpacks=[
            imagestore_pb2.UnpackConfiguration(platform=_platform_message(one.platform), snapshotter=one.snapshotter)
            for one in store.unpacks
        ],
    )


def import_message(end: ImageImportStream, stream: str) -> Message:
    """An import for the wire."""
    return importexport_pb2.ImageImportStream(
        stream=stream, media_type=end.media_type, force_compress=end.force_compress
    )


def export_message(end: ImageExportStream, stream: str) -> Message:
    """An export for the wire."""
    return importexport_pb2.ImageExportStream(
        stream=stream,
        media_type=end.media_type,
        platforms=[_platform_message(one) for one in end.platforms],
        all_platforms=end.all_platforms,
        skip_compatibility_manifest=end.skip_compatibility_manifest,
        skip_non_distributable=end.skip_non_distributable,
    )


def store_end(message: imagestore_pb2.ImageStore) -> ImageStore:
    """An image store from the wire."""
    return ImageStore(
        name=message.name,
        labels=dict(message.labels),
        platforms=platforms(message.platforms),
        all_metadata=message.all_metadata,
        manifest_limit=message.manifest_limit,
        extra_references=tuple(
            ImageReference(
                name=one.name,
                is_prefix=one.is_prefix,
                allow_overwrite=one.allow_overwrite,
                add_digest=one.add_digest,
                skip_named_digest=one.skip_named_digest,
            )
            for one in message.extra_references
        ),
        unpacks=tuple(
            UnpackConfiguration(platform=_platform(one.platform), snapshotter=one.snapshotter)
            for one in message.unpacks
        ),
    )


def debug_of(resolver: registry_pb2.RegistryResolver) -> HTTPDebug:
    """What of the traffic is to be logged; a value that we do not know is everything."""
    value = int(resolver.http_debug)
    return HTTPDebug(value) if value in set(HTTPDebug) else HTTPDebug.BOTH


def platforms(messages: Iterable[platform_pb2.Platform]) -> tuple[Platform, ...]:
    """Platforms from the wire."""
    return tuple(_platform(one) for one in messages)


def event_message(event: Event) -> progress_pb2.Progress:
    """An event for the wire."""
    message = progress_pb2.Progress(
        event=event.event,
        name=event.name,
        parents=event.parents,
        progress=event.progress,
        total=event.total,
    )
    if event.descriptor is not None:
        described = event.descriptor
        message.desc.CopyFrom(
            descriptor_pb2.Descriptor(
                media_type=described.media_type,
                digest=described.digest,
                size=described.size,
                annotations=dict(described.annotations),
            )
        )
    return message


def event_of(message: progress_pb2.Progress) -> Event:
    """An event from the wire."""
    descriptor = None
    if message.HasField("desc"):
        described = message.desc
        descriptor = Descriptor(
            media_type=described.media_type,
            digest=Digest(described.digest),
            size=described.size,
            annotations=dict(described.annotations),
        )
    return Event(
        event=message.event,
        name=message.name,
        parents=tuple(message.parents),
        progress=message.progress,
        total=message.total,
        descriptor=descriptor,
    )


def _platform_message(platform: Platform) -> platform_pb2.Platform:
    return platform_pb2.Platform(
        os=platform.os,
        architecture=platform.architecture,
        variant=platform.variant,
        os_version=platform.os_version,
        os_features=platform.os_features,
    )


def _platform(message: platform_pb2.Platform) -> Platform:
    return Platform(
        os=message.os,
        architecture=message.architecture,
        variant=message.variant,
        os_version=message.os_version,
        os_features=tuple(message.os_features),
    )
