"""The transfer and streaming services: everything that can be moved, over both doors, and what a failure leaves."""

import asyncio
import contextlib
import io
import json
import tarfile
import time

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed

import orlop
from orlop import aio
from orlop.api.services.streaming.v1 import streaming_pb2 as streaming_api
from orlop.api.services.transfer.v1 import transfer_pb2 as api
from orlop.api.types.transfer import imagestore_pb2, importexport_pb2, progress_pb2, streaming_pb2
from orlop.base import platforms
from orlop.base.errdefs import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnauthenticatedError,
    UnimplementedError,
    UnknownError,
)
from orlop.core.streaming.proxy import pack
from orlop.core.transfer.ends import (
    AuthKind,
    HTTPDebug,
    ImageExportStream,
    ImageImportStream,
    ImageReference,
    ImageStore,
    OCIRegistry,
    Secret,
    UnpackConfiguration,
)
from orlop.core.transfer.progress import Event
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor, Image, Manifest, RootFS, encode
from orlop.testing.registry import Fault, Registry
from tools import daemons

HERE = platforms.parse(platforms.default_string())
TAGGED = "registry.test/tagged:1"
UNPACK = (UnpackConfiguration(platform=HERE),)


@pytest.fixture(params=["ttrpc", "grpc"])
def client(request, orlopd, namespace):
    with orlop.Client(str(orlopd.address), namespace, transport=request.param, timeout_s=60) as made:
        yield made
        _empty(made)


def _empty(client):
    """Delete all images, and see that nothing else keeps anything: no lease, no ingest, no snapshot."""
    for image in client.images.list():
        image.delete(synchronous=True)
    for _ in range(200):  # who was given up has ended soon
        if not client.leases.list():
            break
        time.sleep(0.05)
    client.leases.delete(client.leases.create("sweep").id, synchronous=True)
    assert client.leases.list() == []
    assert [info.digest for info in client.content.walk()] == []
    assert client.content.ingests() == []
    assert client.snapshots().list() == []


class Helper:
    """Gives the same answer to whoever asks, and remembers the questions."""

    def __init__(self, secret):
        self.answer, self.asked = secret, []

    async def secret(self, reference, host):
        self.asked.append((reference, host))
        return self.answer


class Memory:
    """A sink in memory."""

    def __init__(self):
        self.data = b""

    async def write(self, data):
        self.data += data

    async def close(self):
        pass


