"""A daemon's life on a disk that records: calls of every kind, one after the other.

After each call stands what clients see then; so of every place in the recording it is known what must be there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orlop
from orlop.base.errdefs import AlreadyExistsError, NotFoundError
from orlop.base.platforms import Platform
from orlop.core.transfer.ends import ImageStore, OCIRegistry, UnpackConfiguration
from orlop.oci.digest import Digest
from tools.daemons import COLLECT_ON_REQUEST, Orlopd
from tools.power.state import State, observe, performed, trees
from tools.recording_disk import History, Kind, RecordingDisk

NAMESPACE: Final = "power"
TIMEOUT_S: Final = 60
SIZE_BYTES: Final[Mapping[Kind, int]] = {"ext4": 256 << 20, "xfs": 384 << 20}
BYTES: Final = Digest.of(b"power").hex.encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the calls need from outside.

    Attributes:
        archive: of an image that runs.
        image: its name.
        remote: an image in a registry that can be reached without encryption.
    """

    archive: Path
    image: str
    remote: str


Call = Callable[[orlop.Client, Parts], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A call that can be made again after the power went in it.

    Attributes:
        area: which of the things that a daemon does.
    """

    area: str
    name: str
    call: Call = field(compare=False)

    def __str__(self) -> str:
        return f"{self.area}: {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A call as it was recorded: the disk's position when it was made and right after its answer, and what was there
    then."""

    step: Step
    begun: int
    answered: int
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """All of a recording.

    Attributes:
        trees: what each snapshot held, by its line in the states.
    """

    history: History
    moments: tuple[Moment, ...]
    trees: Mapping[str, str]
    kind: Kind


def record(directory: Path, parts: Parts, steps: tuple[Step, ...], *, kind: Kind = "ext4", size_bytes: int) -> Life:
    """Let a daemon on a new disk below `directory` live through the steps."""
    moments: list[Moment] = []
    known: dict[str, str] = {}
    with RecordingDisk(directory, size_bytes, kind) as disk:
        home = directory / "life"
        home.mkdir()
        (home / "root").symlink_to(disk.target)
        daemon = Orlopd(home, config=COLLECT_ON_REQUEST)
        begun = disk.position()
        try:
            daemon.start()
            moments.append(Moment(step=START, begun=begun, answered=disk.position(), state={}))
            with orlop.Client(str(daemon.address), NAMESPACE, timeout_s=TIMEOUT_S) as client:
                for step in steps:
                    moments.append(_made(disk, client, step, parts))
                    looked = disk.position()
                    new = trees(client, known)
                    if new:
                        known |= new
                        moments.append(Moment(step=LOOK, begun=looked, answered=disk.position(), state=observe(client)))
            begun = disk.position()
            daemon.stop()
            moments.append(Moment(step=STOP, begun=begun, answered=disk.position(), state=moments[-1].state))
        finally:
            daemon.close()
    return Life(history=disk.history(), moments=tuple(moments), trees=known, kind=kind)


def _made(disk: RecordingDisk, client: orlop.Client, step: Step, parts: Parts) -> Moment:
    begun = disk.position()
    try:
        step.call(client, parts)
    except Exception as error:
        error.add_note(f"while the power was on: {step}")
        raise
    answered = disk.position()
    return Moment(step=step, begun=begun, answered=answered, state=observe(client))


# -- the calls ----------------------------------------------------------------------------------------------------

there: Final = contextlib.suppress(AlreadyExistsError)
"""Around what may have happened when its answer was lost."""
gone: Final = contextlib.suppress(NotFoundError)


def _nothing(_client: orlop.Client, _parts: Parts) -> None:
    """What a start does again."""


START: Final = Step(area="daemon", name="start for the first time", call=_nothing)
LOOK: Final = Step(area="snapshots", name="view and remove", call=_nothing)
STOP: Final = Step(area="daemon", name="stop", call=_nothing)


def _blob(number: int, size: int = 100_000) -> bytes:
    return (BYTES * (size // len(BYTES) + 1))[: size - 1] + bytes([number])


def _held(client: orlop.Client) -> orlop.Client:
    return client.with_lease("keeper")


def _write(number: int, size: int = 100_000) -> Call:
    def call(client: orlop.Client, _parts: Parts) -> None:
        data = _blob(number, size)
        with there:
            _held(client).content.write(
                f"blob-{number}", data, expected=Digest.of(data), labels={"number": str(number)}
            )

    return call


def _begin(ref: str, data: bytes, count: int) -> Call:
    def call(client: orlop.Client, _parts: Parts) -> None:
        with _held(client).content.writer(ref, size=len(data)) as writer:
            if writer.offset > count:
                writer.truncate()
            writer.write(data[writer.offset : count])

    return call


def _finish(ref: str, data: bytes) -> Call:
    def call(client: orlop.Client, _parts: Parts) -> None:
        with there, _held(client).content.writer(ref, size=len(data), expected=Digest.of(data)) as writer:
            writer.write(data[writer.offset :])
            writer.commit()

    return call


def _again(call: Callable[[orlop.Client], object]) -> Call:
    """A call on the client alone that may find done what it is to do."""

    def again(client: orlop.Client, _parts: Parts) -> None:
        with there, gone:
            call(client)

    return again


def _import(client: orlop.Client, parts: Parts) -> None:
    with open(parts.archive, "rb") as opened:
        client.import_(opened)


def _unpack(snapshotter: str) -> Call:
    return lambda client, parts: client.images.get(parts.image).unpack(snapshotter=snapshotter)


def _prepare(snapshotter: str, key: str) -> Call:
    def call(client: orlop.Client, parts: Parts) -> None:
        with there:
            _held(client).snapshots(snapshotter).prepare(key, client.images.get(parts.image).chain_id())

    return call


def _fill_and_commit(snapshotter: str, name: str, key: str) -> Call:
    def call(client: orlop.Client, _parts: Parts) -> None:
        snapshots = _held(client).snapshots(snapshotter)
        with gone:  # it may be committed
            with performed(snapshots.mounts(key)) as root:
                for number in range(8):
                    (root / f"mine-{number}").write_bytes(_blob(number, 20_000))
                (root / "mine").mkdir(exist_ok=True)
                if (root / "etc" / "motd").exists():
                    os.rename(root / "etc" / "motd", root / "mine" / "motd")
            snapshots.commit(name, key, labels={"made": "by hand"})

    return call


def _new_container(client: orlop.Client, parts: Parts) -> None:
    options = orlop.SpecOptions(args=("sh", "-c", "echo x > /written"))
    try:
        client.new_container("box", parts.image, options)
    except AlreadyExistsError:
        if any(one.id == "box" for one in client.containers.list()):
            return
        client.snapshots().remove("box")  # of who was cut off, whose lease holds it until it expires
        client.new_container("box", parts.image, options)


def _run(client: orlop.Client, _parts: Parts) -> None:
    with client.containers.get("box").new_task() as task:
        task.start()
        if task.wait().code != 0:
            raise RuntimeError("the container's process failed")
        task.delete()


def _pull(client: orlop.Client, parts: Parts) -> None:
    client.pull(parts.remote, registry=orlop.RegistryOptions(plain_http=True))


def _transfer(client: orlop.Client, parts: Parts) -> None:
    here = ImageStore(name=parts.remote, unpacks=(UnpackConfiguration(platform=Platform()),))
    client.in_namespace("transferred").transfer(OCIRegistry(reference=parts.remote), here)


def _delete_image(name: Callable[[Parts], str]) -> Call:
    def call(client: orlop.Client, parts: Parts) -> None:
        with gone:
            client.images.delete(name(parts))
        _collect(client)

    return call


def _collect(client: orlop.Client) -> None:
    with there:
        client.leases.create("collect")
    with gone:
        client.leases.delete("collect", synchronous=True)


def _empty(client: orlop.Client, _parts: Parts) -> None:
    with gone:
        client.in_namespace("transferred").remove_namespace()


def _delete_lease(client: orlop.Client, _parts: Parts) -> None:
    with gone:
        client.leases.delete("keeper", synchronous=True)
    _collect(client)


def _label_image(client: orlop.Client, parts: Parts) -> None:
    client.images.label(parts.image, {"tide": "low"})


def _tag(client: orlop.Client, parts: Parts) -> None:
    client.images.tag(parts.image, "tagged:1", replace=True)


def _step(area: str, name: str, call: Call) -> Step:
    return Step(area=area, name=name, call=call)


_SLOW: Final = _blob(9, 700_000)
_FIRST: Final = str(Digest.of(_blob(1)))

CONTENT: Final = (
    _step("leases", "create", _again(lambda client: client.leases.create("keeper", labels={"kept": "yes"}))),
    _step("content", "write a blob", _write(1)),
    _step("content", "begin an ingest", _begin("slow", _SLOW, 300_000)),
    _step("content", "begin another ingest", _begin("given-up", _blob(8), 50_000)),
    _step("content", "finish an ingest", _finish("slow", _SLOW)),
    _step("content", "abort", _again(lambda client: client.content.abort("given-up"))),
    _step("content", "label", _again(lambda client: client.content.label(_FIRST, {"tide": "high"}))),
    _step("content", "delete", _again(lambda client: client.content.delete(_FIRST))),
    _step("content", "write a blob again", _write(1)),
    _step("content", "write a small blob", _write(2, 100)),
)
IMAGES: Final = (
    _step("images", "import", _import),
    _step("images", "unpack", _unpack("overlayfs")),
    _step("images", "label", _label_image),
    _step("images", "tag", _tag),
)
SNAPSHOTS: Final = (
    _step("snapshots", "prepare", _prepare("overlayfs", "active")),
    _step("snapshots", "commit", _fill_and_commit("overlayfs", "mine", "active")),
    _step("snapshots", "label", _again(lambda client: client.snapshots().label("mine", {"tide": "low"}))),
    _step("snapshots", "prepare", _prepare("overlayfs", "second")),
    _step("snapshots", "remove", _again(lambda client: client.snapshots().remove("second"))),
    _step("snapshots", "unpack, native", _unpack("native")),
    _step("snapshots", "prepare, native", _prepare("native", "active")),
    _step("snapshots", "commit, native", _fill_and_commit("native", "mine", "active")),
)
CONTAINERS: Final = (
    _step("containers", "create", _new_container),
    _step("containers", "label", _again(lambda client: client.containers.get("box").label({"tide": "high"}))),
    _step("tasks", "create, start, wait, delete", _run),
    _step("containers", "delete", _again(lambda client: client.containers.get("box").delete())),
)
TRANSFERS: Final = (
    _step("images", "pull", _pull),
    _step("images", "pull by transfer", _transfer),
)
NAMESPACES: Final = (
    _step("namespaces", "create", _again(lambda client: client.namespaces.create("empty", {"tide": "low"}))),
    _step("namespaces", "label", _again(lambda client: client.namespaces.label("empty", {"tide": "high"}))),
    _step("namespaces", "delete", _again(lambda client: client.namespaces.delete("empty"))),
)
DELETIONS: Final = (
    _step("namespaces", "remove with all in it", _empty),
    _step("images", "delete and collect", _delete_image(lambda parts: parts.remote)),
    _step("images", "delete", _again(lambda client: client.images.delete("tagged:1"))),
    _step("collection", "of an image", _delete_image(lambda parts: parts.image)),
    _step("collection", "of a lease", _delete_lease),
)

ALL: Final = (*CONTENT, *IMAGES, *SNAPSHOTS, *CONTAINERS, *TRANSFERS, *NAMESPACES, *DELETIONS)
