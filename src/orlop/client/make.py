"""Making a container from an image: snapshot, spec, record; and the process of an exec.

What a failure has half made is undone: no snapshot stays without its container.

Source: NewContainer and WithNewSnapshot in containerd's client, run in cmd/ctr/commands/run/run_unix.go.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from google.protobuf.any_pb2 import Any as PackedAny

from orlop.base.errdefs import InvalidArgumentError, NotFoundError, OrlopError
from orlop.client.containers import DEFAULT_RUNTIME, STOP_SIGNAL_LABEL, Container, Containers
from orlop.client.images import Image
from orlop.client.leases import Held
from orlop.client.session import Session
from orlop.client.snapshots import DEFAULT_SNAPSHOTTER, Snapshots
from orlop.client.spec import SpecOptions, make_spec, set_user
from orlop.client.users import UserFiles
from orlop.core.mount import Mount
from orlop.oci.spec import Process, Spec, SpecDocument, decode, encode

if TYPE_CHECKING:
    from orlop.oci.image import Image as ImageConfig

REMAP_ATTEMPTS: Final = 3

_MAX_LABEL_BYTES = 4096
IMAGE_LABEL_PREFIX = "containerd.io/"


async def new_container(
    session: Session,
    container_id: str,
    image: Image | None,
    *,
    options: SpecOptions,
    runtime: str = DEFAULT_RUNTIME,
    runtime_options: PackedAny | None = None,
    snapshotter: str = DEFAULT_SNAPSHOTTER,
    snapshot_labels: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    extensions: Mapping[str, PackedAny] | None = None,
    sandbox: str = "",
) -> Container:
    """Make a container; see `Client.new_container`."""
    if options.apparmor_default_profile:
        from orlop.client.apparmor import load_default

        await session.blocking(load_default, options.apparmor_default_profile)
    async with Held(session) as held:
        made = await _made(
            held,
            container_id,
            image,
            options=options,
            runtime=runtime,
            runtime_options=runtime_options,
            snapshotter=snapshotter,
            snapshot_labels=snapshot_labels or {},
            labels=labels or {},
            extensions=extensions,
            sandbox=sandbox,
        )
    return Container(session, made.record)  # the lease has ended, and is not to be named any more


async def _made(
    held: Session,
    container_id: str,
    image: Image | None,
    *,
    options: SpecOptions,
    runtime: str,
    runtime_options: PackedAny | None,
    snapshotter: str,
    snapshot_labels: Mapping[str, str],
    labels: Mapping[str, str],
    extensions: Mapping[str, PackedAny] | None,
    sandbox: str,
) -> Container:
    if options.spec_file:
        return await _from_file(held, container_id, options, runtime, runtime_options, labels, extensions, sandbox)
    if image is None:
        if not options.rootfs:
            raise InvalidArgumentError(f"container {container_id}: no image and no root file system is given")
        spec = make_spec(namespace=held.namespace, container_id=container_id, options=options)
        return await Containers(held).create(
            container_id,
            encode(spec),
            runtime=runtime,
            runtime_options=runtime_options,
            labels=labels,
            extensions=extensions,
            sandbox=sandbox,
        )
    with held.phase("image"):
        config = await image.config()
        parent = await image.chain_id()
        if parent and not await image.is_unpacked(snapshotter):
            await image.unpack(snapshotter=snapshotter)
    snapshots = Snapshots(held, snapshotter)
    marks = dict(snapshot_labels)
    mounts = await _prepared(held, snapshots, container_id, parent, options, marks)
    try:
        with held.phase("users"):
            users = await held.blocking(read_users, mounts)
        with held.phase("spec"):
            spec = make_spec(
                namespace=held.namespace, container_id=container_id, options=options, image=config, users=users
            )
        return await Containers(held).create(
            container_id,
            encode(spec),
            image=image.name,
            runtime=runtime,
            runtime_options=runtime_options,
            snapshotter=snapshotter,
            snapshot_key=container_id,
            labels=container_labels(config, image.labels, labels),
            extensions=extensions,
            sandbox=sandbox,
        )
    except BaseException:
        with contextlib.suppress(OrlopError):  # the first error tells
            await snapshots.remove(container_id)
        raise


async def _prepared(
    session: Session,
    snapshots: Snapshots,
    container_id: str,
    parent: str,
    options: SpecOptions,
    marks: dict[str, str],
) -> list[Mount]:
    """The container's snapshot, on `parent` or on the remapped one.

    Nothing holds a remapped snapshot that is there already until it is a parent, so the collector may take it in
    between; it is made anew then.
    """
    if not (options.uid_maps and options.gid_maps):
        return await snapshots.prepare(container_id, parent, labels=marks)
    for _ in range(REMAP_ATTEMPTS - 1):
        remapped = await _remapped(session, snapshots, parent, options, marks)
        with contextlib.suppress(NotFoundError):
            return await snapshots.prepare(container_id, remapped, labels=marks)
    remapped = await _remapped(session, snapshots, parent, options, marks)
    return await snapshots.prepare(container_id, remapped, labels=marks)


async def _remapped(
    session: Session, snapshots: Snapshots, parent: str, options: SpecOptions, marks: dict[str, str]
) -> str:
    """What a container in a user namespace is put on top of; or the labels that ask the snapshotter, into `marks`."""
    from orlop.client.remap import labels, remapped_parent

    if options.remap_labels:
        marks.update(labels(options.uid_maps, options.gid_maps))
        return parent
    return await remapped_parent(session, snapshots, parent, options.uid_maps, options.gid_maps)


async def exec_process(
    session: Session,
    container: Container,
    args: Sequence[str],
    *,
    cwd: str,
    user: str,
    tty: bool,
    env: Sequence[str],
) -> bytes:
    """The JSON of a process like the container's own; see `Container.exec_spec`."""
    from orlop.client.spec import replace_env

    if not args:
        raise InvalidArgumentError(f"exec in container {container.id}: no command is given")
    spec = decode(container.record.spec, what=f"spec of container {container.id}")
    process = spec.process or Process()
    process.args = list(args)
    process.terminal = tty
    if cwd:
        process.cwd = cwd
    if env:
        process.env = replace_env(process.env, env)
    if user:
        mounts = await container.mounts()
        set_user(process, user, await session.blocking(_users_of, mounts, spec))
    return encode(process)


