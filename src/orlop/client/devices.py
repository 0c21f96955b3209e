"""Devices of this host for a container: nodes, and NVIDIA's GPUs by their hook."""

import os
import shutil
import stat
from collections.abc import Sequence
from typing import Final

from orlop.base.errdefs import InvalidArgumentError, NotFoundError
from orlop.oci.spec import Device, Hook

_NVIDIA_CLI: Final = "nvidia-container-cli"
_GPU_CAPABILITIES: Final = ("compute", "compat32", "graphics", "utility", "video", "display")


def host_devices(path: str) -> list[Device]:
    """A device node of this host, or those below a directory.

    Raises:
        NotFoundError: there is none at that path.
        InvalidArgumentError: it is something else.
    """
    try:
        status = os.stat(path) if os.path.isdir(path) else os.lstat(os.path.realpath(path))
    except OSError as error:
        raise NotFoundError(f"device {path}") from error
    if stat.S_ISDIR(status.st_mode):
        # Those of the container itself, and directories that are mounts of their own, stay out.
        skipped = {"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"}
        found: list[Device] = []
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if not entry.is_symlink())
        for name in names:
            inner = os.path.join(path, name)
            kind = os.lstat(inner).st_mode
            if (stat.S_ISDIR(kind) and name not in skipped) or (
                (stat.S_ISCHR(kind) or stat.S_ISBLK(kind)) and name != "console"
            ):
                found += host_devices(inner)
        return found
    letter = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else ""
    if not letter:
        raise InvalidArgumentError(f"{path} is no device node")
    return [
        Device(
            path=path,
            type=letter,
            major=os.major(status.st_rdev),
            minor=os.minor(status.st_rdev),
            file_mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
        )
    ]


def gpu_hook(gpus: Sequence[int]) -> Hook:
    """The hook that brings GPUs into a container before it starts, all of their capabilities included.

    NVIDIA's program must know the container's process and root file system, which `oci-hook` of our daemon or of
    containerd's puts into its arguments.

    Raises:
        NotFoundError: one of the programs is not on PATH.

    Source: contrib/nvidia/nvidia.go of containerd.
    """
    nvidia = shutil.which(_NVIDIA_CLI)
    if nvidia is None:
        raise NotFoundError(f"GPUs need {_NVIDIA_CLI}, which is not on PATH", hint="install libnvidia-container-tools")
    for program in ("containerd", "orlopd"):
        path = shutil.which(program)
        if path is not None:
            break
    else:
        raise NotFoundError("GPUs need the program orlopd or containerd on PATH, for its oci-hook")
    args = [program, "oci-hook", "--", nvidia, "--load-kmods", "configure"]
    if gpus:
        args.append(f"--device={','.join(str(number) for number in gpus)}")
    args += [f"--{name}" for name in _GPU_CAPABILITIES]
    args += ["--pid={{pid}}", "{{rootfs}}"]
    env = [f"{name}={os.environ[name]}" for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ]
    return Hook(path=path, args=args, env=env)