@pytest.mark.root
def test_pull_push_export_import_and_tag(client, registry, busybox_image):
    reference = registry.push(busybox_image, "moved")
    events: list[Event] = []
    client.transfer(
        OCIRegistry(reference=reference),
        ImageStore(name=reference, labels={"team": "deck"}, platforms=(HERE,), all_metadata=True, unpacks=UNPACK),
        listener=events.append,
    )
    image = client.images.get(reference)
    assert image.labels == {"team": "deck"}
    assert image.is_unpacked()
    assert image.check().complete
    assert client.leases.list() == []

    said = [event.event for event in events if not event.name]
    shown = f"OCI Registry ({reference})"
    assert said == [f"Resolving from {shown}", f"Pulling from {shown}", f"Completed pull from {shown}"]
    named = [(event.event, event.name) for event in events if event.name]
    assert named[0] == ("fetching image content", reference)
    assert named[-1] == ("saved", reference)
    layers = [f"layer-{layer.digest}" for layer in image.manifest().layers]
    for layer in layers:
        words = [event for event, name in named if name == layer]
        assert words[0] == "waiting"
        assert words[-1] == "extracted"
        assert "complete" in words
    manifest = f"manifest-{image.target.digest}"
    parents = {event.name: event.parents for event in events if event.event == "waiting"}
    assert parents[manifest] == (reference,)
    assert all(parents[layer] == (manifest,) for layer in layers)
    assert {event.total for event in events if event.name == layers[0]} == {image.manifest().layers[0].size}

    client.transfer(ImageStore(name=reference), ImageStore(name=TAGGED, labels={"a": "b"}))
    assert client.images.get(TAGGED).target.digest == image.target.digest
    assert client.images.get(TAGGED).labels == {"a": "b"}

    pushed = f"{registry.host}/pushed:1"
    events.clear()
    client.transfer(ImageStore(name=TAGGED), OCIRegistry(reference=pushed), listener=events.append)
    assert [event.event for event in events][:2] == [f"Pushing to OCI Registry ({pushed})", "pushing content"]
    assert events[-1].event == f"Completed push to OCI Registry ({pushed})"
    assert client.pull(pushed, unpack=False).target.digest == image.target.digest

    archive = io.BytesIO()
    client.transfer(
        ImageStore(name=reference, extra_references=(ImageReference(name=TAGGED),)),
        ImageExportStream(target=orlop.FileSink(archive)),
    )
    _empty(client)
    archive.seek(0)
    events.clear()
    client.transfer(
        ImageImportStream(source=archive),
        ImageStore(
            name="the-index",
            platforms=(HERE,),
            extra_references=(ImageReference(name="new", is_prefix=True, allow_overwrite=True, add_digest=True),),
            unpacks=UNPACK,
        ),
        listener=events.append,
    )
    names = {one.name for one in client.images.list()}
    assert names == {"the-index", reference, TAGGED, f"new@{image.target.digest}"}
    assert client.images.get(TAGGED).is_unpacked()
    assert events[0].event == "Importing"
    assert events[-1].event == "Completed import"
    assert {event.name for event in events if event.event == "saved"} == names


@pytest.mark.root
def test_an_index_is_followed_as_far_as_is_wanted(client, registry, busybox_multi_image):
    reference = registry.push(busybox_multi_image, "multi")

    def kinds():
        found = [media_types.is_layer(layer) for layer in _media_types(client, reference)]
        return len(found), sum(found)

    client.transfer(OCIRegistry(reference=reference), ImageStore(name=reference, platforms=(HERE,)))
    wanted = kinds()
    client.transfer(OCIRegistry(reference=reference), ImageStore(name=reference, platforms=(HERE,), all_metadata=True))
    with_metadata = kinds()
    client.transfer(OCIRegistry(reference=reference), ImageStore(name=reference))
    everything = kinds()
    assert with_metadata == (wanted[0] + 2, wanted[1])
    assert everything == (with_metadata[0] + 1, wanted[1] + 1)
    limited = ImageStore(name=reference, platforms=(HERE,), manifest_limit=1)
    client.transfer(OCIRegistry(reference=reference), limited)


def _media_types(client, reference):
    """The media types of all that is here below an image."""
    found = []
    pending = [client.images.get(reference).target]
    while pending:
        one = pending.pop()
        if client.content.exists(one.digest):
            found.append(one.media_type)
            if "manifest" in one.media_type or "index" in one.media_type:
                document = json.loads(client.content.read(one.digest))
                children = [*document.get("manifests", ()), *document.get("layers", ())]
                if "config" in document:
                    children.append(document["config"])
                pending += [
                    Descriptor(media_type=child["mediaType"], digest=Digest(child["digest"]), size=child["size"])
                    for child in children
                ]
    return found


def test_the_client_is_asked_who_it_is(client, secure_registry, busybox_image):
    reference = secure_registry.push(busybox_image, "secret")
    with pytest.raises(UnauthenticatedError):
        client.transfer(OCIRegistry(reference=reference), ImageStore(name=reference))
    wrong = Helper(Secret(kind=AuthKind.CREDENTIALS, username=daemons.USER, secret="no"))
    with pytest.raises(UnauthenticatedError):
        client.transfer(OCIRegistry(reference=reference, credentials=wrong), ImageStore(name=reference))
    right = Helper(Secret(kind=AuthKind.CREDENTIALS, username=daemons.USER, secret=daemons.PASSWORD))
    client.transfer(OCIRegistry(reference=reference, credentials=right), ImageStore(name=reference))
    assert right.asked[0] == (reference, secure_registry.host)
    assert client.images.get(reference).check().complete


