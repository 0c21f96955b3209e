"""Pulling into stores in memory: what is fetched, in which order it is unpacked, and what a failure leaves."""

import asyncio

import pytest

from orlop.base.errdefs import InvalidArgumentError, NotFoundError
from orlop.base.labels import UNCOMPRESSED
from orlop.base.platforms import only
from orlop.core.transfer.fetch import Selection
from orlop.core.transfer.groups import first_error
from orlop.core.transfer.progress import Progress, Status
from orlop.core.transfer.pull import Unpack, pull
from orlop.oci import media_types
from orlop.oci.chain import chain_ids
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor, Platform
from tests.unit.core.transfer.memory import AMD64, ARM64, MemoryStores, Remote

NAME = "registry.test/team/app:1"
LAYERS = (b"bottom", b"middle", b"top")
CHAIN = chain_ids([Digest.of(one) for one in LAYERS])
UNPACK = (Unpack(snapshotter="memory"),)


def run(scenario):
    async def timed():
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(timed())


async def pulled(stores, remote, target, *, selection=None, unpacks=(), progress=lambda _step: None):
    return await pull(
        stores, remote, NAME, target, selection=selection or Selection(), unpacks=unpacks, progress=progress
    )


def test_each_layer_is_unpacked_as_soon_as_it_and_those_below_have_come():
    async def scenario():
        stores, remote = MemoryStores(), Remote()
        target = remote.image(*LAYERS)
        gates = [remote.hold(one) for one in LAYERS]
        unpacked: asyncio.Queue[str] = asyncio.Queue()

        def progress(step):
            if step.status is Status.UNPACKED:
                unpacked.put_nowait(step.descriptor.digest)

        pulling = asyncio.create_task(pulled(stores, remote, target, unpacks=UNPACK, progress=progress))
        gates[1].set()
        gates[0].set()
        assert [await unpacked.get(), await unpacked.get()] == [Digest.of(b"bottom"), Digest.of(b"middle")]
        assert not pulling.done()
        assert Digest.of(b"top") not in stores.content.blobs
        gates[2].set()
        assert await pulling == 1
        snapshots = stores.snapshots("memory")
        assert list(snapshots.committed) == CHAIN
        assert not snapshots.active
        assert snapshots.committed[CHAIN[0]] == {"containerd.io/snapshot.ref": CHAIN[0]}

    run(scenario)


def test_layers_that_a_remote_snapshotter_has_are_not_fetched():
    async def scenario():
        stores, remote = MemoryStores(), Remote()
        target = remote.image(*LAYERS)
        stores.snapshots("memory").remote = set(CHAIN[:2])
        await pulled(stores, remote, target, unpacks=UNPACK)
        assert set(stores.content.blobs) & {Digest.of(one) for one in LAYERS} == {Digest.of(b"top")}
        assert stores.applied == [Digest.of(b"top")]
        config = next(digest for digest, labels in stores.content.labels.items() if "gc.ref.snapshot" in str(labels))
        assert stores.content.labels[config]["containerd.io/gc.ref.snapshot.memory"] == CHAIN[-1]

    run(scenario)


def test_a_failure_ends_everything_and_leaves_no_snapshot():
    async def scenario():
        stores, remote = MemoryStores(), Remote()
        target = remote.image(*LAYERS)
        remote.hold(b"bottom")
        del remote.blobs[Digest.of(b"top")]
        with pytest.raises(NotFoundError, match=f"fetch {Digest.of(b'top')}"):
            await pulled(stores, remote, target, unpacks=UNPACK)
        snapshots = stores.snapshots("memory")
        assert not snapshots.active
        assert not snapshots.committed

    run(scenario)


def test_a_cancelled_pull_leaves_no_active_snapshot():
    async def scenario():
        stores, remote = MemoryStores(), Remote()
        target = remote.image(*LAYERS)
        for one in LAYERS:
            remote.hold(one)
        fetching = asyncio.Event()

        def progress(step):
            if step.descriptor.digest == Digest.of(b"bottom"):
                fetching.set()

        pulling = asyncio.create_task(pulled(stores, remote, target, unpacks=UNPACK, progress=progress))
        await fetching.wait()
        assert stores.snapshots("memory").active
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        assert not stores.snapshots("memory").active

    run(scenario)


@pytest.mark.parametrize(
    ("selection", "manifests", "layers"),
    [
        (Selection(), 2, {b"amd", b"arm"}),
        (Selection(matcher=only(AMD64)), 1, {b"amd"}),
        (Selection(matcher=only(AMD64), all_metadata=True), 2, {b"amd"}),
        (Selection(matcher=only(ARM64), all_metadata=True, manifest_limit=1), 1, {b"arm"}),
        (Selection(layers=False), 2, set()),
    ],
    ids=["all", "platform", "all metadata", "limit", "no layers"],
)
def test_what_is_selected(selection, manifests, layers):
    async def scenario():
        stores, remote = MemoryStores(), Remote()
        target = remote.index(remote.image(b"amd"), remote.image(b"arm", platform=ARM64))
        assert await pulled(stores, remote, target, selection=selection) == manifests
        assert {one for one in (b"amd", b"arm") if Digest.of(one) in stores.content.blobs} == layers
        # As in containerd all children are labelled, also those that were not wanted.
        assert len([key for key in stores.content.labels[target.digest] if "gc.ref.content.m." in key]) == 2

    run(scenario)


