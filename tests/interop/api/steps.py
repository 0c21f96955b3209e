"""The language of the differential suite: programs of calls, written as data.

A `Program` is a name and a few steps, which run one after the other in a namespace of its own on each daemon. In all
texts of a step, `{ns}` is that namespace, `{other}` and `{third}` are others; requests are nested dicts in protobuf's
own field names, so that a row reads like the message:

    Program("containers: a second one of the same id", [
        call("Containers.Create", container=container("one")),
        call("Containers.Create", container=container("one")),
    ])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf import message_factory

from orlop.api.services.containers.v1 import containers_pb2
from orlop.api.services.content.v1 import content_pb2
from orlop.api.services.diff.v1 import diff_pb2
from orlop.api.services.events.v1 import events_pb2
from orlop.api.services.images.v1 import images_pb2
from orlop.api.services.introspection.v1 import introspection_pb2
from orlop.api.services.leases.v1 import leases_pb2
from orlop.api.services.namespaces.v1 import namespaces_pb2
from orlop.api.services.sandbox.v1 import sandbox_pb2
from orlop.api.services.snapshots.v1 import snapshots_pb2
from orlop.api.services.tasks.v1 import tasks_pb2
from orlop.api.services.version.v1 import version_pb2
from orlop.oci.digest import Digest

SERVICES: Final = {
    name: module.DESCRIPTOR.services_by_name[name.removeprefix("Sandbox")]
    for name, module in (
        ("Containers", containers_pb2),
        ("Content", content_pb2),
        ("Diff", diff_pb2),
        ("Events", events_pb2),
        ("Images", images_pb2),
        ("Introspection", introspection_pb2),
        ("Leases", leases_pb2),
        ("Namespaces", namespaces_pb2),
        ("SandboxStore", sandbox_pb2),
        ("Snapshots", snapshots_pb2),
        ("Tasks", tasks_pb2),
        ("Version", version_pb2),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One exchange with a daemon.

    Attributes:
        method: `Service.Method`.
        requests: the messages that are sent, as nested dicts; one unless the client streams.
        stream: a name for the stream, if it stays open for later steps: `open` begins it, `more` sends on it.
        note: told apart from other steps of the same method by this in `differences.py`.
        sort: the answer's repeated fields have no order in containerd.
        only_code: containerd's text says something of its inside: the code is compared alone.
        publishes: requests of Events.Publish that are made while the call, a subscription, is open; it ends with them.
    """

    method: str
    requests: Sequence[dict[str, Any]]
    namespace: str = "{ns}"
    lease: str = ""
    stream: str = ""
    opens: bool = False
    ends: bool = False
    note: str = ""
    sort: bool = False
    only_code: bool = False
    publishes: Sequence[dict[str, Any]] = ()

    @property
    def label(self) -> str:
        """What `differences.py` calls it."""
        return f"{self.method} {self.note}".strip()


@dataclass(frozen=True, slots=True)
class Program:
    """Named steps.

    Attributes:
        since, until: the first and the last release of containerd that can be asked them; some requests without a
            message in them kill newer ones, from 1.7 on.
        isolated: they are for daemons with the content sharing policy `isolated`.
        source, expects: of what no peer here has: where it stands what is answered, and that, by a step's label, `left`
            or `events` as lines (see `run.Answer.lines`).
    """

    name: str
    steps: Sequence[Step]
    since: tuple[int, int] = (1, 6)
    until: tuple[int, int] | None = None
    isolated: bool = False
    source: str = ""
    expects: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def collects(self) -> bool:
        """Whether the program is about collection, and removes no snapshots by itself."""
        return self.name.startswith("gc: ")

    def suits(self, version: tuple[int, int]) -> bool:
        """Whether a release of containerd can be asked them."""
        return self.since <= version and (self.until is None or version <= self.until)


