"""Namespaces kept apart, as a property: random programs in two namespaces on one daemon.

What one namespace is answered while another one works beside it is what it is answered alone, step by step: so the
other can neither read, list, alter, delete nor block what is its own. Both use the same names, labels, references and
digests. Under the policy `shared` there is one exception, which has its own test.
"""

import contextlib
import hashlib
import itertools
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import orlop
from orlop.base.errdefs import NotFoundError, OrlopError
from orlop.client import sync
from orlop.client.leases import Resource
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor
from tools.daemons import Orlopd

pytestmark = pytest.mark.root

ROOT = {"containerd.io/gc.root": "yes"}
NAMES = ("a", "b", "c")
FRESH = itertools.count()
Answer = tuple[object, ...]


def data(number: int) -> bytes:
    return b"isolation %d" % number * 100


def digest(number: int) -> str:
    return f"sha256:{hashlib.sha256(data(number)).hexdigest()}"


class Actor:
    """One namespace's client, and the writers that it has open."""

    def __init__(self, address: str, namespace: str) -> None:
        self.namespace = namespace
        self.client = orlop.Client(address, namespace, timeout_s=60)
        self.writers: dict[str, sync.Writer] = {}

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
        self.writers.clear()
        with self.client as client:
            client.remove_namespace()

    def act(self, step: tuple[str, str, int]) -> Answer:
        """Do one step; the answer without what differs from run to run."""
        what, name, number = step
        try:
            answer = STEPS[what](self, name, number)
        except OrlopError as error:
            return (what, type(error).__name__, self._plain(str(error)))
        return (what, self._plain(repr(answer)))

    def _plain(self, text: str) -> str:
        text = re.sub(r"datetime\.datetime\([^()]*(?:\([^()]*\)|[^()])*?\)", "T", text)
        text = re.sub(r"(_at|created|updated|started)=[^,)]*(\)[^,)]*)?", r"\1=T", text)
        text = re.sub(r"/snapshots/native/\d+", "/snapshots/native/N", text)
        text = re.sub(r"0x[0-9a-f]+", "ADDRESS", text)
        return text.replace(self.namespace, "NAMESPACE")

    # ---- steps that need more than a line

    def open(self, name: str, number: int) -> object:
        if name in self.writers:
            return None
        # Named at both ends: the digest is what another may have.
        self.writers[name] = self.client.content.writer(f"ref-{name}", expected=digest(number), size=len(data(number)))
        return self.writers[name].offset

    def finish(self, name: str, number: int) -> object:
        writer = self.writers.pop(name, None)
        if writer is None:
            return None
        with contextlib.closing(writer):
            writer.write(data(number)[writer.offset :])
            return writer.commit(labels=ROOT)

    def leave(self, name: str, _number: int) -> object:
        writer = self.writers.pop(name, None)
        if writer is not None:
            writer.close()
        return None

    def image(self, name: str, number: int) -> object:
        target = Descriptor(media_type="application/x", digest=Digest(digest(number)), size=len(data(number)))
        return self.client.images.create(f"image-{name}", target, labels={"colour": name}).name

    def leased(self, name: str, number: int) -> object:
        return self.client.with_lease(f"lease-{name}").content.write(f"leased-{name}", data(number))


def snapshots(actor: Actor) -> sync.Snapshots:
    return actor.client.snapshots("native")


STEPS: dict[str, Callable[[Actor, str, int], object]] = {
    "content.write": lambda a, name, n: a.client.content.write(name, data(n), labels={**ROOT, "colour": name}),
    "content.open": Actor.open,
    "content.finish": Actor.finish,
    "content.leave": Actor.leave,
    "content.abort": lambda a, name, _n: a.client.content.abort(f"ref-{name}"),
    "content.ingests": lambda a, _name, _n: [(one.ref, one.offset) for one in a.client.content.ingests()],
    "content.read": lambda a, _name, n: a.client.content.read(digest(n)),
    "content.info": lambda a, _name, n: a.client.content.info(digest(n)),
    "content.label": lambda a, name, n: a.client.content.label(digest(n), {"colour": name}),
    "content.delete": lambda a, _name, n: a.client.content.delete(digest(n)),
    "content.list": lambda a, name, _n: [one.digest for one in a.client.content.walk([f"labels.colour=={name}"])],
    "content.all": lambda a, _name, _n: sorted(str(one) for one in a.client.content.walk()),
    "images.create": Actor.image,
    "images.delete": lambda a, name, _n: a.client.images.delete(f"image-{name}", synchronous=True),
    "images.label": lambda a, name, n: a.client.images.label(f"image-{name}", {"number": str(n)}).record.labels,
    "images.list": lambda a, name, _n: [one.record for one in a.client.images.list(["", f"labels.colour=={name}"])],
    "leases.create": lambda a, name, n: a.client.leases.create(f"lease-{name}", labels={"number": str(n)}),
    "leases.delete": lambda a, name, _n: a.client.leases.delete(f"lease-{name}", synchronous=True),
    "leases.add": lambda a, name, n: a.client.leases.add(f"lease-{name}", Resource(id=digest(n), type="content")),
    "leases.resources": lambda a, name, _n: sorted(map(str, a.client.leases.resources(f"lease-{name}"))),
    "leases.list": lambda a, _name, _n: a.client.leases.list(),
    "leases.use": Actor.leased,
    "snapshots.prepare": lambda a, name, n: snapshots(a).prepare(name, "" if n else "layer-a", labels=ROOT),
    "snapshots.view": lambda a, name, n: snapshots(a).view(name, "" if n else "layer-b", labels=ROOT),
    "snapshots.commit": lambda a, name, _n: snapshots(a).commit(f"layer-{name}", name, labels=ROOT),
    "snapshots.remove": lambda a, name, n: snapshots(a).remove(f"layer-{name}" if n else name),
    "snapshots.mounts": lambda a, name, _n: snapshots(a).mounts(name),
    "snapshots.label": lambda a, name, n: snapshots(a).label(name, {"number": str(n)}),
    "snapshots.list": lambda a, _name, _n: snapshots(a).list(),
    "containers.create": lambda a, name, n: (
        a.client.containers.create(
            name, b"{}", image=f"image-{name}", snapshotter="native", snapshot_key=name, labels={"number": str(n)}
        ).record
    ),
    "containers.get": lambda a, name, _n: a.client.containers.get(name).record,
    "containers.label": lambda a, name, n: a.client.containers.get(name).label({"number": str(n)}).record,
    "containers.delete": lambda a, name, _n: a.client.containers.get(name).delete(keep_snapshot=True),
    "containers.list": lambda a, _name, n: [one.id for one in a.client.containers.list([f"labels.number=={n}"])],
    "sandboxes.create": lambda a, name, _n: a.client.sandboxes.create(name, b"{}", labels={"colour": name}).id,
    "sandboxes.list": lambda a, _name, _n: [one.id for one in a.client.sandboxes.list()],
    "tasks.get": lambda a, name, _n: a.client.task(name).state(),
    "tasks.list": lambda a, _name, _n: a.client.tasks(),
    "mounts.list": lambda a, _name, _n: a.client.mounts.list(),
    "namespaces.get": lambda a, _name, _n: a.client.namespaces.get(a.namespace),
    "namespaces.label": lambda a, name, n: a.client.namespaces.label(a.namespace, {f"l-{name}": str(n)}),
}
STEP = st.tuples(st.sampled_from(sorted(STEPS)), st.sampled_from(NAMES), st.integers(0, 2))


