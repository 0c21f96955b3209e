"""The job that takes a layer which is an EROFS image already: uncompress it, hash it, write it where an index would be.

What is in the image meets nobody here but for its first block: the kernel reads it, when the snapshot is mounted.
Source: the native form in containerd's plugins/diff/erofs.
"""

import os

from orlop.core.diff import erofs, sandbox
from orlop.core.diff.apply_job import counted, uncompressing
from orlop.core.diff.errors import ArchiveError
from orlop.core.diff.extract import Limits
from orlop.core.diff.index_job import check_empty, image_file, usage
from orlop.core.diff.job import Job, Message, say, supervise


def store(job: Job) -> Message:
    """Write the job's file to the request's `image`; the answer is what `Applied` is made of."""
    request = job.request
    check_empty(request)
    with image_file(request["image"], sync=request["sync"], job=job) as fd:
        view = sandbox.enter([], [], request["directory"])
        done = supervise(job, lambda report: _copy(job, request, view, fd, report))
        if damage := erofs.damage(os.pread(fd, erofs.HEAD, 0), done["size"]):
            raise ArchiveError(f"it is no image of EROFS: {damage}")
        done["usage"] = usage(fd, view)
    done["isolated"] = view.isolated
    return done


def _copy(job: Job, request: Message, view: sandbox.View, image: int, report: int) -> Message:
    """The worker's part."""
    sandbox.confine({*job.inputs, report, job.life, view.root_fd, image}, sandbox.READING, "orlop-image")
    pipeline = uncompressing(job, Limits(**request["limits"]))
    pipeline.start()
    sandbox.lock()
    say(report, {"phase": "extract"})
    for chunk in counted(pipeline, report):
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(image, rest) :]
    return {"digest": pipeline.finish(), "size": pipeline.size, "ignored": [], "marked": True}