def test_traffic_is_told_without_secrets(client, secure_registry, busybox_image):
    reference = secure_registry.push(busybox_image, "told")
    helper = Helper(Secret(kind=AuthKind.CREDENTIALS, username=daemons.USER, secret=daemons.PASSWORD))
    logs = Memory()
    end = OCIRegistry(
        reference=reference,
        credentials=helper,
        headers={"X-Deck": "orlop"},
        http_debug=HTTPDebug.DEBUG,
        logs=logs,
    )
    client.transfer(end, ImageStore(name=reference))
    lines = logs.data.decode().splitlines()
    assert any(line.startswith(f"> HEAD http://{secure_registry.host}/v2/told/manifests/latest") for line in lines)
    assert any(line.startswith("< 401 ") for line in lines)
    assert any("X-Deck: orlop" in line and "Authorization: …" in line for line in lines)
    assert "Basic " not in logs.data.decode().replace("Basic realm", "")


def test_labels_say_how_long_an_image_stays(client, busybox_image):
    prefix = (ImageReference(name="x", is_prefix=True, allow_overwrite=True),)

    def imported(labels):
        archive = io.BytesIO(busybox_image.archive.read_bytes())
        client.transfer(ImageImportStream(source=archive), ImageStore(labels=labels, extra_references=prefix))
        client.leases.delete(client.leases.create("sweep").id, synchronous=True)
        return [(image.name, image.labels) for image in client.images.list()]

    pinned = {"io.cri-containerd.pinned": "pinned"}
    assert imported(pinned) == [(busybox_image.reference, pinned)]
    assert imported({"containerd.io/gc.expire": "2020-01-01T00:00:00Z"}) == []


def test_what_cannot_be_moved(client):
    with pytest.raises(NotFoundError, match='image "none"'):
        client.transfer(ImageStore(name="none"), ImageStore(name="other"))
    with pytest.raises(UnimplementedError) as caught:
        client.transfer(OCIRegistry(reference="127.0.0.1:1/x:1"), OCIRegistry(reference="127.0.0.1:1/y:1"))
    kind = "containerd.types.transfer.OCIRegistry"
    assert str(caught.value).startswith(f"method Transfer not implemented for {kind} to {kind}")
    with pytest.raises(InvalidArgumentError, match="no unpack platforms defined"):
        client.transfer(
            OCIRegistry(reference="127.0.0.1:1/x:1"),
            ImageStore(name="x", unpacks=(UnpackConfiguration(platform=HERE, snapshotter="nobody"),)),
        )
    with pytest.raises(InvalidArgumentError, match="no tar"):
        client.transfer(ImageImportStream(source=io.BytesIO(b"no archive" * 1000)), ImageStore())


def test_what_fails_here_is_told(client):
    class Broken(io.RawIOBase):
        def read(self, _size=-1):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        client.transfer(ImageImportStream(source=Broken()), ImageStore())  # type: ignore[arg-type]


def test_bytes_as_they_are(client):
    data = bytes(range(256)) * 20_000
    target = io.BytesIO()
    client.transfer(ImageImportStream(source=io.BytesIO(data)), ImageExportStream(target=orlop.FileSink(target)))
    assert target.getvalue() == data


