"""Namespaces, images, containers and leases as clients see them: rules, texts, events, collection."""

import asyncio
import contextlib

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from orlop.api.services.containers.v1 import containers_pb2 as containers_api
from orlop.api.services.content.v1 import content_pb2 as content_api
from orlop.api.services.images.v1 import images_pb2 as images_api
from orlop.api.services.leases.v1 import leases_pb2 as leases_api
from orlop.api.services.namespaces.v1 import namespaces_pb2 as namespaces_api
from orlop.base.errdefs import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
)
from orlop.core.gc import Collector, Policy, Scheduler
from orlop.core.images import events as image_events
from orlop.core.metadata import Database
from orlop.core.metadata.trash import Trash
from orlop.oci.digest import Digest
from orlop.plugins.content.local import LocalStore
from orlop.plugins.services.containers import Containers
from orlop.plugins.services.content import Content
from orlop.plugins.services.images import Images
from orlop.plugins.services.leases import Leases
from orlop.plugins.services.namespaces import Namespaces
from orlop.testing.services import InProcess

DIGEST = str(Digest.of(b"target"))
OTHER_DIGEST = str(Digest.of(b"other target"))


class Daemon:
    """The metadata services on a real database and content store."""

    def __init__(self, db, store, scheduler, events):
        self.db, self.store, self.scheduler, self.events = db, store, scheduler, events
        self.namespaces = self._serve(namespaces_api, "Namespaces", Namespaces(db, store, scheduler))
        self.images = self._serve(images_api, "Images", Images(db, scheduler))
        self.containers = self._serve(containers_api, "Containers", Containers(db))
        self.leases = self._serve(leases_api, "Leases", Leases(db, scheduler))
        self.content = self._serve(content_api, "Content", Content(store))

    def _serve(self, api, name, implementation):
        return InProcess.of(api.DESCRIPTOR.services_by_name[name], implementation, namespace="ns")

    def told(self, *topics):
        return [(topic, event) for _namespace, topic, event in self.events if topic in topics]

    async def ingest(self, data, *, namespace="ns", lease="", labels=None):
        writer = await self.store.writer(namespace, f"ref-{Digest.of(data)}", lease=lease)
        await writer.write(data)
        return (await writer.commit(labels=labels)).digest


@pytest.fixture
def run(tmp_path):
    @contextlib.asynccontextmanager
    async def daemon():
        events = []
        with (
            Database(tmp_path / "meta.db", publisher=lambda *event: events.append(event)) as db,
            Trash(tmp_path, db) as trash,
        ):
            store = LocalStore(tmp_path / "content", db, trash)
            scheduler = Scheduler(
                db, Collector(store, {}, image_deleted=image_events.deleted), Policy(startup_delay_s=3600)
            )
            task = asyncio.create_task(scheduler.run())
            try:
                yield Daemon(db, store, scheduler, events)
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                store.close()

    def run(test):
        async def main():
            async with daemon() as made:
                await test(made)

        asyncio.run(main())

    return run


def image(name="docker.io/library/x:latest", *, digest=DIGEST, size=6, media_type="m", labels=None, annotations=None):
    message = images_api.Image(name=name, labels=labels or {})
    message.target.media_type, message.target.digest, message.target.size = media_type, digest, size
    message.target.annotations.update(annotations or {})
    return message


def container(id_="web", **fields):
    runtime = fields.pop("runtime", "io.containerd.runc.v2")
    message = containers_api.Container(id=id_, **{"spec": AnyMessage(type_url="spec", value=b"{}"), **fields})
    message.runtime.name = runtime
    return message


async def refused(cls, call, text):
    with pytest.raises(cls) as caught:
        await call
    assert str(caught.value) == text


def test_every_call_needs_a_valid_namespace(run):
    async def test(d):
        for namespace, cls in (("", FailedPreconditionError), ("../x", InvalidArgumentError)):
            for call in (
                d.images.using(namespace=namespace).unary("Get", images_api.GetImageRequest(name="x")),
                d.images.using(namespace=namespace).unary("List", images_api.ListImagesRequest()),
                d.containers.using(namespace=namespace).unary("Get", containers_api.GetContainerRequest(id="x")),
                d.leases.using(namespace=namespace).unary("List", leases_api.ListRequest()),
                d.content.using(namespace=namespace).unary("Info", content_api.InfoRequest(digest=DIGEST)),
            ):
                with pytest.raises(cls):
                    await call

    run(test)