@pytest.fixture(scope="module")
def isolated(short_directory):
    """A daemon that collects only when it is told to, so that a program always ends in the same way."""
    config = """
[plugins."io.containerd.metadata.v1.bolt"]
content_sharing_policy = "isolated"
[plugins."io.containerd.gc.v1.scheduler"]
mutation_threshold = 0
"""
    with Orlopd(Path(tempfile.mkdtemp(prefix="i.", dir=short_directory)), config=config) as daemon:
        yield daemon


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(program=st.lists(st.tuples(st.booleans(), STEP), min_size=25, max_size=60))
def test_another_namespace_changes_no_answer(isolated, program):
    number = next(FRESH)
    address = str(isolated.address)
    with contextlib.ExitStack() as stack:
        alone, mine, other = (
            stack.enter_context(contextlib.closing(Actor(address, f"{name}-{number}")))
            for name in ("alone", "mine", "other")
        )
        expected = [alone.act(step) for theirs, step in program if not theirs]
        # Before the other one comes in, nothing of the first run may be in the way of the second.
        found = []
        for theirs, step in program:
            answer = (other if theirs else mine).act(step)
            if not theirs:
                found.append(answer)
        assert found == expected
        left = [one.contents for one in (mine.client, alone.client)]
        assert mine._plain(str(left[0]())) == alone._plain(str(left[1]()))


def test_under_isolated_a_digest_gives_nothing(isolated):
    address = str(isolated.address)
    with (
        contextlib.closing(Actor(address, "giver")) as giver,
        contextlib.closing(Actor(address, "taker")) as taker,
    ):
        giver.client.content.write("r", data(7), labels=ROOT)
        writer = taker.client.content.writer("r", expected=digest(7), size=len(data(7)))
        with contextlib.closing(writer):
            assert writer.offset == 0
        with pytest.raises(NotFoundError):
            taker.client.content.read(digest(7))
        taker.client.content.abort("r")
        # Nor does a label, a lease or an image that names it keep or show it.
        taker.client.leases.create("l")
        taker.client.leases.add("l", Resource(id=digest(7), type="content"))
        giver.client.content.delete(digest(7))
        taker.client.leases.delete("l", synchronous=True)
        for one in (giver, taker):
            with pytest.raises(NotFoundError):
                one.client.content.read(digest(7))


def test_under_shared_who_names_a_digest_has_it_without_sending(new_orlopd):
    """The one exception; and only by a write, which makes a record of one's own."""
    address = str(new_orlopd().address)
    with (
        contextlib.closing(Actor(address, "giver")) as giver,
        contextlib.closing(Actor(address, "taker")) as taker,
    ):
        giver.client.content.write("r", data(7), labels={**ROOT, "secret": "label"})
        for refused in (
            lambda: taker.client.content.read(digest(7)),
            lambda: taker.client.content.info(digest(7)),
            lambda: taker.client.content.delete(digest(7)),
            lambda: taker.client.content.label(digest(7), {"a": "b"}),
        ):
            with pytest.raises(NotFoundError):
                refused()
        writer = taker.client.content.writer("r", expected=digest(7), size=len(data(7)))
        with contextlib.closing(writer):
            assert writer.offset == len(data(7))
            writer.commit(labels=ROOT)
        assert taker.client.content.read(digest(7)) == data(7)
        assert dict(taker.client.content.info(digest(7)).labels) == ROOT
        taker.client.content.delete(digest(7))
        assert giver.client.content.read(digest(7)) == data(7)
        assert giver.client.content.info(digest(7)).labels["secret"] == "label"