@pytest.mark.parametrize("cut", [1 << 10, 1 << 16, -512])
def test_a_cut_archive_leaves_nothing(client, busybox_image, cut):
    data = busybox_image.archive.read_bytes()[:cut]
    if cut < 0:  # what is cut off is the end mark of a tar, without which it can be read all the same
        data = data[: len(data) // 2]
    with pytest.raises((InvalidArgumentError, NotFoundError)):
        client.transfer(ImageImportStream(source=io.BytesIO(data)), ImageStore(name="x"))


# -- a registry that misbehaves ------------------------------------------------------------------------------------


def misbehaving(orlopd, namespace, scenario):
    async def whole():
        async with (
            asyncio.timeout(120),
            Registry() as remote,
            aio.Client(str(orlopd.address), namespace, timeout_s=60) as client,
        ):
            await scenario(client, remote)

    asyncio.run(whole())
    with orlop.Client(str(orlopd.address), namespace, timeout_s=60) as blocking:
        _empty(blocking)


def layer(name, size=1 << 20):
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = size
        archive.addfile(member, io.BytesIO(b"\0" * size))
    return target.getvalue()


@pytest.mark.root
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(path="/blobs/", corrupt=True, times=-1), FailedPreconditionError),
        (Fault(path="/blobs/", status=404, times=-1), NotFoundError),
        (Fault(path="/manifests/", set_headers={"Docker-Content-Digest": "nonsense"}, times=-1), Exception),
    ],
    ids=["corrupt", "missing", "digest"],
)
def test_a_failed_pull_leaves_nothing(orlopd, namespace, fault, error):
    async def scenario(client, remote):
        remote.add_image("team/app", "1", [layer("a"), layer("b")])
        remote.misbehave(fault)
        reference = f"{remote.address}/team/app:1"
        with pytest.raises(error):
            await client.transfer(OCIRegistry(reference=reference), ImageStore(name=reference, unpacks=UNPACK))
        assert await client.images.list() == []

    misbehaving(orlopd, namespace, scenario)


def legacy_image(remote, name, tag):
    """An image as a registry of 2016 served it: Docker's types, and a config that is just bytes."""
    data = layer("file", 1 << 16)
    config = Image(os="linux", architecture=HERE.architecture, rootfs=RootFS(diff_ids=(Digest.of(data),)))
    manifest = Manifest(
        media_type=media_types.DOCKER_MANIFEST,
        config=remote.add_blob(name, encode(config), media_types.OCTET_STREAM),
        layers=(remote.add_blob(name, data, media_types.DOCKER_LAYER),),
    )
    return manifest, remote.add_manifest(name, tag, encode(manifest), media_types.DOCKER_MANIFEST)


@pytest.mark.root
@pytest.mark.parametrize("way", ["client", "service"])
def test_a_config_of_octets_gets_its_type(orlopd, namespace, way):
    async def scenario(client, remote):
        manifest, came = legacy_image(remote, "team/old", "1")
        reference = f"{remote.address}/team/old:1"
        for _ in range(2):
            if way == "client":
                image = await client.pull(reference, registry=orlop.RegistryOptions(plain_http=True))
            else:
                await client.transfer(OCIRegistry(reference=reference), ImageStore(name=reference, unpacks=UNPACK))
                image = await client.images.get(reference)
            assert image.target.digest != came.digest
            assert image.target.media_type == media_types.DOCKER_MANIFEST
            assert (await image.manifest()).config.media_type == media_types.DOCKER_CONFIG
            assert (await image.manifest()).layers == manifest.layers
            assert await image.is_unpacked()
        info = await client.content.info(image.target.digest)
        assert [info.labels[f"containerd.io/gc.ref.content.{number}"] for number in range(2)] == [
            manifest.config.digest,
            manifest.layers[0].digest,
        ]
        await client.leases.delete((await client.leases.create("sweep")).id, synchronous=True)
        kept = {info.digest async for info in client.content.walk()}
        assert kept == {image.target.digest, manifest.config.digest, manifest.layers[0].digest}
        await image.delete(synchronous=True)

    misbehaving(orlopd, namespace, scenario)


