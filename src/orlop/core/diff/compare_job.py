"""The job that makes a layer of what one tree has beyond another.

The trusted process mounts both trees read-only. If the upper one is a layer of an overlay over the lower one, it mounts
that layer too, as a hint of where to look; unless a directory in it was renamed there from elsewhere (overlayfs's
redirects), for then names that the layer does not have may differ as well. Only a privileged process can see that.

The worker reads the trees, and writes the layer into the pipe that is the job's file.
"""

import os
from typing import Final

from orlop.core.diff import sandbox
from orlop.core.diff.changes import changes, open_directory
from orlop.core.diff.errors import EntryError
from orlop.core.diff.job import Job, Message, mount_from, say, supervise
from orlop.core.diff.layer import Layer
from orlop.core.diff.output import Output
from orlop.core.diff.stream import Compression

_PROGRESS_EVERY: Final = 16 << 20


def compare(job: Job) -> Message:
    """Make the layer as `Plan.request` says; the answer is the digest and size of the uncompressed archive."""
    request = job.request
    trees = {name: [mount_from(item) for item in request[name]] for name in ("upper", "lower", "changed")}
    roots = sandbox.enter_trees(trees)
    if roots["changed"] >= 0 and _redirects(roots["changed"], f"{request['marks']}.redirect"):
        os.close(roots["changed"])
        roots["changed"] = -1
    done = supervise(job, lambda report: _make(job, roots, report))
    done["quick"] = roots["changed"] >= 0
    return done


def _redirects(root: int, attribute: str) -> bool:
    """Whether overlayfs has recorded a renamed directory in this layer; True also if that cannot be told."""
    path: list[tuple[int, list[bytes]]] = []
    try:
        path.append(_directories(os.dup(root)))
        while path:
            fd, names = path[-1]
            if not names:
                os.close(path.pop()[0])
                continue
            following = open_directory(names.pop(), fd)
            path.append(_directories(following))
            if attribute in os.listxattr(following):
                return True
    except OSError:
        return True
    finally:
        for fd, _ in path:
            os.close(fd)
    return False


def _directories(fd: int) -> tuple[int, list[bytes]]:
    """The directory and the names of those in it."""
    with os.scandir(fd) as entries:
        return fd, [os.fsencode(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _make(job: Job, roots: dict[str, int], report: int) -> Message:
    """The worker's part."""
    sandbox.confine({job.file, report, job.life, *roots.values()}, sandbox.READING, "orlop-compare")
    output = Output(job.file, Compression(job.request["compression"]))
    output.start()
    sandbox.lock()
    say(report, {"phase": "compare"})
    layer = Layer(output.write, roots["upper"], epoch=job.request["epoch"])
    told = 0
    try:
        for change in changes(roots["upper"], roots["lower"], roots["changed"]):
            layer.add(change)
            if layer.size - told >= _PROGRESS_EVERY:
                told = layer.size
                say(report, {"progress": told})
        layer.current = None
        layer.finish()
        return {"digest": output.finish(), "size": layer.size, "entries": layer.entries}
    except EntryError:
        raise
    except BaseException as error:
        raise EntryError(layer.current) from error