def call(
    method: str,
    *,
    ns: str = "{ns}",
    lease: str = "",
    note: str = "",
    sort: bool = False,
    only_code: bool = False,
    **request: Any,
) -> Step:
    """A call with one request."""
    return Step(method=method, requests=[request], namespace=ns, lease=lease, note=note, sort=sort, only_code=only_code)


def write(ref: str, *messages: dict[str, Any], ns: str = "{ns}", lease: str = "", note: str = "") -> Step:
    """A Content.Write stream of these messages, to its end; the first one gets the ref."""
    first, *rest = messages
    return Step(method="Content.Write", requests=[{"ref": ref, **first}, *rest], namespace=ns, lease=lease, note=note)


def open_stream(name: str, method: str, *, ns: str = "{ns}", lease: str = "", note: str = "", **request: Any) -> Step:
    """Begin a stream, send one message, wait for one answer, and leave it open."""
    return Step(method=method, requests=[request], namespace=ns, lease=lease, stream=name, opens=True, note=note)


def more(name: str, method: str, *, note: str = "", **request: Any) -> Step:
    """Send a message on an open stream and wait for one answer."""
    return Step(method=method, requests=[request], stream=name, note=note)


def end_stream(name: str, method: str, *, note: str = "") -> Step:
    """Say that no more comes, and wait for the end."""
    return Step(method=method, requests=[], stream=name, ends=True, note=note)


def subscribed(*filters: str, publishes: Sequence[dict[str, Any]]) -> Step:
    """What a subscriber with these filters gets of some events."""
    return Step(method="Events.Subscribe", requests=[{"filters": filters}], publishes=publishes)


def gc() -> list[Step]:
    """Have the daemon collect, and wait for it."""
    return [
        call("Leases.Create", id="to-collect", note="gc"),
        call("Leases.Delete", id="to-collect", sync=True, note="gc"),
    ]


# -- messages ---------------------------------------------------------------------------------------------------------

STAT: Final = content_pb2.WriteAction.STAT
WRITE: Final = content_pb2.WriteAction.WRITE
COMMIT: Final = content_pb2.WriteAction.COMMIT
SPEC: Final = {"type_url": "types.containerd.io/opencontainers/runtime-spec/1/Spec", "value": b'{"ociVersion":"1.0.2"}'}
HELLO: Final = b"hello"
DIGEST: Final = str(Digest.of(HELLO))
NONE: Final = "sha256:" + "0" * 64
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"


def container(container_id: str, **fields: Any) -> dict[str, Any]:
    """A container that passes validation."""
    return {"id": container_id, "runtime": {"name": "io.containerd.runc.v2"}, "spec": SPEC, **fields}


def image(name: str, *, digest: str = DIGEST, size: int = len(HELLO), media: str = OCI_MANIFEST, **fields: Any) -> Any:
    """An image that passes validation; its target need not exist."""
    annotations = fields.pop("annotations", {})
    target = {"media_type": media, "digest": digest, "size": size, "annotations": annotations}
    return {"name": name, "target": target, **fields}


def mask(*paths: str) -> dict[str, Any]:
    """An update mask."""
    return {"paths": list(paths)}


def blob(
    data: bytes,
    *,
    ref: str = "",
    lease: str = "",
    ns: str = "{ns}",
    labels: dict[str, str] | None = None,
    note: str = "",
) -> Step:
    """Write a blob in one message."""
    message = {"action": COMMIT, "data": data, "labels": labels or {}}
    return write(ref or f"ref-{digest(data)[7:19]}", message, lease=lease, ns=ns, note=note)


def digest(data: bytes) -> str:
    """The digest of a blob."""
    return str(Digest.of(data))


def answer_class(method: str) -> Any:
    """The class of a method's answers."""
    service, _, name = method.partition(".")
    return message_factory.GetMessageClass(SERVICES[service].methods_by_name[name].output_type)


def message(method: str, request: dict[str, Any]) -> Any:
    """The protobuf message of a request. Any: its class depends on the method."""
    service, _, name = method.partition(".")
    return message_factory.GetMessageClass(SERVICES[service].methods_by_name[name].input_type)(**request)