@pytest.mark.root
def test_a_config_of_octets_in_an_index_stays_so(orlopd, namespace):
    async def scenario(client, remote):
        _manifest, came = legacy_image(remote, "team/old", None)
        index = remote.add_index("team/old", "1", [came])
        reference = f"{remote.address}/team/old:1"
        await client.transfer(OCIRegistry(reference=reference), ImageStore(name=reference, unpacks=UNPACK))
        image = await client.images.get(reference)
        assert image.target.digest == index.digest
        assert await image.is_unpacked()
        await image.delete(synchronous=True)

    misbehaving(orlopd, namespace, scenario)


@pytest.mark.root
def test_a_cancelled_pull_stops_and_leaves_nothing(orlopd, namespace):
    async def scenario(client, remote):
        big = layer("big", 64 << 20)
        target = remote.add_image("team/app", "1", [layer("a"), big])
        remote.misbehave(Fault(path=str(Digest.of(big)), endless=True, times=-1))
        reference = f"{remote.address}/team/app:1"
        moving = asyncio.Event()

        def listen(event):
            if event.event == "downloading" and event.name == f"layer-{Digest.of(big)}":
                moving.set()

        pulling = asyncio.create_task(
            client.transfer(
                OCIRegistry(reference=reference), ImageStore(name=reference, unpacks=UNPACK), listener=listen
            )
        )
        await moving.wait()
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        # The daemon has let go of it: the same reference can be pulled anew, at once.
        remote.faults.clear()
        await client.transfer(OCIRegistry(reference=reference), ImageStore(name=reference, unpacks=UNPACK))
        assert (await client.images.get(reference)).target.digest == target.digest

    misbehaving(orlopd, namespace, scenario)


@pytest.mark.root
def test_a_blob_is_mounted_from_the_repository_that_has_it(orlopd, namespace):
    async def scenario(client, remote):
        blob = layer("a")
        remote.add_image("team/app", "1", [blob])
        reference, other = f"{remote.address}/team/app:1", f"{remote.address}/team/other:1"
        await client.transfer(OCIRegistry(reference=reference), ImageStore(name=reference))
        await client.transfer(ImageStore(name=reference), OCIRegistry(reference=other))
        begun = [seen.path for seen in remote.requests("POST", "/team/other/blobs/uploads/")]
        assert any(f"mount={Digest.of(blob)}" in path.replace("%3A", ":") for path in begun)
        assert not remote.requests("PUT", "/team/other/blobs/uploads/")
        assert remote.tags["team/other", "1"] == remote.tags["team/app", "1"]

    misbehaving(orlopd, namespace, scenario)


@pytest.mark.root
def test_many_pulls_of_the_same_at_once(orlopd, namespace):
    async def scenario(client, remote):
        for tag in "12":
            remote.add_image("team/app", tag, [layer("a"), layer("b"), layer(tag)])
        references = [f"{remote.address}/team/app:{tag}" for tag in "12"]

        async def pull(reference, name):
            await client.transfer(OCIRegistry(reference=reference), ImageStore(name=name, unpacks=UNPACK))
            status = await (await client.images.get(name)).check()
            assert status.complete
            assert status.unpacked
            await client.images.delete(name, synchronous=name.endswith("0"))

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(pull(references[number % 2], f"{references[number % 2]}-{number}"))

    misbehaving(orlopd, namespace, scenario)


@pytest.mark.root
def test_a_layer_that_nobody_knows_is_said_to_be_the_trouble(orlopd, namespace):
    async def scenario(client, remote):
        odd = remote.add_blob("team/app", layer("a"), "application/vnd.oci.image.layer.v1.tar+odd")
        config = Image(os=HERE.os, architecture=HERE.architecture, rootfs=RootFS(diff_ids=(odd.digest,)))
        manifest = Manifest(
            media_type=media_types.OCI_MANIFEST,
            config=remote.add_blob("team/app", encode(config), media_types.OCI_CONFIG),
            layers=(odd,),
        )
        remote.add_manifest("team/app", "1", encode(manifest))
        reference = f"{remote.address}/team/app:1"
        with pytest.raises(UnknownError, match=f"failed to extract layer {odd.digest}"):
            await client.transfer(OCIRegistry(reference=reference), ImageStore(name=reference, unpacks=UNPACK))

    misbehaving(orlopd, namespace, scenario)