def test_attestations_are_kept_with_all_metadata_and_never_unpacked():
    async def scenario():
        stores, remote = MemoryStores(), Remote()
        unknown = Platform(os="unknown", architecture="unknown")
        image, attestation = remote.image(b"amd"), remote.image(b"{}", platform=unknown, layer_type=media_types.IN_TOTO)
        target = remote.index(image, attestation)
        selection = Selection(matcher=only(AMD64), all_metadata=True)
        await pulled(stores, remote, target, selection=selection, unpacks=UNPACK)
        assert attestation.digest in stores.content.blobs
        assert Digest.of(b"{}") not in stores.content.blobs
        await pulled(stores, remote, target, unpacks=UNPACK)
        assert Digest.of(b"{}") in stores.content.blobs
        assert list(stores.snapshots("memory").committed) == [Digest.of(b"amd")]
        assert attestation.digest in stores.content.labels[target.digest].values()

    run(scenario)


def test_progress_names_what_a_thing_was_found_in():
    async def scenario():
        stores, remote = MemoryStores(), Remote()
        manifest = remote.image(b"amd")
        target = remote.index(manifest)
        steps: list[Progress] = []
        await pulled(stores, remote, target, progress=steps.append)
        parents = {step.ref: step.parents for step in steps}
        assert parents[f"index-{target.digest}"] == (NAME,)
        assert parents[f"manifest-{manifest.digest}"] == (f"index-{target.digest}",)
        assert parents[f"layer-{Digest.of(b'amd')}"] == (f"manifest-{manifest.digest}",)
        layer = [step.status for step in steps if step.ref == f"layer-{Digest.of(b'amd')}"]
        assert (layer[0], layer[-1]) == (Status.WAITING, Status.DONE)

    run(scenario)


def test_schema_1_is_refused():
    async def scenario():
        target = Descriptor(media_type=media_types.DOCKER_SCHEMA1_MANIFEST, digest=Digest.of(b""), size=0)
        with pytest.raises(InvalidArgumentError, match="not supported"):
            await pulled(MemoryStores(), Remote(), target)

    run(scenario)


def test_the_error_that_callers_see():
    ours = NotFoundError("x")
    group = BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [ours])])
    assert first_error(group) is ours


@pytest.mark.parametrize("vanishes", [False, True])
def test_a_layer_that_is_there_is_held_before_the_next_is_laid_on_it(vanishes):
    """Nothing may refer to it, so the collector could take it between the look and the next layer."""

    async def scenario():
        stores, remote = MemoryStores(), Remote()
        target = remote.image(*LAYERS)
        snapshots = stores.snapshots("memory")
        await pulled(stores, remote, target, unpacks=UNPACK)
        del snapshots.committed[CHAIN[2]]
        held, exists = [], snapshots.exists
        prepare = snapshots.prepare

        async def looked_for(key):
            there = await exists(key)
            if vanishes:
                snapshots.committed.pop(key, None)
            return there

        async def prepared(key, parent="", *, labels=None):
            held.append(key.rpartition(" ")[2])
            if vanishes and parent and parent not in snapshots.committed:
                raise NotFoundError(f"parent snapshot {parent} does not exist")
            return await prepare(key, parent, labels=labels)

        snapshots.exists, snapshots.prepare = looked_for, prepared
        await pulled(stores, remote, target, unpacks=UNPACK)
        assert not snapshots.active
        assert held == ([CHAIN[1], CHAIN[0], *CHAIN] if vanishes else CHAIN[1:])
        assert sorted(snapshots.committed) == sorted(CHAIN)

    run(scenario)


def test_the_label_is_there_before_the_snapshot(monkeypatch):
    """Who comes after a crash finds the snapshot, and does not unpack and label its layer again."""

    async def scenario():
        stores, remote = MemoryStores(), Remote()
        target = remote.image(*LAYERS)
        snapshots = stores.snapshots("memory")
        commit = snapshots.commit
        seen: list[str | None] = []

        async def committing(name, key, *, labels=None):
            layer = Digest.of(LAYERS[len(seen)])
            seen.append((await stores.content.info(layer)).labels.get(UNCOMPRESSED))
            await commit(name, key, labels=labels)

        monkeypatch.setattr(snapshots, "commit", committing)
        await pulled(stores, remote, target, unpacks=UNPACK)
        assert seen == [Digest.of(one) for one in LAYERS]

    run(scenario)