# -- namespaces -------------------------------------------------------------------------------------------------------


def test_namespaces_are_made_labelled_listed_and_deleted(run):
    async def test(d):
        make = namespaces_api.CreateNamespaceRequest
        for name in ("foo", "Bar"):
            space = namespaces_api.Namespace(name=name, labels={"mylabel": "bar"})
            await d.namespaces.unary("Create", make(namespace=space))
        await refused(
            AlreadyExistsError,
            d.namespaces.unary("Create", make(namespace=namespaces_api.Namespace(name="foo"))),
            'namespace "foo": already exists',
        )
        for bad in ("", "a/b", "x" * 77, "-a"):
            with pytest.raises(InvalidArgumentError):
                await d.namespaces.unary("Create", make(namespace=namespaces_api.Namespace(name=bad)))
        listed = await d.namespaces.unary("List", namespaces_api.ListNamespacesRequest())
        assert [found.name for found in listed.namespaces] == ["Bar", "foo"]
        absent = await d.namespaces.unary("Get", namespaces_api.GetNamespaceRequest(name="absent"))
        assert (absent.namespace.name, dict(absent.namespace.labels)) == ("absent", {})
        await d.namespaces.unary("Delete", namespaces_api.DeleteNamespaceRequest(name="foo"))
        await refused(
            NotFoundError,
            d.namespaces.unary("Delete", namespaces_api.DeleteNamespaceRequest(name="foo")),
            'namespace "foo": not found',
        )
        assert [(namespace, topic) for namespace, topic, _ in d.events] == [
            ("foo", "/namespaces/create"),
            ("Bar", "/namespaces/create"),
            ("foo", "/namespaces/delete"),
        ]

    run(test)


def test_namespace_labels_are_replaced_or_set_one_by_one(run):
    async def test(d):
        async def update(labels, *paths):
            request = namespaces_api.UpdateNamespaceRequest(
                namespace=namespaces_api.Namespace(name="foo", labels=labels), update_mask=FieldMask(paths=paths)
            )
            await d.namespaces.unary("Update", request)
            found = await d.namespaces.unary("Get", namespaces_api.GetNamespaceRequest(name="foo"))
            return dict(found.namespace.labels)

        assert await update({"a": "1", "b": "2"}) == {"a": "1", "b": "2"}
        assert await update({"b": "3"}, "labels.b", "labels.a") == {"b": "3"}
        assert await update({"io.x/y.z": "4"}, "labels.io.x/y.z") == {"b": "3", "io.x/y.z": "4"}
        await refused(InvalidArgumentError, update({}, "name"), 'cannot update "name" field')
        with pytest.raises(InvalidArgumentError):
            await update({"k": "x" * 5000}, "labels.k")
        assert await update({}) == {}

    run(test)


def test_a_namespace_with_something_in_it_is_kept_and_the_refusal_names_it(run):
    async def test(d):
        digest = await d.ingest(b"target")
        await d.images.unary("Create", images_api.CreateImageRequest(image=image(digest=digest)))
        await d.containers.unary("Create", containers_api.CreateContainerRequest(container=container()))
        d.db.write_sync(
            lambda tx: tx.execute(
                "INSERT INTO snapshots (namespace, snapshotter, name, kind, created_at, updated_at, used_at)"
                " VALUES ('ns', 'overlayfs', 's', 2, 0, 0, 0)"
            )
        )
        remove = namespaces_api.DeleteNamespaceRequest(name="ns")
        await refused(
            FailedPreconditionError,
            d.namespaces.unary("Delete", remove),
            'namespace "ns" must be empty, but it still has images, blobs, containers, snapshots on "overlayfs" '
            "snapshotter: failed precondition",
        )
        assert not d.told("/namespaces/delete")

    run(test)


def test_deleting_a_namespace_collects_first_and_takes_leases_and_ingests_along(run, tmp_path):
    async def test(d):
        await d.ingest(b"nobody needs this")
        await d.leases.unary("Create", leases_api.CreateRequest(id="l"))
        writer = await d.store.writer("ns", "unfinished")
        await writer.write(b"some")
        await d.namespaces.unary("Delete", namespaces_api.DeleteNamespaceRequest(name="ns"))
        await writer.close()
        assert d.db.all("SELECT * FROM leases") == d.db.all("SELECT * FROM ingests") == []
        assert not [*(tmp_path / "content" / "ingest").iterdir()]
        assert not [*(tmp_path / "content" / "blobs" / "sha256").iterdir()]

    run(test)


