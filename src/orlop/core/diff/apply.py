"""Unpacking a layer blob onto mounts: the plan of a job, and what its answer means.

Mounts of an overlay are not performed to write through them: the layer goes straight into its upper directory, in
overlayfs's own form, and what is below is mounted read-only beside it to be looked up. A bind mount is written in its
source. Everything else is mounted in the job's own mount namespace.
"""

import dataclasses
import errno
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from orlop.base import errdefs
from orlop.core.content import Reader
from orlop.core.content.arrival import Coming
from orlop.core.diff import Applied, LayerBlob
from orlop.core.diff.extract import Limits
from orlop.core.diff.processors import Step, running
from orlop.core.diff.reading import reading
from orlop.core.diff.workers import JobError, Pool
from orlop.core.mount import Mount, disk, options

log: Final = logging.getLogger(__name__)

_READ_ONLY: Final = "ro"

Progress = Callable[[int], None]
"""Told how many bytes of the blob have been read."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a layer gets into its tree.

    Attributes:
        directory: where to write, or None to write into `mounts` once they are performed.
        lower: mounts that give the merged layers below, read-only; empty for none.
        overlay: the tree is a layer of an overlay.
        alone: what will be below is not known, and a layer that depends on it is refused; see `tree.Tree`.
        marks: prefix of overlayfs's extended attributes: `trusted.overlay` or `user.overlay`.
    """

    mounts: Sequence[Mount]
    directory: str | None = None
    lower: Sequence[Mount] = ()
    overlay: bool = False
    marks: str = "trusted.overlay"
    alone: bool = False

    marks_alone: ClassVar[str] = "trusted.overlay"
    """What a layer is marked with that was unpacked alone."""

    @classmethod
    def of(cls, mounts: Sequence[Mount]) -> "Plan":
        """The quickest way into `mounts`.

        Raises:
            InvalidArgumentError: there are none.
            FailedPreconditionError: they are read-only.
        """
        if not mounts:
            raise errdefs.InvalidArgumentError("apply a layer: no mounts")
        if _READ_ONLY in mounts[-1].options:
            raise errdefs.FailedPreconditionError("apply a layer: the mounts are read-only")
        if len(mounts) != 1:
            return cls(mounts=mounts)
        (mount,) = mounts
        if mount.target or any(option.startswith(("uidmap=", "gidmap=")) for option in mount.options):
            return cls(mounts=mounts)
        if mount.type == "bind":
            return cls(mounts=mounts, directory=mount.source)
        upper = options.value(mount.options, "upperdir")
        lowers = options.value(mount.options, "lowerdir")
        if mount.type != "overlay" or upper is None or lowers is None:
            return cls(mounts=mounts)
        marks = "user.overlay" if "userxattr" in mount.options else "trusted.overlay"
        return cls(mounts=mounts, directory=upper, lower=_below(lowers, mount), overlay=True, marks=marks)

    def request(self, *, sync: bool, limits: Limits, image: str = "", whole: bool = False) -> dict[str, Any]:
        """As the zygote takes it.

        Args:
            image: file to make of the layer instead of writing into the tree.
            whole: the layer is such a file.
        """
        return {
            "kind": "image" if whole else "index" if image else "apply",
            "image": image,
            "mounts": [dataclasses.asdict(mount) for mount in self.mounts],
            "directory": self.directory,
            "lower": [dataclasses.asdict(mount) for mount in self.lower],
            "overlay": self.overlay,
            "marks": self.marks,
            "alone": self.alone,
            "sync": sync,
            "limits": dataclasses.asdict(limits),
        }


