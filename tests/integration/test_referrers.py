"""Referrers: discovered at registries, by the API or by the tag, and kept with what they refer to."""

import asyncio
import json

import pytest

import orlop
from orlop import aio
from orlop.base.errdefs import FailedPreconditionError, NotFoundError, UnavailableError
from orlop.core.remotes.hosts import HostOptions
from orlop.core.remotes.repository import Retry
from orlop.core.remotes.resolver import RegistryResolver
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Index, Manifest, encode
from orlop.testing.registry import Fault, Registry

SIGNATURE, SBOM = "application/vnd.example.signature", "application/vnd.example.sbom"
LAYER = b"\0" * 1024  # an empty tar


async def no_sleep(_seconds):
    await asyncio.sleep(0)


def run(scenario, **hosts):
    async def inside():
        retry = Retry(sleep=no_sleep, attempts=2)
        async with asyncio.timeout(60), Registry() as registry:
            async with RegistryResolver(retry=retry, hosts=HostOptions(**hosts)) as remote:
                await scenario(registry, remote)

    asyncio.run(inside())


def referrer(registry, subject, kind, text=b"{}"):
    manifest = Manifest(
        media_type=media_types.OCI_MANIFEST,
        artifact_type=kind,
        config=registry.add_blob("team/app", b"{}", media_types.OCI_EMPTY),
        layers=(registry.add_blob("team/app", text, kind),),
        subject=subject,
    )
    return registry.add_manifest("team/app", None, encode(manifest))


def repository(registry):
    return f"{registry.address}/team/app:1"


def digests(descriptors):
    return {one.digest for one in descriptors}


def test_the_api_lists_all_pages():
    async def scenario(registry, remote):
        target = registry.add_image("team/app", "1", [LAYER])
        made = [referrer(registry, target, SIGNATURE, str(number).encode()) for number in range(3)]
        made.append(referrer(registry, target, SBOM))
        assert digests(await remote.referrers(repository(registry), target.digest)) == digests(made)
        found = await remote.referrers(repository(registry), target.digest, artifact_types=[SBOM])
        assert [(one.digest, one.artifact_type) for one in found] == [(made[-1].digest, SBOM)]
        both = await remote.referrers(repository(registry), target.digest, artifact_types=[SBOM, SIGNATURE])
        assert len(both) == 4
        assert await remote.referrers(repository(registry), Digest.of(b"nothing")) == []

    run(scenario)


@pytest.mark.parametrize("status", [404, 405, 400])
def test_without_the_api_the_tag_is_read(status):
    async def scenario(registry, remote):
        registry.misbehave(Fault(path="/referrers/", status=status, times=-1))
        target = registry.add_image("team/app", "1", [LAYER])
        assert await remote.referrers(repository(registry), target.digest) == []
        made = referrer(registry, target, SIGNATURE)
        registry.add_index("team/app", target.digest.replace(":", "-"), [made])
        assert digests(await remote.referrers(repository(registry), target.digest)) == {made.digest}

    run(scenario)


def test_a_registry_that_fails_is_not_one_without_referrers():
    async def scenario(registry, remote):
        registry.misbehave(Fault(path="/referrers/", status=500, times=-1))
        target = registry.add_image("team/app", "1", [LAYER])
        with pytest.raises(UnavailableError, match="list referrers"):
            await remote.referrers(repository(registry), target.digest)

    run(scenario)


def test_a_page_that_is_missing_is_told():
    async def scenario(registry, remote):
        target = registry.add_image("team/app", "1", [LAYER])
        for number in range(2):
            referrer(registry, target, SIGNATURE, str(number).encode())
        registry.misbehave(Fault(path="last=1", status=404, times=-1))
        with pytest.raises(FailedPreconditionError, match="404"):
            await remote.referrers(repository(registry), target.digest)

    run(scenario)


@pytest.mark.parametrize(
    "link",
    ["http://elsewhere.test/v2/team/app/referrers/x", "/v2/other/referrers/x", "?", "/v2/../secret"],
    ids=["host", "repository", "circle", "path"],
)
def test_a_list_does_not_go_on_elsewhere(link):
    async def scenario(registry, remote):
        target = registry.add_image("team/app", "1", [LAYER])
        registry.misbehave(Fault(path="/referrers/", set_headers={"Link": f'<{link}>; rel="next"'}, times=-1))
        with pytest.raises(FailedPreconditionError, match="not followed"):
            await remote.referrers(repository(registry), target.digest)
        assert all("elsewhere" not in one.path and "secret" not in one.path for one in registry.seen)

    run(scenario)


def test_hosts_without_the_capability_are_not_asked(tmp_path):
    async def scenario(registry, remote):
        target = registry.add_image("team/app", "1", [LAYER])
        referrer(registry, target, SIGNATURE)
        place = tmp_path / f"{registry.address.replace(':', '_')}_" / "hosts.toml"
        place.parent.mkdir()

        def allow(*capabilities):
            place.write_text(f'server = "http://{registry.address}"\ncapabilities = {json.dumps(capabilities)}\n')

        allow("pull", "resolve")
        assert await remote.referrers(repository(registry), target.digest) == []
        assert not any("/referrers/" in one.path for one in registry.seen)
        allow("pull")
        with pytest.raises(NotFoundError, match="no referrers hosts"):
            await remote.referrers(repository(registry), target.digest)
        allow("referrers")
        assert len(await remote.referrers(repository(registry), target.digest)) == 1

    run(scenario, hosts_dirs=(str(tmp_path),))


@pytest.mark.root
def test_a_pull_keeps_what_refers_to_the_image(orlopd, namespace):
    """Labels and annotation as SetReferrers and ChildGCLabels of containerd 2.3 (core/images) make them."""

    async def whole():
        async with (
            asyncio.timeout(120),
            Registry() as registry,
            aio.Client(str(orlopd.address), namespace, timeout_s=60) as client,
        ):
            target = registry.add_image("team/app", "1", [LAYER])
            signature = referrer(registry, target, SIGNATURE)
            countersigned = referrer(registry, signature, SIGNATURE, b"of the signature")
            options = orlop.PullOptions(referrers=True)
            insecure = orlop.RegistryOptions(plain_http=True)
            image = await client.pull(repository(registry), registry=insecure, options=options)
            await client.leases.delete((await client.leases.create("sweep")).id, synchronous=True)
            kept = {info.digest async for info in client.content.walk()}
            assert kept >= {target.digest, signature.digest, countersigned.digest, Digest.of(b"of the signature")}
            labels = (await client.content.info(target.digest)).labels
            assert (
                labels[f"containerd.io/gc.ref.content.referrer.sha256.{signature.digest.hex[:12]}"] == signature.digest
            )
            assert await image.is_unpacked()
            await image.delete(synchronous=True)
            assert [info async for info in client.content.walk()] == []

    asyncio.run(whole())


def test_what_refers_to_itself_ends(tmp_path):
    """A registry may say anything; the same document is fetched once."""

    async def scenario(registry, remote):
        target = registry.add_image("team/app", "1", [LAYER])
        registry.misbehave(Fault(path="/referrers/", status=404, times=-1))
        index = Index(media_type=media_types.OCI_INDEX, manifests=(target,))
        registry.add_manifest("team/app", target.digest.replace(":", "-"), encode(index), media_types.OCI_INDEX)
        assert digests(await remote.referrers(repository(registry), target.digest)) == {target.digest}

    run(scenario)