# -- images -----------------------------------------------------------------------------------------------------------


def test_images_are_made_found_and_told(run):
    async def test(d):
        made = image(labels={"a": "1", "empty": ""}, annotations={"x": "y"})
        created = (await d.images.unary("Create", images_api.CreateImageRequest(image=made))).image
        assert (created.name, dict(created.labels)) == (made.name, {"a": "1"})
        assert created.target == made.target
        assert created.created_at == created.updated_at != Timestamp()
        assert (await d.images.unary("Get", images_api.GetImageRequest(name=made.name))).image == created
        await refused(
            AlreadyExistsError,
            d.images.unary("Create", images_api.CreateImageRequest(image=made)),
            f'image "{made.name}": already exists',
        )
        await refused(
            NotFoundError,
            d.images.unary("Get", images_api.GetImageRequest(name="nope")),
            'image "nope": not found',
        )
        await refused(
            NotFoundError,
            d.images.using(namespace="other").unary("Get", images_api.GetImageRequest(name=made.name)),
            f'image "{made.name}": not found',
        )
        (event,) = d.told("/images/create")
        assert (event[1].name, dict(event[1].labels)) == (made.name, {"a": "1"})

    run(test)


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (image(""), "Image.Name required"),
        (image(size=0), "Target.Size must be greater than zero: invalid argument"),
        (image(media_type=""), "Target.MediaType must be set: invalid argument"),
        (
            image(digest="sha256:x"),
            'Target.Digest "sha256:x" invalid: invalid checksum digest length: invalid argument',
        ),
        (
            image(labels={"k" * 70: "x" * 5000}),
            "image.Labels: label key and value length (5070 bytes) greater than maximum size (4096 bytes), "
            f"key: {'k' * 64}: invalid argument",
        ),
    ],
)
def test_images_that_are_not_valid(run, bad, text):
    async def test(d):
        await refused(InvalidArgumentError, d.images.unary("Create", images_api.CreateImageRequest(image=bad)), text)
        assert d.events == []

    run(test)


def test_images_are_listed_in_order_and_filtered(run):
    async def test(d):
        for at in range(250):
            made = image(f"i{at:03}", labels={"even": "yes"} if at % 2 == 0 else None, annotations={"n": str(at)})
            await d.images.unary("Create", images_api.CreateImageRequest(image=made))

        async def names(*filters):
            listed = await d.images.unary("List", images_api.ListImagesRequest(filters=filters))
            return [found.name for found in listed.images]

        assert await names() == [f"i{at:03}" for at in range(250)]
        assert await names("labels.even==yes,name~=^i24") == ["i240", "i242", "i244", "i246", "i248"]
        assert await names("name==i007", "annotations.n==9") == ["i007", "i009"]
        assert await names(f"target.digest=={OTHER_DIGEST}") == []
        assert len(await names("target.mediatype==m")) == 250
        with pytest.raises(InvalidArgumentError):
            await names("name=x")

    run(test)


def test_images_are_updated_by_mask_or_wholly(run):
    async def test(d):
        await d.images.unary("Create", images_api.CreateImageRequest(image=image("i", labels={"a": "1", "b": "2"})))

        async def update(given, *paths):
            request = images_api.UpdateImageRequest(image=given, update_mask=FieldMask(paths=paths))
            return (await d.images.unary("Update", request)).image

        got = await update(image("i", digest=OTHER_DIGEST, size=9, labels={"a": "3"}), "labels.a", "labels.b")
        assert (dict(got.labels), got.target.digest) == ({"a": "3"}, DIGEST)
        got = await update(image("i", digest=OTHER_DIGEST, size=9, annotations={"x": "y"}), "target")
        assert (dict(got.labels), got.target.digest, got.target.size) == ({"a": "3"}, OTHER_DIGEST, 9)
        got = await update(image("i", annotations={"z": "w"}), "annotations.z", "annotations.x")
        assert (dict(got.target.annotations), got.target.digest) == ({"z": "w"}, OTHER_DIGEST)
        got = await update(image("i"))
        assert (dict(got.labels), dict(got.target.annotations), got.target.digest) == ({}, {}, DIGEST)
        assert got.created_at.ToNanoseconds() < got.updated_at.ToNanoseconds()
        await refused(
            InvalidArgumentError,
            update(image("i"), "name"),
            'cannot update "name" field on image "i": invalid argument',
        )
        await refused(NotFoundError, update(image("nope")), 'image "nope": not found')
        with pytest.raises(InvalidArgumentError):
            await update(image("i", size=0), "target")

    run(test)


