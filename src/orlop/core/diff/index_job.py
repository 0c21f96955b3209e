"""The job that makes an EROFS image of a layer (`indexing`).

The worker writes to a file that is nobody's yet; the trusted process renames it into place, after a sync if one is
wanted. So under its name an image is whole, and whatever dies earlier leaves a file that the next job overwrites and
that goes with its directory.
"""

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from typing import Final

from orlop.core.diff import sandbox
from orlop.core.diff.apply_job import counted, uncompressing
from orlop.core.diff.erofs import Node
from orlop.core.diff.errors import EntryError, UnsuitableError
from orlop.core.diff.extract import Limits
from orlop.core.diff.indexing import Builder
from orlop.core.diff.job import Job, Message, mount_from, say, send, supervise

PART: Final = ".part"
"""What the name of an image ends with while it is written."""


def index(job: Job) -> Message:
    """Make an image of the job's file as `Plan.request` says, at the request's `image`."""
    request = job.request
    check_empty(request)
    directory: str = request["directory"]
    with image_file(request["image"], sync=request["sync"], job=job) as fd:
        view = sandbox.enter([], [mount_from(item) for item in request["lower"]], directory)
        done = supervise(job, lambda report: _build(job, request, view, fd, report))
        done["usage"] = usage(fd, view)
    done["isolated"] = view.isolated
    return done


def check_empty(request: Message) -> None:
    """Raise UnsuitableError if the snapshot has anything in it: an image is the whole of a layer."""
    if os.listdir(request["directory"]):
        raise UnsuitableError("the snapshot has been written to before")
    if os.path.exists(request["image"]):
        raise UnsuitableError("the snapshot has a layer already")


@contextlib.contextmanager
def image_file(path: str, *, sync: bool, job: Job) -> Iterator[int]:
    """A file to be written, which gets its name on leaving; relative to its directory, since the root will be another.

    When it has its name, it is whole; and on the disk, if `sync`.
    """
    home, name = os.path.split(path)
    with contextlib.ExitStack() as undo:
        home_fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        undo.callback(os.close, home_fd)
        part = name + PART
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=home_fd)
        undo.callback(os.close, fd)
        try:
            yield fd
            if sync:
                send(job, {"phase": "sync"})
                os.fsync(fd)
            os.rename(part, name, src_dir_fd=home_fd, dst_dir_fd=home_fd)
            if sync:
                os.fsync(home_fd)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part, dir_fd=home_fd)
            raise


def usage(image: int, view: sandbox.View) -> list[int]:
    """Bytes and inodes: the empty root directory beside the image counts too, and the directory of both."""
    return [os.fstat(image).st_blocks * 512 + os.fstat(view.root_fd).st_blocks * 512, 2]


def _build(job: Job, request: Message, view: sandbox.View, image: int, report: int) -> Message:
    """The worker's part."""
    sandbox.confine({*job.inputs, report, job.life, view.root_fd, view.lower_fd, image}, sandbox.READING, "orlop-index")
    limits = Limits(**request["limits"])
    pipeline = uncompressing(job, limits)
    pipeline.start()
    sandbox.lock()
    status = os.fstat(view.root_fd)
    now = time.time_ns()
    root = Node(stat.S_IFDIR | stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, now)
    say(report, {"phase": "index"})
    builder = Builder(
        counted(pipeline, report),
        image,
        root,
        lower_fd=view.lower_fd,
        layered=request["overlay"],
        alone=request["alone"],
        now=now,
        limits=limits,
    )
    try:
        builder.run()
    except BaseException as error:
        raise EntryError(builder.current) from error
    return {"digest": pipeline.finish(), "size": pipeline.size, "ignored": builder.ignored, "marked": builder.marked}
