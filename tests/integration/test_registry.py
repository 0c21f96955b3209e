"""The registry client against Debian's docker-registry: what it stores and serves, we push, resolve and fetch."""

import asyncio
import hashlib
import json
import subprocess

import pytest

from orlop.base import platforms
from orlop.base.errdefs import InvalidArgumentError, NotFoundError, UnauthenticatedError
from orlop.core.images import handlers
from orlop.core.images.dispatch import dispatch
from orlop.core.images.gc_labels import child_labels
from orlop.core.remotes import PushStatus, ref_key
from orlop.core.remotes.credentials import Fixed, parse_user
from orlop.core.remotes.pusher import source_label
from orlop.core.remotes.resolver import RegistryResolver
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor, Image, Index, Manifest, Platform, RootFS, encode
from tools import daemons

LAYERS = [b"".join(hashlib.sha256(bytes([number, index])).digest() for index in range(250)) * 400 for number in (1, 2)]


def run(scenario):
    async def bounded():
        async with asyncio.timeout(60):
            return await scenario()

    return asyncio.run(bounded())


def describe(data, media_type, platform=None):
    return Descriptor(media_type=media_type, digest=Digest.of(data), size=len(data), platform=platform)


def blob(data):
    def source():
        async def pieces():
            for start in range(0, len(data), 64 << 10):
                yield data[start : start + (64 << 10)]

        return pieces()

    return source


def make_image(architecture="amd64", layers=LAYERS):
    """All documents of an image, its blobs by descriptor, the manifest last."""
    config = encode(Image(os="linux", architecture=architecture, rootfs=RootFS(diff_ids=tuple(map(Digest.of, layers)))))
    parts = [(describe(layer, media_types.OCI_LAYER), layer) for layer in layers]
    parts.append((describe(config, media_types.OCI_CONFIG), config))
    manifest = encode(
        Manifest(
            media_type=media_types.OCI_MANIFEST,
            config=parts[-1][0],
            layers=tuple(descriptor for descriptor, _ in parts[:-1]),
        )
    )
    platform = Platform(os="linux", architecture=architecture)
    return [*parts, (describe(manifest, media_types.OCI_MANIFEST, platform), manifest)]


async def push_all(remote, ref, parts):
    pusher = remote.pusher(ref)
    return [(await pusher.push(descriptor, blob(data))).status for descriptor, data in parts]


def test_what_was_pushed_is_resolved_and_fetched(registry):
    async def scenario():
        ref = f"{registry.host}/client/app:1"
        parts = make_image()
        async with RegistryResolver() as remote:
            assert await push_all(remote, ref, parts) == [PushStatus.UPLOADED] * 4
            assert await push_all(remote, ref, parts) == [PushStatus.EXISTS] * 4
            name, target = await remote.resolve(ref)
            assert (name, target.digest, target.size) == (ref, parts[-1][0].digest, parts[-1][0].size)
            assert target.media_type == media_types.OCI_MANIFEST
            fetcher = remote.fetcher(ref)
            fetched = {}

            async def fetch(descriptor):
                async with fetcher.fetch(descriptor) as stream:
                    fetched[ref_key(descriptor)] = b"".join([piece async for piece in stream])
                return await handlers.children(fetcher, descriptor)

            await dispatch(fetch, [target], limit=3)
            assert fetched == {ref_key(descriptor): data for descriptor, data in parts}
            layer = parts[0][0]
            async with fetcher.fetch(layer, offset=1_000_000) as stream:
                assert b"".join([piece async for piece in stream]) == LAYERS[0][1_000_000:]

    run(scenario)