def test_the_time_of_an_image_can_be_given(run):
    async def test(d):
        epoch = Timestamp(seconds=1_000_000_000)
        create = images_api.CreateImageRequest(image=image("i"), source_date_epoch=epoch)
        created = (await d.images.unary("Create", create)).image
        assert created.created_at == created.updated_at == epoch
        later = Timestamp(seconds=1_100_000_000, nanos=5)
        update = images_api.UpdateImageRequest(image=image("i"), source_date_epoch=later)
        updated = (await d.images.unary("Update", update)).image
        assert (updated.created_at, updated.updated_at) == (epoch, later)

    run(test)


def test_deleting_an_image_waits_for_its_content_when_asked(run):
    async def test(d):
        digest = await d.ingest(b"target")
        kept = await d.ingest(b"kept", labels={"containerd.io/gc.root": "x"})
        await d.images.unary("Create", images_api.CreateImageRequest(image=image("i", digest=digest)))
        other = images_api.DeleteImageRequest(name="i", sync=True)
        other.target.digest = OTHER_DIGEST
        await refused(
            NotFoundError,
            d.images.unary("Delete", other),
            f'image "i" has target {digest}, not {OTHER_DIGEST}: not found',
        )
        await d.scheduler.collect()
        assert d.store.find("ns", digest) is not None
        await d.images.unary("Delete", images_api.DeleteImageRequest(name="i", sync=True))
        assert d.store.find("ns", digest) is None
        assert d.store.find("ns", kept) is not None
        await refused(
            NotFoundError, d.images.unary("Delete", images_api.DeleteImageRequest(name="i")), 'image "i": not found'
        )
        assert [event.name for _, event in d.told("/images/delete")] == ["i"]

    run(test)


# -- containers -------------------------------------------------------------------------------------------------------


def test_containers_are_made_found_and_told(run):
    async def test(d):
        options = AnyMessage(type_url="options", value=b"\x0a\x00\xff")
        made = container(
            labels={"a": "1"},
            image="img",
            snapshotter="overlayfs",
            snapshot_key="web",
            sandbox="pod",
            extensions={"io.x/e": AnyMessage(type_url="e", value=b"\x00\x01")},
        )
        made.runtime.options.CopyFrom(options)
        created = (await d.containers.unary("Create", containers_api.CreateContainerRequest(container=made))).container
        got = (await d.containers.unary("Get", containers_api.GetContainerRequest(id="web"))).container
        assert got == created
        created.ClearField("created_at")
        created.ClearField("updated_at")
        assert created == made
        await refused(
            AlreadyExistsError,
            d.containers.unary("Create", containers_api.CreateContainerRequest(container=made)),
            'container "web": already exists',
        )
        await refused(
            NotFoundError,
            d.containers.using(namespace="other").unary("Get", containers_api.GetContainerRequest(id="web")),
            'container "web" in namespace "other": not found',
        )
        ((_, event),) = d.told("/containers/create")
        assert (event.id, event.image, event.runtime.name, event.runtime.options) == (
            "web",
            "img",
            "io.containerd.runc.v2",
            options,
        )

    run(test)


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (container(""), "container.ID: identifier must not be empty"),
        (container("a/b"), 'container.ID: identifier "a/b" must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$'),
        (container(runtime=""), "container.Runtime.Name must be set"),
        (container(spec=None), "container.Spec must be set"),
        (container(snapshot_key="k"), "container.Snapshotter must be set if container.SnapshotKey is set"),
        (container(extensions={"": AnyMessage()}), "container.Extension keys must not be zero-length"),
        (
            container(labels={"k": "x" * 5000}),
            "containers.Labels: label key and value length (5001 bytes) greater than maximum size (4096 bytes), key: k",
        ),
    ],
)
def test_containers_that_are_not_valid(run, bad, text):
    async def test(d):
        await refused(
            InvalidArgumentError,
            d.containers.unary("Create", containers_api.CreateContainerRequest(container=bad)),
            f"create container failed validation: {text}: invalid argument",
        )

    run(test)


