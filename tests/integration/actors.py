"""Who acts in programs about the isolation of namespaces: what each step is, and what of its answer must be equal."""

import contextlib
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orlop
from orlop.base.errdefs import NotFoundError, OrlopError
from orlop.client import sync
from orlop.client.connect import Transport
from orlop.client.leases import Resource
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor
from tools import residue

ROOT = {"containerd.io/gc.root": "yes"}
NAMES = ("a", "b", "c")
Answer = tuple[object, ...]


def data(number: int) -> bytes:
    return b"isolation %d" % number * 100


def digest(number: int) -> str:
    return f"sha256:{hashlib.sha256(data(number)).hexdigest()}"


@dataclass(frozen=True)
class Place:
    """A namespace of a daemon, and a way to it.

    Attributes:
        root: address of the socket that may all.
        address: of the socket that is used.
    """

    namespace: str
    root: str
    address: str
    transport: Transport = "ttrpc"

    def connect(self) -> orlop.Client:
        return orlop.Client(self.address, self.namespace, timeout_s=60, transport=self.transport)

    def remove(self) -> None:
        """Remove the namespace with all that is in it."""
        with orlop.Client(self.root, self.namespace, timeout_s=60) as client, contextlib.suppress(NotFoundError):
            client.remove_namespace()
        for path in residue.cgroups():
            if path.endswith(f"/{self.namespace}"):
                residue.patiently_rmdir(path)


class Actor:
    """A client in a namespace, and the writers that it has open."""

    def __init__(self, place: Place) -> None:
        self.namespace, self.place = place.namespace, place
        self.client = place.connect()
        self.writers: dict[str, sync.Writer] = {}

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
        self.writers.clear()
        self.client.close()
        self.place.remove()

    def steps(self) -> Mapping[str, Callable[[Any, str, int], object]]:
        """What can be done, by its name."""
        return STEPS

    def act(self, step: tuple[str, str, int]) -> Answer:
        """Do one step; the answer without what differs from run to run."""
        what, name, number = step
        try:
            answer = self.steps()[what](self, name, number)
        except OrlopError as error:
            return (what, type(error).__name__, self.plain(str(error)))
        return (what, self.plain(repr(answer)))

    def plain(self, text: str) -> str:
        text = re.sub(r"datetime\.datetime\([^()]*(?:\([^()]*\)|[^()])*?\)", "T", text)
        text = re.sub(r"(_at|created|updated|started)=[^,)]*(\)[^,)]*)?", r"\1=T", text)
        text = re.sub(r"/snapshots/(native|overlayfs)/\d+", r"/snapshots/\1/N", text)
        text = re.sub(r"/t/\d+", "/t/N", text)
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