# -- verifiers -----------------------------------------------------------------------------------------------------


def test_verifiers_decide(new_orlopd, registry, busybox_image, tmp_path):
    reference = registry.push(busybox_image, "verified")
    programs = tmp_path / "bin"
    programs.mkdir()
    daemon = new_orlopd(
        config=f"""version = 3
[plugins."io.containerd.image-verifier.v1.bindir"]
bin_dir = "{programs}"
max_verifiers = 2
per_verifier_timeout = "5s"
[plugins."io.containerd.transfer.v1.local"]
concurrent_layer_fetch_buffer = 4096
unpack_config = [{{ platform = "linux/amd64", snapshotter = "native" }}]
"""
    )
    with orlop.Client(str(daemon.address), "verified", timeout_s=60) as client:

        def pull():
            client.transfer(OCIRegistry(reference=reference), ImageStore(name=reference))

        pull()
        with pytest.raises(InvalidArgumentError, match="no unpack platforms defined"):
            client.transfer(OCIRegistry(reference=reference), ImageStore(name=reference, unpacks=UNPACK))
        _script(programs / "1-look", 'cat > "$0.seen"; echo "$@" > "$0.args"; echo fine')
        _script(programs / "2-refuse", "echo too old; exit 7")
        with pytest.raises(orlop.OrlopError) as caught:
            pull()
        digest = client.images.get(reference).target.digest
        assert str(caught.value) == (
            f"image verifier bindir blocked pull of {reference} with digest {digest} for reason: "
            "verifier 2-refuse rejected image (exit code 7): too old"
        )
        assert json.loads((programs / "1-look.seen").read_text())["digest"] == digest
        wanted = f"-name {reference} -digest {digest} -stdin-media-type {media_types.OCI_DESCRIPTOR}\n"
        assert (programs / "1-look.args").read_text() == wanted


def _script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


# -- the handshake, as a Go client does it ---------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def raw(orlopd, namespace):
    """Stubs made by hand on gRPC: `stream()` begins one, `transfer(request)` calls."""
    async with grpc.aio.insecure_channel(f"unix:{orlopd.address}") as channel:
        metadata = (("containerd-namespace", namespace),)
        stream = channel.stream_stream(
            "/containerd.services.streaming.v1.Streaming/Stream",
            request_serializer=Packed.SerializeToString,
            response_deserializer=Packed.FromString,
        )
        transfer = channel.unary_unary(
            "/containerd.services.transfer.v1.Transfer/Transfer",
            request_serializer=api.TransferRequest.SerializeToString,
            response_deserializer=lambda data: data,
        )
        yield (lambda: stream(metadata=metadata)), (lambda request: transfer(request, metadata=metadata))


async def opened(stream, name):
    await stream.write(pack(streaming_api.StreamInit(id=name)))
    answer = await stream.read()
    assert (answer.type_url, answer.value) == ("google.protobuf.Empty", b"")
    return stream


def raw_run(orlopd, namespace, scenario):
    async def whole():
        async with asyncio.timeout(60), raw(orlopd, namespace) as (stream, transfer):
            await scenario(stream, transfer)

    asyncio.run(whole())