async def apply(
    pool: Pool,
    blob: Reader,
    layer: LayerBlob,
    plan: Plan,
    *,
    sync: bool = False,
    limits: Limits | None = None,
    progress: Progress | None = None,
    steps: Sequence[Step] = (),
    payloads: Mapping[str, bytes] | None = None,
    image: str = "",
    whole: bool = False,
    coming: Coming | None = None,
) -> Applied:
    """Unpack a blob as `plan` says; see `Differ.apply` for what is raised.

    Args:
        blob: stays the caller's, to be closed.
        image: where to make a file system image of the layer instead, which whoever gave the mounts stacks in its
            stead. A layer that cannot be one is unpacked, unless the plan is to do so alone.
        whole: the layer is a file system image already, and becomes the file at `image`.
        coming: the blob is, and this goes on as it does.
        sync: write the tree to disk before this returns.
        steps: stream processors that the blob goes through first.
        payloads: what they are given, by their ids.
    """
    if whole and plan.directory is None:
        raise errdefs.InvalidArgumentError(f"layer {layer.digest} is a file system: it needs its snapshot's own mounts")

    def tell(message: dict[str, Any]) -> None:
        if progress is not None and "progress" in message:
            progress(message["progress"])

    async def run(image: str) -> dict[str, Any]:
        request = plan.request(sync=sync, limits=limits or Limits(), image=image, whole=whole)
        async with (
            reading(blob, layer.digest) as descriptor,
            running(steps, descriptor, payloads or {}) as source,
        ):
            return await pool.run(request, source, tell=tell, coming=coming)

    try:
        try:
            done = await run(image if plan.directory is not None else "")
        except JobError as error:
            if whole or plan.alone or error.message["kind"] != "unsuitable":
                raise
            log.info("layer is unpacked", extra={"digest": layer.digest, "reason": error.message["text"]})
            if blob.fd is not None:
                os.lseek(blob.fd, 0, os.SEEK_SET)
            done = await run("")
    except JobError as error:
        read = None if blob.fd is None else Path(os.readlink(f"/proc/self/fd/{blob.fd}"))
        raise failure(f"layer {layer.digest}", error, written=plan.directory, read=read) from error
    usage = done["usage"] or (None, None)
    return Applied(
        digest=done["digest"],
        size=done["size"],
        usage_bytes=usage[0],
        usage_inodes=usage[1],
        ignored=tuple(done["ignored"]),
        marked=done["marked"],
    )


def failure(
    subject: str, error: JobError, *, written: str | None = None, read: Path | None = None
) -> errdefs.OrlopError:
    """A job's failure as an error that names what it was about, phase, entry and reason.

    Args:
        written, read: what is on the file systems that the job used; they are named if they may be the reason.
    """
    message = error.message
    entry = f": entry {message['entry']}" if message.get("entry") else ""
    text = f"{subject}: {error.phase}{entry}: {message['text']}"
    match message["kind"]:
        case "archive":
            return errdefs.InvalidArgumentError(text)
        case "limit":
            return errdefs.ResourceExhaustedError(text)
        case "changed":
            return errdefs.AbortedError(text)
        case "unsuitable":
            return errdefs.FailedPreconditionError(text)
        case "os" if message["errno"] in disk.FULL:
            where = f" on the file system at {disk.mount_point(written)}" if written else ""
            return errdefs.ResourceExhaustedError(text + where, hint="free space on the file system of the snapshots")
        case "os" if message["errno"] == errno.EIO and written and read is not None:
            places = sorted({disk.mount_point(written), disk.mount_point(read)})
            return errdefs.InternalError(f"{text} on the file system at {' or '.join(places)}")
        case "os" if message["errno"] == errno.EROFS:
            return errdefs.FailedPreconditionError(text)
        case "error":
            return errdefs.CLASS_OF_CODE.get(message["code"], errdefs.UnknownError)(text)
        case _:
            return errdefs.InternalError(text)


def _below(lowers: str, mount: Mount) -> list[Mount]:
    """What lies under the upper directory, as one read-only mount; a single lower directory is no overlay."""
    layers = options.split_layers(lowers)
    if len(layers) == 1:
        return [Mount(type="bind", source=layers[0], options=("ro", "rbind"))]
    kept = [option for option in mount.options if not option.startswith(("upperdir=", "workdir="))]
    return [Mount(type="overlay", source="overlay", options=("ro", *kept))]
