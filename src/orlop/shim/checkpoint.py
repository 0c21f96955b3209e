"""Checkpoints: dumping a container with CRIU through the OCI runtime, and the way back.

The runtime's options are those of runc-checkpoint(8) and runc-restore(8). CRIU's own log is kept in the bundle when a
dump fails. Source: the functions checkpoint and createCheckpointedState of containerd's cmd/containerd-shim-runc-v2.
"""

import contextlib
import os

from orlop.api.types.runc.options import oci_pb2
from orlop.base import failpoints
from orlop.base.errdefs import UnknownError
from orlop.shim.records import Record
from orlop.shim.runtime import Runtime, RuntimeFailedError
from orlop.shim.trees import remove_tree

_LOG_LIMIT = 1 << 20


async def dump(runtime: Runtime, container: str, bundle: str, path: str, wanted: oci_pb2.CheckpointOptions) -> None:
    """Dump a container into `path`, as long as it takes.

    Raises:
        UnknownError: the runtime has failed; its words, and where CRIU's log is.
    """
    work = wanted.work_path or os.path.join(bundle, "work", "criu-work")
    args = ["--image-path", path, "--work-path", work, *_options(wanted)]
    try:
        await runtime.checkpoint(container, args, bundle=bundle)
        failpoints.reach("shim.checkpoint.dumped")
    except RuntimeFailedError as error:
        kept = f"{bundle}/criu-dump.log"
        with contextlib.suppress(OSError):  # there is none where CRIU was not reached
            _copy(f"{work}/dump.log", kept)
        raise UnknownError(f"{error.text} path= {kept}") from error
    finally:
        if not wanted.work_path:
            remove_tree(work)


def restore_options(record: Record, bundle: str) -> list[str]:
    """The runtime's options to restore the container of init's record."""
    args = ["--image-path", record.checkpoint, "--work-path", record.criu_work_path or f"{bundle}/work"]
    if record.parent_checkpoint:
        args += ["--parent-path", record.parent_checkpoint]
    if record.no_pivot:
        args.append("--no-pivot")
    return args


def _options(wanted: oci_pb2.CheckpointOptions) -> list[str]:
    flags = (
        (not wanted.exit, "--leave-running"),
        (wanted.open_tcp, "--tcp-established"),
        (wanted.external_unix_sockets, "--ext-unix-sk"),
        (wanted.terminal, "--shell-job"),
        (wanted.file_locks, "--file-locks"),
    )
    args = [flag for on, flag in flags if on]
    if wanted.cgroups_mode:
        args += ["--manage-cgroups-mode", wanted.cgroups_mode]
    for name in wanted.empty_namespaces:
        args += ["--empty-ns", name]
    return args


def _copy(source: str, target: str) -> None:
    with open(source, "rb") as file:
        data = file.read(_LOG_LIMIT)
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