def test_a_stream_is_named_and_acknowledged(orlopd, namespace):
    async def scenario(stream, transfer):
        first = await opened(stream(), "one")
        second = stream()
        await second.write(pack(streaming_api.StreamInit(id="one")))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await second.read()
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNKNOWN, "already exists")
        wrong = stream()
        await wrong.write(pack(streaming_pb2.Data(data=b"x")))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wrong.read()
        assert caught.value.code() is grpc.StatusCode.UNKNOWN
        assert caught.value.details() == (
            'can\'t unmarshal type "containerd.types.transfer.Data" to output '
            '"containerd.services.streaming.v1.StreamInit"'
        )
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first.read()
        while True:  # when the daemon has seen that it is gone, the name is free
            again = stream()
            await again.write(pack(streaming_api.StreamInit(id="one")))
            with contextlib.suppress(grpc.aio.AioRpcError):
                await again.read()
                break
        again.cancel()

    raw_run(orlopd, namespace, scenario)


def test_bytes_are_sent_as_the_windows_allow(orlopd, namespace):
    async def scenario(stream, transfer):
        source, target = await opened(stream(), "import-1"), await opened(stream(), "export-1")
        progress = await opened(stream(), "progress-1")
        calling = asyncio.create_task(
            _called(
                transfer,
                api.TransferRequest(
                    source=pack(importexport_pb2.ImageImportStream(stream="import-1")),
                    destination=pack(importexport_pb2.ImageExportStream(stream="export-1")),
                    options=api.TransferOptions(progress_stream="progress-1"),
                ),
            )
        )
        window = await source.read()
        assert window.type_url == "containerd.types.transfer.WindowUpdate"
        assert streaming_pb2.WindowUpdate.FromString(window.value).update >= 1 << 16
        await source.write(pack(streaming_pb2.Data(data=b"x" * 1000)))
        await source.done_writing()
        # Ten bytes may come, and then no more before there is another window.
        await target.write(pack(streaming_pb2.WindowUpdate(update=10)))
        assert await _data(target) == b"x" * 10
        waiting = asyncio.create_task(_data(target))
        await target.write(pack(streaming_pb2.WindowUpdate(update=7)))
        assert await waiting == b"x" * 7
        await target.write(pack(streaming_pb2.WindowUpdate(update=1 << 16)))
        assert await _data(target) == b"x" * 983
        assert await target.read() is grpc.aio.EOF
        assert await progress.read() is grpc.aio.EOF
        await calling

    raw_run(orlopd, namespace, scenario)


async def _called(transfer, request):
    return await transfer(request)


async def _data(stream):
    message = await stream.read()
    assert message.type_url == "containerd.types.transfer.Data"
    return streaming_pb2.Data.FromString(message.value).data


def test_progress_is_what_go_reads(orlopd, namespace):
    async def scenario(stream, transfer):
        progress = await opened(stream(), "progress-2")
        request = api.TransferRequest(
            source=pack(imagestore_pb2.ImageStore(name="x")),
            destination=pack(importexport_pb2.ImageExportStream(stream="export-2")),
            options=api.TransferOptions(progress_stream="progress-2"),
        )
        target = await opened(stream(), "export-2")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await transfer(request)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        message = await progress.read()
        assert message.type_url == "containerd.types.transfer.Progress"
        assert progress_pb2.Progress.FromString(message.value) == progress_pb2.Progress(event="Exporting")
        assert await progress.read() is grpc.aio.EOF
        assert await target.read() is grpc.aio.EOF

    raw_run(orlopd, namespace, scenario)


def test_a_stream_ends_with_its_lease(orlopd, namespace):
    async def whole():
        async with (
            asyncio.timeout(60),
            grpc.aio.insecure_channel(f"unix:{orlopd.address}") as channel,
            aio.Client(str(orlopd.address), namespace, timeout_s=60) as client,
        ):
            lease = await client.leases.create("held")
            stream = channel.stream_stream(
                "/containerd.services.streaming.v1.Streaming/Stream",
                request_serializer=Packed.SerializeToString,
                response_deserializer=Packed.FromString,
            )(metadata=(("containerd-namespace", namespace), ("containerd-lease", "held")))
            await opened(stream, "leased")
            await client.leases.delete(lease.id, synchronous=True)
            assert await stream.read() is grpc.aio.EOF

    asyncio.run(whole())