def test_containers_are_listed_streamed_and_filtered(run):
    async def test(d):
        for at in range(120):
            made = container(f"c{at:03}", image=f"img{at % 3}", labels={"n": str(at)})
            await d.containers.unary("Create", containers_api.CreateContainerRequest(container=made))
        ids = [f"c{at:03}" for at in range(120)]
        listed = await d.containers.unary("List", containers_api.ListContainersRequest())
        assert [found.id for found in listed.containers] == ids
        streamed = d.containers.stream("ListStream", containers_api.ListContainersRequest())
        assert [message.container.id async for message in streamed] == ids
        filters = ["image==img1,id~=c11", "labels.n==5", "runtime.name==other"]
        listed = await d.containers.unary("List", containers_api.ListContainersRequest(filters=filters))
        assert [found.id for found in listed.containers] == ["c005", "c112", "c115", "c118"]

    run(test)


def test_containers_are_updated_by_mask_or_wholly(run):
    async def test(d):
        made = container(
            labels={"a": "1"}, image="img", snapshotter="overlayfs", extensions={"e": AnyMessage(type_url="1")}
        )
        await d.containers.unary("Create", containers_api.CreateContainerRequest(container=made))

        async def update(given, *paths):
            request = containers_api.UpdateContainerRequest(container=given, update_mask=FieldMask(paths=paths))
            return (await d.containers.unary("Update", request)).container

        got = await update(
            container(
                labels={"b": "2"},
                image="other",
                extensions={"f": AnyMessage(type_url="2")},
                spec=AnyMessage(type_url="new"),
            ),
            "labels.b",
            "extensions.f",
            "spec",
        )
        assert dict(got.labels) == {"a": "1", "b": "2"}
        assert sorted(got.extensions) == ["e", "f"]
        assert (got.image, got.spec.type_url, got.snapshotter) == ("img", "new", "overlayfs")
        got = await update(container(), "extensions.e", "labels.a")
        assert (sorted(got.extensions), dict(got.labels)) == (["e", "f"], {"b": "2"})
        got = await update(container(snapshotter="overlayfs", snapshot_key="k", image="x"))
        assert (got.snapshot_key, got.image, dict(got.labels), sorted(got.extensions)) == ("k", "x", {}, ["e", "f"])
        for given, paths, text in (
            (container(snapshotter="native"), (), "container.Snapshotter field is immutable"),
            (container(snapshotter="overlayfs", runtime="x"), (), "container.Runtime.Name field is immutable"),
            (container(), ("runtime",), 'cannot update "runtime" field on "web"'),
            (container(spec=None), ("spec",), "update failed validation: container.Spec must be set"),
        ):
            await refused(InvalidArgumentError, update(given, *paths), f"{text}: invalid argument")
        await refused(InvalidArgumentError, update(container("")), "Container.ID required")
        await refused(NotFoundError, update(container("nope")), 'container "nope": not found')
        (*_, (_, event)) = d.told("/containers/update")
        assert (event.id, event.image, event.snapshot_key) == ("web", "x", "k")

    run(test)


def test_containers_are_deleted(run):
    async def test(d):
        await d.containers.unary("Create", containers_api.CreateContainerRequest(container=container()))
        remove = containers_api.DeleteContainerRequest(id="web")
        await d.containers.unary("Delete", remove)
        await refused(NotFoundError, d.containers.unary("Delete", remove), "container web: not found")
        assert [event.id for _, event in d.told("/containers/delete")] == ["web"]

    run(test)


# -- leases -----------------------------------------------------------------------------------------------------------


def test_leases_are_made_listed_and_deleted(run):
    async def test(d):
        lease = (await d.leases.unary("Create", leases_api.CreateRequest(labels={"a": "1"}))).lease
        assert lease.id
        assert lease.created_at != Timestamp()
        await d.leases.unary("Create", leases_api.CreateRequest(id="moby/image:sha256:abc"))
        await refused(
            AlreadyExistsError,
            d.leases.unary("Create", leases_api.CreateRequest(id=lease.id)),
            f'lease "{lease.id}": already exists',
        )
        with pytest.raises(InvalidArgumentError):
            await d.leases.unary("Create", leases_api.CreateRequest(labels={"": "x"}))
        listed = await d.leases.unary("List", leases_api.ListRequest(filters=["labels.a==1"]))
        assert [found.id for found in listed.leases] == [lease.id]
        await d.leases.unary("Delete", leases_api.DeleteRequest(id=lease.id))
        await refused(
            NotFoundError,
            d.leases.unary("Delete", leases_api.DeleteRequest(id=lease.id)),
            f'lease "{lease.id}": not found',
        )
        assert len((await d.leases.unary("List", leases_api.ListRequest())).leases) == 1

    run(test)


