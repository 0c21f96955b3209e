"""The asyncio client, which is `orlop.aio.Client`; `orlop.Client` is the same, blocking."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Self

from orlop.client.connect import Transport, default_address, default_namespace, open_channel
from orlop.client.session import Opener, Session

if TYPE_CHECKING:
    from collections.abc import Callable as Function

    from google.protobuf.any_pb2 import Any as PackedAny
    from google.protobuf.message import Message

    from orlop.client.cascade import Contents, Removed
    from orlop.client.channel import Channel, Request, Response, Rpc
    from orlop.client.containers import Container, Containers
    from orlop.client.content import Content
    from orlop.client.diff import Diff
    from orlop.client.events import Event
    from orlop.client.images import Image, Images
    from orlop.client.introspection import Introspection, Version
    from orlop.client.leases import Leases
    from orlop.client.mounts import Mounts
    from orlop.client.namespaces import Namespaces
    from orlop.client.pull import PullOptions
    from orlop.client.registry import RegistryOptions
    from orlop.client.sandboxes import Sandboxes
    from orlop.client.snapshots import Snapshots
    from orlop.client.spec import SpecOptions
    from orlop.client.tasks import ProcessState, Task
    from orlop.client.timings import Timings
    from orlop.core.fsck import Finding, Unchecked
    from orlop.core.transfer.ends import End
    from orlop.core.transfer.naming import Naming
    from orlop.core.transfer.progress import Callback, Listener
    from orlop.oci.image import Descriptor


class Client:
    """A daemon, seen from one namespace.

    Nothing is connected until the first call. Used as a context manager it closes its connection on leaving.

    Args:
        address: of the daemon's socket; `CONTAINERD_ADDRESS`, else `/run/orlop/orlop.sock`.
        namespace: `CONTAINERD_NAMESPACE`, else `default`.
        timeout_s: deadline of each unary call in seconds; None for none. What waits by its nature (a task's exit,
            unpacking, a stream) has none.
        connect_timeout_s: in which the connection must stand.
        transport: `ttrpc` or `grpc`; None finds out.
        opener: makes the channel, instead of the address; an engine in the same process gives this.
    """

    def __init__(
        self,
        address: str | None = None,
        namespace: str | None = None,
        *,
        timeout_s: float | None = None,
        connect_timeout_s: float | None = None,
        transport: Transport | None = None,
        opener: Opener | None = None,
    ) -> None:
        self._address = address or default_address()

        async def open_socket(asynchronous: bool) -> "Channel":
            return await open_channel(
                self._address, transport=transport, timeout_s=connect_timeout_s, asynchronous=asynchronous
            )

        self._session = Session.opened_by(
            opener or open_socket,
            namespace=default_namespace() if namespace is None else namespace,
            timeout_s=timeout_s,
            asynchronous=self._asynchronous,
        )

    _asynchronous = True

    @property
    def address(self) -> str:
        """Where the daemon is."""
        return self._address

    @property
    def namespace(self) -> str:
        """The namespace of every call."""
        return self._session.namespace

    @property
    def session(self) -> Session:
        """What everything here is built on; for calls of the API that have no method of their own."""
        return self._session

    # ---- nouns

    @property
    def namespaces(self) -> "Namespaces":
        """The daemon's namespaces."""
        from orlop.client.namespaces import Namespaces

        return Namespaces(self._session)

    @property
    def content(self) -> "Content":
        """Blobs and ingests."""
        from orlop.client.content import Content

        return Content(self._session)

    @property
    def images(self) -> "Images":
        """Names for what is in the content store."""
        from orlop.client.images import Images

        return Images(self._session)

    @property
    def containers(self) -> "Containers":
        """Records of containers."""
        from orlop.client.containers import Containers

        return Containers(self._session)

    @property
    def leases(self) -> "Leases":
        """What keeps things from the collector."""
        from orlop.client.leases import Leases

        return Leases(self._session)

    @property
    def sandboxes(self) -> "Sandboxes":
        """What containers are grouped in."""
        from orlop.client.sandboxes import Sandboxes

        return Sandboxes(self._session)

    @property
    def mounts(self) -> "Mounts":
        """Mounts that the daemon has performed beforehand."""
        from orlop.client.mounts import Mounts

        return Mounts(self._session)

    @property
    def diff(self) -> "Diff":
        """Layers onto mounts and out of them."""
        from orlop.client.diff import Diff

        return Diff(self._session)

    @property
    def introspection(self) -> "Introspection":
        """The daemon's identity and plug-ins."""
        from orlop.client.introspection import Introspection

        return Introspection(self._session)

    @property
    def timings(self) -> "Timings":
        """Where the time of starting and ending processes has gone."""
        from orlop.client.timings import Timings

        return Timings(self._session)

    def snapshots(self, snapshotter: str = "overlayfs") -> "Snapshots":
        """One snapshotter of the daemon."""
        from orlop.client.snapshots import Snapshots

        return Snapshots(self._session, snapshotter)

    # ---- verbs

    async def version(self) -> "Version":
        """The daemon's version."""
        from orlop.client.introspection import version

        return await version(self._session)

    async def call(self, rpc: "Rpc[Request, Response]", request: "Request") -> "Response":
        """Call any unary RPC of the API, in this client's namespace."""
        return await self._session.call(rpc, request)

    async def subscribe(self, filters: Sequence[str] = ()) -> AsyncIterator["Event"]:
        """Yield events of all namespaces from now on; filters as `topic=="/tasks/exit",namespace==default`."""
        from orlop.client.events import subscribe

        async for event in subscribe(self._session, filters):
            yield event

    async def fsck(self, *, repair: bool = False, quick: bool = False) -> AsyncIterator["Finding | Unchecked"]:
        """Have the daemon compare what it knows with what there is, in all namespaces; yield what is wrong.

        The daemon goes on with everything else. Only through root's socket.

        Args:
            repair: mend what can be mended; `Finding.mended` says what was.
            quick: read no blob's bytes and unpack no layer.

        Raises:
            UnimplementedError: it is another's daemon.
            PermissionDeniedError: this socket is bound to a namespace.
        """
        from orlop.client.fsck import fsck

        async for one in fsck(self._session, repair=repair, quick=quick):
            yield one

    async def publish(self, topic: str, event: "Message") -> None:
        """Publish an event of one's own."""
        from orlop.client.events import publish

        await publish(self._session, topic, event)

    async def new_container(
        self,
        container_id: str,
        image: "Image | str | None" = None,
        options: "SpecOptions | None" = None,
        *,
        runtime: str = "io.containerd.runc.v2",
        runtime_options: "PackedAny | None" = None,
        snapshotter: str = "overlayfs",
        snapshot_labels: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        extensions: "Mapping[str, PackedAny] | None" = None,
        sandbox: str = "",
    ) -> "Container":
        """Make a container: a snapshot on top of the image's, a spec from its configuration, a record.

        The image is unpacked first where it is not yet. If anything fails, nothing stays.

        Args:
            image: an image of this namespace or its name; None with a `rootfs` in the options.
            options: what shall differ from the image's configuration and containerd's defaults.
            extensions: what else the record shall hold, by name, for programs that know it.
            sandbox: id of the sandbox that its task is to be in.

        Raises:
            AlreadyExistsError: there is a container or a snapshot of that name.
            NotFoundError: the image, or a user that the options name, is not there.
        """
        from orlop.client.make import new_container
        from orlop.client.spec import SpecOptions

        if isinstance(image, str):
            image = await self.images.get(image)
        return await new_container(
            self._session,
            container_id,
            image,
            options=options or SpecOptions(),
            runtime=runtime,
            runtime_options=runtime_options,
            snapshotter=snapshotter,
            snapshot_labels=snapshot_labels,
            labels=labels,
            extensions=extensions,
            sandbox=sandbox,
        )

    async def restore(self, container_id: str, ref: str, *, rw: bool = False) -> "Container":
        """Make a container from an image that `Container.checkpoint` made. If anything fails, nothing stays.

        Args:
            ref: the checkpoint's name; the image that it names must be here.
            rw: with what the container had written to its files.

        Raises:
            NotFoundError: the checkpoint, or a part that it should have, is not there.
            AlreadyExistsError: there is a container or a snapshot of that name.
        """
        from orlop.client.checkpoint import restore

        return await restore(self._session, container_id, ref, rw=rw)

    async def task(self, container_id: str) -> "Task":
        """The task of a container. Raises NotFoundError if there is none."""
        return await (await self.containers.get(container_id)).task()

    async def tasks(self) -> "list[ProcessState]":
        """The tasks of the namespace."""
        from orlop.client.tasks import list_tasks

        return await list_tasks(self._session)

    async def contents(self) -> "Contents":
        """Names of all that the namespace has."""
        from orlop.client.cascade import contents

        return await contents(self)

    async def remove_namespace(self, *, progress: "Removed | None" = None) -> None:
        """Kill, empty and remove the client's namespace. May be started anew when it was cut off.

        Args:
            progress: is told kind and name of each thing when it is gone.

        Raises:
            FailedPreconditionError: others make things in it as fast as they are removed.
        """
        from orlop.client.cascade import remove

        await remove(self, progress)

    async def pull(
        self,
        ref: str,
        *,
        registry: "RegistryOptions | None" = None,
        options: "PullOptions | None" = None,
        snapshotter: str = "overlayfs",
        unpack: bool = True,
        progress: "Callback | None" = None,
    ) -> "Image":
        """Bring an image from its registry, name it, and unpack it.

        All blobs come at once, each verified; what an interrupted pull has brought is not fetched again. Layers are
        unpacked while others are still coming; those that have a snapshot already are not fetched. Until the image has
        its name a lease holds what is there.

        Args:
            ref: full reference, such as `docker.io/library/redis:latest`.
            registry: how to reach it; docker's and podman's credential files are read by default.
            options: which platforms and parts.
            progress: called for each step of each blob, on the event loop (a private one in the blocking client).

        Raises:
            NotFoundError: the registry does not have it, or not for the platform.
            UnauthenticatedError, PermissionDeniedError: it does not let us.
            UnavailableError: it does not answer.
        """
        from orlop.client.pull import PullOptions, pull
        from orlop.client.registry import RegistryOptions
        from orlop.core.transfer.progress import ignore

        wanted = options or PullOptions()
        name = await pull(
            self._session,
            ref,
            registry=registry or RegistryOptions(),
            options=wanted,
            snapshotter=snapshotter if unpack else "",
            progress=progress or ignore,
        )
        return await self.images.get(name, platform=wanted.platform or None)

    async def push(
        self,
        ref: str,
        source: "Image | str | None" = None,
        *,
        registry: "RegistryOptions | None" = None,
        manifest: str = "",
        manifest_type: str = "",
        platform: str = "",
        max_concurrent: int = 0,
        nondistributable: bool = False,
        progress: "Callback | None" = None,
    ) -> "Descriptor":
        """Push an image to a registry, and return what was pushed.

        Args:
            ref: where to.
            source: the image, or its name; `ref` by default.
            manifest: digest of a manifest to push instead of an image; `manifest_type` is its media type.
            platform: of an index only the manifest that suits.
            nondistributable: also layers that are not meant to be pushed.
        """
        from orlop.client.push import push
        from orlop.client.registry import RegistryOptions
        from orlop.core.transfer.progress import ignore

        return await push(
            self._session,
            ref,
            source,
            registry=registry or RegistryOptions(),
            manifest=manifest,
            manifest_type=manifest_type,
            platform=platform,
            max_concurrent=max_concurrent,
            nondistributable=nondistributable,
            progress=progress or ignore,
        )

    async def push_object(
        self,
        ref: str,
        digest: str,
        media_type: str,
        *,
        registry: "RegistryOptions | None" = None,
        progress: "Callback | None" = None,
    ) -> "Descriptor":
        """Push one blob of the content store to a repository."""
        from orlop.client.push import push_object
        from orlop.client.registry import RegistryOptions
        from orlop.core.transfer.progress import ignore

        return await push_object(
            self._session,
            ref,
            digest,
            media_type,
            registry=registry or RegistryOptions(),
            progress=progress or ignore,
        )

    async def fetch_object(
        self,
        ref: str,
        write: "Function[[bytes], object]",
        *,
        registry: "RegistryOptions | None" = None,
        media_type: str = "",
    ) -> "Descriptor":
        """Hand the bytes of what a reference names at its registry to `write`, verified; nothing is stored.

        The last piece may be followed by an error: what was written before counts only when this returns.

        Args:
            media_type: asked for instead of what the registry calls it.
        """
        from orlop.client.push import fetch_object
        from orlop.client.registry import RegistryOptions

        return await fetch_object(
            self._session, ref, write, registry=registry or RegistryOptions(), media_type=media_type
        )

    async def import_(
        self,
        source: IO[bytes],
        *,
        naming: "Naming | None" = None,
        platform: str | None = None,
        all_platforms: bool = True,
        compress: bool = False,
        discard_layers: bool = False,
        progress: "Callback | None" = None,
    ) -> "list[Image]":
        """Store the images of an archive: an OCI layout or what `docker save` writes, plain, gzip or zstd.

        Args:
            source: read once, from where it is to its end.
            naming: how images are called that the archive gives only a tag.
            platform: of an index only what suits this specifier; without one everything, or with
                `all_platforms=False` what suits this machine.
            compress: compress layers of a Docker archive that come plain.
            discard_layers: let the collector have the layers when nothing else holds them, as after they are unpacked.
            progress: called for each step of each blob.

        Raises:
            InvalidArgumentError: it is no archive of images; the text says what is wrong.
        """
        from orlop.base import platforms
        from orlop.client.archives import import_images
        from orlop.client.images import matcher
        from orlop.core.transfer.naming import Naming
        from orlop.core.transfer.progress import ignore

        names = await import_images(
            self._session,
            source,
            naming=naming or Naming(),
            matcher=platforms.ALL if all_platforms and not platform else matcher(platform),
            compress=compress,
            discard_layers=discard_layers,
            progress=progress or ignore,
        )
        return [await self.images.get(name) for name in names]

    async def export(
        self,
        target: IO[bytes],
        names: Sequence[str],
        *,
        platform: str | None = None,
        all_platforms: bool = False,
        docker_manifest: bool = True,
        skip_nondistributable: bool = False,
    ) -> None:
        """Write images into one archive that is an OCI layout and, with `manifest.json`, what `docker load` reads."""
        from orlop.client.archives import export_images
        from orlop.client.images import matcher
        from orlop.core.transfer.exporting import ExportOptions

        options = ExportOptions(
            matcher=matcher(platform),
            all_platforms=all_platforms,
            docker_manifest=docker_manifest,
            skip_nondistributable=skip_nondistributable,
        )
        await export_images(self._session, target, names, options)

    async def transfer(self, source: "End", destination: "End", *, listener: "Listener | None" = None) -> None:
        """Let the daemon move images: pull, push, import, export or tag, by its transfer service.

            await client.transfer(OCIRegistry(reference=ref), ImageStore(name=ref))

        Args:
            source, destination: `OCIRegistry`, `ImageStore`, `ImageImportStream`, `ImageExportStream`.
            listener: called for each event, on the event loop (a private one in the blocking client).

        Raises:
            UnimplementedError: there is no way from this source to this destination.
            OrlopError: what the daemon answers; nothing goes on then. What fails here, such as reading an archive,
                is raised as it is.
        """
        from orlop.client.transfer import transfer

        await transfer(self._session, source, destination, listener)

    def with_lease(self, lease_id: str) -> Self:
        """This client, whose calls name a lease that holds what they make."""
        return self._with(self._session.with_lease(lease_id))

    def timed(self) -> Self:
        """This client, on the same connection, noting how long each of its calls takes: see `timings`.

        What is made through it (containers, tasks, processes) notes as well.
        """
        return self._with(self._session.timed())

    def in_namespace(self, namespace: str) -> Self:
        """This client in another namespace, on the same connection."""
        return self._with(self._session.with_namespace(namespace))

    def _with(self, session: Session) -> Self:
        twin = object.__new__(type(self))
        twin._address = self._address
        twin._session = session
        return twin

    async def close(self) -> None:
        """Close the connection; the next call opens another."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()


class BlockingCore(Client):
    """The same without an event loop; what `orlop.Client` drives."""

    _asynchronous = False