def test_an_index_is_walked_for_a_platform(registry):
    async def scenario():
        ref = f"{registry.host}/client/multi:1"
        images = [make_image("amd64", LAYERS[:1]), make_image("arm64", LAYERS[1:])]
        index = encode(Index(media_type=media_types.OCI_INDEX, manifests=tuple(parts[-1][0] for parts in images)))
        async with RegistryResolver() as remote:
            for parts in images:
                await push_all(remote, f"{ref}@{parts[-1][0].digest}", parts)
            await push_all(remote, ref, [(describe(index, media_types.OCI_INDEX), index)])
            _, target = await remote.resolve(ref)
            assert target.media_type == media_types.OCI_INDEX
            fetcher = remote.fetcher(ref)
            chosen = await handlers.manifest(fetcher, target, platforms.only(platforms.parse("linux/arm64")))
            assert chosen.descriptor.digest == images[1][-1][0].digest
            labels = child_labels(await handlers.children(fetcher, target))
            assert labels == {
                "containerd.io/gc.ref.content.m.0": images[0][-1][0].digest,
                "containerd.io/gc.ref.content.m.1": images[1][-1][0].digest,
            }

    run(scenario)


def test_a_layer_is_mounted_from_another_repository(registry):
    async def scenario():
        data = b"a layer that is in one repository" * 1000
        layer = describe(data, media_types.OCI_LAYER)
        here, there = f"{registry.host}/client/here:1", f"{registry.host}/client/there:1"
        async with RegistryResolver() as remote:
            await remote.pusher(there).push(layer, blob(data))
            key, repository = source_label(there)
            result = await remote.pusher(here).push(layer, blob(data), labels={key: repository})
            assert (result.status, result.mounted_from) == (PushStatus.MOUNTED, f"{registry.host}/client/there")
            async with remote.fetcher(here).fetch(layer) as stream:
                assert b"".join([piece async for piece in stream]) == data

    run(scenario)


def test_what_is_not_there_is_said_so(registry):
    async def scenario():
        absent = describe(b"absent", media_types.OCI_LAYER)
        async with RegistryResolver() as remote:
            with pytest.raises(NotFoundError, match=r"resolve .*/client/none:1: registry .*: 404 Not Found") as caught:
                await remote.resolve(f"{registry.host}/client/none:1")
            assert str(caught.value).endswith(": not found")
            with pytest.raises(NotFoundError, match=r"fetch sha256:.*404 Not Found: blob unknown to registry"):
                async with remote.fetcher(f"{registry.host}/client/none:1").fetch(absent) as stream:
                    await anext(stream)
            with pytest.raises(NotFoundError):
                await remote.resolve(f"{registry.host}/client/none@{absent.digest}")
            with pytest.raises(InvalidArgumentError, match="object required"):
                await remote.resolve(f"{registry.host}/client/none")
            with pytest.raises(NotFoundError, match=r"push .*404 Not Found: 404 page not found"):
                await remote.pusher(f"{registry.host}/client/NONE:1").push(absent, blob(b"absent"))

    run(scenario)


def test_the_registry_asks_for_a_password(secure_registry):
    async def scenario():
        ref = f"{secure_registry.host}/client/app:1"
        parts = make_image()
        async with RegistryResolver() as nobody:
            with pytest.raises(UnauthenticatedError, match="no basic auth credentials"):
                await nobody.resolve(ref)
        async with RegistryResolver(credentials=Fixed(parse_user(f"{daemons.USER}:wrong"))) as stranger:
            with pytest.raises(UnauthenticatedError, match="refused"):
                await push_all(stranger, ref, parts)
        known = Fixed(parse_user(f"{daemons.USER}:{daemons.PASSWORD}"))
        async with RegistryResolver(credentials=known) as remote:
            await push_all(remote, ref, parts)
            assert (await remote.resolve(ref))[1].digest == parts[-1][0].digest

    run(scenario)


def test_skopeo_reads_what_we_pushed(registry):
    async def scenario():
        ref = f"{registry.host}/client/skopeo:1"
        async with RegistryResolver() as remote:
            await push_all(remote, ref, make_image())
        return ref

    ref = run(scenario)
    skopeo = daemons.program("skopeo")
    shown = subprocess.run(
        [skopeo, "inspect", "--tls-verify=false", f"docker://{ref}"], check=True, capture_output=True, timeout=60
    )
    assert json.loads(shown.stdout)["Layers"] == [Digest.of(layer) for layer in LAYERS]