def test_leases_hold_resources(run):
    async def test(d):
        await d.leases.unary("Create", leases_api.CreateRequest(id="l"))

        async def add(kind, id_, lease="l"):
            resource = leases_api.Resource(type=kind, id=id_)
            await d.leases.unary("AddResource", leases_api.AddResourceRequest(id=lease, resource=resource))

        for kind, id_ in (("snapshots/overlayfs", "s"), ("content", DIGEST), ("images", "i"), ("ingests", "r")):
            await add(kind, id_)
            await add(kind, id_)

        async def listed():
            found = await d.leases.unary("ListResources", leases_api.ListResourcesRequest(id="l"))
            return [(resource.type, resource.id) for resource in found.resources]

        everything = [("content", DIGEST), ("images", "i"), ("ingests", "r"), ("snapshots/overlayfs", "s")]
        assert await listed() == everything
        for kind, id_, lease, cls, text in (
            ("content", DIGEST, "x", NotFoundError, 'lease "x"'),
            (
                "content",
                "x",
                "l",
                InvalidArgumentError,
                "invalid content resource id x: invalid checksum digest format",
            ),
            ("content/x", DIGEST, "l", InvalidArgumentError, "invalid resource type content/x"),
            ("snapshots", "s", "l", InvalidArgumentError, "invalid snapshot resource type snapshots"),
            ("tasks", "s", "l", UnimplementedError, "resource type tasks not supported yet"),
        ):
            await refused(cls, add(kind, id_, lease), f"{text}: {cls.suffix}")
        drop = leases_api.DeleteResourceRequest(id="l", resource=leases_api.Resource(type="images", id="i"))
        await d.leases.unary("DeleteResource", drop)
        await d.leases.unary("DeleteResource", drop)
        assert await listed() == [resource for resource in everything if resource[0] != "images"]

    run(test)


def test_what_a_call_makes_is_held_by_its_lease_until_that_is_deleted(run):
    async def test(d):
        await d.leases.unary("Create", leases_api.CreateRequest(id="l"))
        digest = await d.ingest(b"held", lease="l")
        loose = await d.ingest(b"loose")
        expiring = image("old", digest=digest, labels={"containerd.io/gc.expire": "2001-01-01T00:00:00Z"})
        await d.images.using(lease="l").unary("Create", images_api.CreateImageRequest(image=expiring))
        writer = await d.store.writer("ns", "unfinished", lease="l")
        await writer.close()
        found = await d.leases.unary("ListResources", leases_api.ListResourcesRequest(id="l"))
        assert [(resource.type, resource.id) for resource in found.resources] == [
            ("content", digest),
            ("images", "old"),
            ("ingests", "unfinished"),
        ]
        await d.scheduler.collect()
        assert d.store.find("ns", digest) is not None
        assert d.store.find("ns", loose) is None
        await d.images.unary("Get", images_api.GetImageRequest(name="old"))
        await d.leases.unary("Delete", leases_api.DeleteRequest(id="l", sync=True))
        assert d.store.find("ns", digest) is None
        assert await d.store.list_statuses("ns") == []
        with pytest.raises(NotFoundError):
            await d.images.unary("Get", images_api.GetImageRequest(name="old"))
        assert [event.name for _, event in d.told("/images/delete")] == ["old"]

    run(test)


def test_a_lease_that_does_not_exist_fails_what_would_be_held_by_it(run):
    async def test(d):
        expiring = image("i", labels={"containerd.io/gc.expire": "2999-01-01T00:00:00Z"})
        await refused(
            NotFoundError,
            d.images.using(lease="nope").unary("Create", images_api.CreateImageRequest(image=expiring)),
            "lease does not exist: not found",
        )
        await refused(NotFoundError, d.store.writer("ns", "r", lease="nope"), "lease does not exist: not found")
        assert await d.store.list_statuses("ns") == []
        await d.images.using(lease="nope").unary("Create", images_api.CreateImageRequest(image=image("i")))

    run(test)


def test_who_made_something_is_recorded(run):
    async def test(d):
        d.images.uid = d.containers.uid = 1000
        await d.images.unary("Create", images_api.CreateImageRequest(image=image("i")))
        await d.containers.unary("Create", containers_api.CreateContainerRequest(container=container()))
        rows = d.db.all("SELECT owner_uid FROM images UNION ALL SELECT owner_uid FROM containers")
        assert [row[0] for row in rows] == [1000, 1000]

    run(test)
