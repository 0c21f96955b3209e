"""The job that unpacks a layer.

When the worker has extracted everything, the trusted process does the little that the worker may not: it marks opaque
directories (trusted.overlay.opaque takes CAP_SYS_ADMIN, which would open a worker every other door) and sets security.*
attributes. It does so through openat2(2), following no link, in the same private root. It is this process and not the
daemon because it already stands in that root, and because its descriptors and its end are the job's own.
"""

import errno
import os
from collections.abc import Iterator
from functools import partial
from typing import Final

from orlop.core.diff import sandbox
from orlop.core.diff.errors import ArchiveError, EntryError, shown
from orlop.core.diff.extract import Extractor, Limits
from orlop.core.diff.job import Job, Message, mount_from, say, send, supervise
from orlop.core.diff.stream import Growing, Pipeline
from orlop.core.diff.tar import Reader
from orlop.core.diff.tree import Tree
from orlop.linux._libc import libc, oserror
from orlop.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

_PROGRESS_EVERY: Final = 16 << 20
_PATH_MAX: Final = 4096
_ESTALE_PATH: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def apply(job: Job) -> Message:
    """Unpack the job's file as `Plan.request` says; the answer is what `Applied` is made of."""
    request = job.request
    directory: str | None = request["directory"]
    if directory is not None and request["lower"] and os.listdir(directory):
        # Written before: what is there may have opaque marks that a worker cannot read. Let overlayfs do the work.
        request = {**request, "directory": None, "lower": [], "overlay": False}
        directory = None
    view = sandbox.enter(
        [mount_from(item) for item in request["mounts"]],
        [mount_from(item) for item in request["lower"]],
        directory,
    )
    done = supervise(job, lambda report: _extract(job, request, view, report))
    _privileged(view.root_fd, request["marks"], done)
    if request["sync"]:
        send(job, {"phase": "sync"})
        if libc.syncfs(view.root_fd) < 0:
            raise oserror("syncfs")
    done["isolated"] = view.isolated
    return done


def _extract(job: Job, request: Message, view: sandbox.View, report: int) -> Message:
    """The worker's part."""
    os.umask(0)
    keep = {*job.inputs, report, job.life, view.root_fd, view.lower_fd}
    sandbox.confine(keep, sandbox.UNPACKING, "orlop-unpack")
    limits = Limits(**request["limits"])
    pipeline = uncompressing(job, limits)
    pipeline.start()
    sandbox.lock()
    tree = Tree(
        view.root_fd,
        view.lower_fd,
        layered=request["overlay"],
        alone=request["alone"],
        open_limit=request["open_files"] // 20,
        always_inherits=view.parent_group,
    )
    merging = not tree.layered and bool(os.listdir(view.root_fd))
    say(report, {"phase": "extract"})
    reader = Reader(counted(pipeline, report))
    extractor = Extractor(reader, tree, merging=merging, limits=limits)
    try:
        result = extractor.run()
    except BaseException as error:
        raise EntryError(extractor.current) from error
    say(report, {"phase": "finish"})
    reader.drain()
    return {
        "digest": pipeline.finish(),
        "size": pipeline.size,
        "entries": reader.entries,
        "usage": None if merging else [tree.bytes, tree.inodes],
        "opaque": [path.hex() for path in result.opaque],
        "privileged": [[part.hex() for part in item] for item in result.privileged],
        "ignored": result.ignored,
        "marked": result.marked,
    }


def uncompressing(job: Job, limits: Limits) -> Pipeline:
    """The job's file, uncompressed."""
    if job.more < 0:
        return Pipeline(partial(os.read, job.file), limit=limits.size)
    return Pipeline(Growing(job.file, job.more, job.request["coming"]).read, limit=limits.size)


def counted(pipeline: Pipeline, report: int) -> Iterator[bytes]:
    """The pipeline's chunks; how much of the blob has been read is reported on the way."""
    told = 0
    for chunk in pipeline:
        yield chunk
        if pipeline.consumed - told >= _PROGRESS_EVERY:
            told = pipeline.consumed
            say(report, {"progress": told})


def _privileged(root_fd: int, marks: str, done: Message) -> None:
    """Set what the worker may not; every path is its word and goes through no link."""
    for text in done.pop("opaque"):
        _set(root_fd, bytes.fromhex(text), os.O_DIRECTORY, f"{marks}.opaque".encode(), b"y")
    for path, name, value in done.pop("privileged"):
        key = bytes.fromhex(name)
        if key.startswith(b"security."):
            _set(root_fd, bytes.fromhex(path), os.O_NONBLOCK, key, bytes.fromhex(value))


def _set(root_fd: int, path: bytes, flags: int, name: bytes, value: bytes) -> None:
    if len(path) >= _PATH_MAX:
        raise ArchiveError(f"{shown(path)} lies too deep for its attributes")
    try:
        fd = openat2(path or b".", os.O_RDONLY | flags, dir_fd=root_fd, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    except OSError as error:
        if error.errno in _ESTALE_PATH:  # later entries have put something else there
            return
        raise
    try:
        os.setxattr(fd, name, value)
    finally:
        os.close(fd)