def container_labels(config: "ImageConfig", record: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """The labels of a container: those of the image's configuration and record, its stop signal, and the caller's.

    Source: WithImageConfigLabels, buildLabels and WithImageStopSignal; labels that containerd would refuse or that mean
    something to the collector stay out.
    """
    labels = {
        key: value
        for key, value in (*config.config.labels.items(), *record.items())
        if not key.startswith(IMAGE_LABEL_PREFIX) and len(key) + len(value) <= _MAX_LABEL_BYTES
    }
    labels[STOP_SIGNAL_LABEL] = config.config.stop_signal or "SIGTERM"
    labels.update(own)
    return labels


def read_users(mounts: Sequence[Mount]) -> UserFiles:
    """The passwd and group files of a root file system, which is mounted for that moment, read-only."""
    from orlop.core.mount import options
    from orlop.core.mount.perform import temp_mount

    with temp_mount(options.readonly(mounts)) as root:
        return _users_below(root)


def _users_of(mounts: Sequence[Mount], spec: Spec) -> UserFiles:
    if mounts:
        return read_users(mounts)
    return _users_below(spec.root.path) if spec.root is not None else UserFiles()


def _users_below(root: str) -> UserFiles:
    from orlop.core.mount.lookup import read_in_root

    return UserFiles(read_in_root(root, "/etc/passwd"), read_in_root(root, "/etc/group"))


async def _from_file(
    session: Session,
    container_id: str,
    options: SpecOptions,
    runtime: str,
    runtime_options: PackedAny | None,
    labels: Mapping[str, str],
    extensions: Mapping[str, PackedAny] | None,
    sandbox: str,
) -> Container:
    """A container whose spec is a file's, as it is but for the command line and the cgroup."""

    def read() -> bytes:
        try:
            with open(options.spec_file, "rb") as file:
                return file.read()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise NotFoundError(f"cannot load spec config file: open {options.spec_file}: {reason}") from error

    document = SpecDocument.load(await session.blocking(read))
    if options.args and document.spec.process is not None:
        document.spec.process.args = list(options.args)
    return await Containers(session).create(
        container_id,
        document.dump(),
        runtime=runtime,
        runtime_options=runtime_options,
        labels=labels,
        extensions=extensions,
        sandbox=sandbox,
    )
