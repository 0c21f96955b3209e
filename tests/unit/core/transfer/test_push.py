"""Pushing from stores in memory: the order, what is left out, and what is missing."""

import asyncio
import contextlib

import pytest

from orlop.base.errdefs import NotFoundError
from orlop.base.platforms import ALL, only_strict
from orlop.core.remotes import PushResult, PushStatus
from orlop.core.transfer.progress import Progress, Status
from orlop.core.transfer.push import Foreign, Pushing
from orlop.oci import media_types
from orlop.oci.digest import Digest
from tests.unit.core.transfer.memory import AMD64, ARM64, MemoryStores, Remote


class Taking:
    """A pusher that notes what comes, and has some already."""

    def __init__(self, *here):
        self.here, self.taken = set(here), []

    async def push(self, descriptor, source, *, labels=None):
        self.taken.append(descriptor.digest)
        if descriptor.digest in self.here:
            return PushResult(status=PushStatus.EXISTS)
        data = b"".join([piece async for piece in source()])
        assert Digest.of(data) == descriptor.digest
        return PushResult(status=PushStatus.UPLOADED)


def pushed(remote, target, *, pusher=None, missing=(), **options):
    stores, taking = MemoryStores(), pusher or Taking()
    stores.content.blobs.update({key: value for key, value in remote.blobs.items() if key not in missing})
    steps: list[Progress] = []
    pushing = Pushing(stores.content, taking, name="x", progress=steps.append, **options)
    asyncio.run(pushing.tree(target))
    return taking.taken, steps


def test_what_names_something_comes_after_it():
    remote = Remote()
    one, other = remote.image(b"one"), remote.image(b"two", b"one", platform=ARM64)
    index = remote.index(one, other)
    taken, steps = pushed(remote, index)
    assert taken[-1] == index.digest
    for manifest, layers in ((one, [b"one"]), (other, [b"two"])):
        assert all(taken.index(Digest.of(layer)) < taken.index(manifest.digest) for layer in layers)
    assert len(taken) == len(set(taken))
    parents = {step.ref: step.parents for step in steps}
    assert parents[f"index-{index.digest}"] == ("x",)
    assert parents[f"manifest-{one.digest}"] == (f"index-{index.digest}",)


def test_a_platform_alone():
    remote = Remote()
    one, other = remote.image(b"one"), remote.image(b"two", platform=ARM64)
    taken, _ = pushed(remote, remote.index(one, other), matcher=only_strict(AMD64))
    assert other.digest not in taken
    assert one.digest in taken


def test_what_is_there_already_is_said():
    remote = Remote()
    target = remote.image(b"one")
    _, steps = pushed(remote, target, pusher=Taking(Digest.of(b"one")))
    assert [step.status for step in steps if step.ref == f"layer-{Digest.of(b'one')}"][-2:] == [
        Status.EXISTS,
        Status.DONE,
    ]


@pytest.mark.parametrize(
    ("foreign", "missing", "goes"),
    [
        (Foreign.SKIP, False, False),
        (Foreign.PUSH, False, True),
        (Foreign.PUSH_IF_HERE, False, True),
        (Foreign.PUSH_IF_HERE, True, False),
        (Foreign.PUSH, True, None),
    ],
)
def test_layers_that_may_not_be_passed_on(foreign, missing, goes):
    remote = Remote()
    layer = Digest.of(b"foreign")
    target = remote.image(b"foreign", layer_type=media_types.OCI_LAYER_NONDISTRIBUTABLE)
    expected = contextlib.nullcontext() if goes is not None else pytest.raises(NotFoundError, match="is not here")
    with expected:
        taken, _ = pushed(remote, target, missing={layer} if missing else (), foreign=foreign, matcher=ALL)
        assert (layer in taken) is goes
