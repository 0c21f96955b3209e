"""Shim binaries: which one serves a runtime name, and how one is started and asked to clean up.

A name `io.containerd.runc.v2` means the program `containerd-shim-runc-v2`; an absolute path means itself. Names that
our supervisor serves, and names in the configuration's `[runtimes]`, come first.

Source: core/runtime/v2/{binary,shim_manager}.go and pkg/shim/util.go of containerd.
"""

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from orlop.api.runtime.task.v2 import shim_pb2
from orlop.api.types import introspection_pb2
from orlop.base import failpoints
from orlop.base.errdefs import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnknownError,
)
from orlop.core.runtime.bundle import Bootstrap, Bundle

# Between the service manager and this daemon; whoever inherits it would speak in the daemon's name.
OUR_OWN: Final = frozenset({"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID"})
SUPERVISOR: Final = "containerd-shim-orlop-v1"
SUPERVISOR_NAMES: Final = frozenset({"io.containerd.runc.v2", "io.containerd.orlop.v1"})
START_TIMEOUT_S: Final = 30.0
DELETE_TIMEOUT_S: Final = 30.0
INFO_TIMEOUT_S: Final = 10.0
MAX_OUTPUT: Final = 1 << 20
"""Bytes that a shim's program may print on either of its outputs."""
# The newest shim protocol that we speak; a shim that knows this variable answers with JSON.
MAX_SHIM_VERSION: Final = 3
_UNRESOLVED: Final = "failed to start shim: failed to resolve runtime path"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShimBinary:
    """A program that starts shims; `groups` is true for ours, which serves all containers of a namespace."""

    path: Path
    groups: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ShimHost:
    """What a shim is told of the daemon that starts it. `state` is where our supervisor keeps its sockets.

    `early_deletion`: ours answers a deletion before the OCI runtime has done its part.
    """

    state: str
    address: str
    ttrpc_address: str
    publish_binary: str
    debug: bool = False
    early_deletion: bool = True


def supervisor_path() -> Path:
    """Our supervisor: beside the running interpreter's scripts, else on PATH.

    Raises:
        NotFoundError: it is not installed.
    """
    beside = Path(sys.executable).parent / SUPERVISOR
    if beside.exists():
        return beside
    found = shutil.which(SUPERVISOR)
    if found is None:
        raise NotFoundError(f"shim {SUPERVISOR}", hint="install the package orlop so that its scripts are on PATH")
    return Path(found)


def newest(binary: ShimBinary) -> ShimBinary:
    """Our own supervisor instead of one of another release, wherever that lay; a foreign shim as it is."""
    if binary.groups:
        with contextlib.suppress(NotFoundError):
            return ShimBinary(path=supervisor_path(), groups=True)
    return binary


def resolve(runtime: str, mapped: Mapping[str, str]) -> ShimBinary:
    """The shim for a runtime name or path.

    Raises:
        UnknownError: neither a name of the form `io.containerd.runc.v2` nor an absolute path, or there is no such
            program; the text says what was looked for. The class is containerd's: clients take NotFoundError on
            creating a task for "no such container".
    """
    if runtime in mapped:
        return _at(Path(mapped[runtime]), f'runtime "{runtime}", mapped in the configuration')
    if runtime in SUPERVISOR_NAMES:
        return ShimBinary(path=supervisor_path(), groups=True)
    if runtime.startswith("/"):
        return _at(Path(runtime), "invalid custom binary path")
    parts = runtime.split(".")
    if "/" in runtime or len(parts) < 2 or not all(parts):
        raise UnknownError(
            f"{_UNRESOLVED}: invalid runtime name {runtime}, correct runtime name should be either"
            " format like `io.containerd.runc.v2` or a full path to the binary"
        )
    name = f"containerd-shim-{parts[-2]}-{parts[-1]}"
    found = shutil.which(name)
    if found is None:
        raise UnknownError(f'{_UNRESOLVED}: runtime "{runtime}" binary not installed "{name}": file does not exist')
    return ShimBinary(path=Path(found), groups=name == SUPERVISOR)


async def start(binary: ShimBinary, host: ShimHost, bundle: Bundle, options: bytes) -> Bootstrap:
    """Start a shim for `bundle`, or be told of the running one that serves it too.

    Args:
        options: serialised Any of the runtime's options, for the shim's standard input.

    Raises:
        UnknownError: the program cannot be run; the class is containerd's.
        InternalError: it failed, or is no shim; its output is quoted.
        DeadlineExceededError: it took longer than START_TIMEOUT_S.
    """
    arguments = ["-namespace", bundle.namespace, "-address", host.address, "-publish-binary", host.publish_binary]
    arguments += ["-id", bundle.id, *(["-debug"] if host.debug else []), "start"]
    output = await _run(binary.path, arguments, host, bundle, options, START_TIMEOUT_S, phase="start")
    try:
        return Bootstrap.parse(output)
    except InvalidArgumentError as error:
        raise InternalError(f'task "{bundle.id}": start shim {binary.path}: {error.text}') from error


async def delete(binary: ShimBinary, host: ShimHost, bundle: Bundle) -> shim_pb2.DeleteResponse:
    """Let the shim's program clean up after a shim of `bundle` that is dead: kill, unmount, remove runtime state.

    Raises:
        InternalError, DeadlineExceededError: see `start`.
    """
    arguments = ["-namespace", bundle.namespace, "-address", host.address, "-publish-binary", host.publish_binary]
    arguments += ["-id", bundle.id, "-bundle", os.fspath(bundle.path), "delete"]
    output = await _run(binary.path, arguments, host, bundle, b"", DELETE_TIMEOUT_S, phase="clean up after")
    return shim_pb2.DeleteResponse.FromString(output)


async def resume(binary: ShimBinary, host: ShimHost, namespace: str) -> list[Bootstrap]:
    """Have supervisors of ours go on that were killed when they held no task, and had containers still to remove.

    Returns:
        How those are reached.

    Raises:
        InternalError, DeadlineExceededError: see `start`.
    """
    what = f'namespace "{namespace}": resume supervisors by {binary.path}'
    arguments = ["-namespace", namespace, "-address", host.address, "-publish-binary", host.publish_binary]
    arguments += [*(["-debug"] if host.debug else []), "resume"]
    environment = _environment(host, namespace)
    output = await _answer(what, binary.path, arguments, None, environment, b"", START_TIMEOUT_S)
    try:
        return [Bootstrap.parse(line) for line in output.splitlines()]
    except InvalidArgumentError as error:
        raise InternalError(f"{what}: {error.text}") from error


async def info(binary: ShimBinary, options: bytes) -> introspection_pb2.RuntimeInfo:
    """What a shim's program says of itself and of the OCI runtime below it.

    Args:
        options: serialised Any of the runtime's options, for the program's standard input.

    Raises:
        InternalError: the program cannot be run, fails, or answers something else; its output is quoted.
        DeadlineExceededError: it took longer than INFO_TIMEOUT_S.
    """
    what = f"info of shim {binary.path}"
    environment = {name: value for name, value in os.environ.items() if name not in OUR_OWN}
    output = await _answer(what, binary.path, ["-info"], None, environment, options, INFO_TIMEOUT_S)
    try:
        return introspection_pb2.RuntimeInfo.FromString(output)
    except DecodeError as error:
        raise InternalError(f"{what}: its answer is no RuntimeInfo: {error}") from error


def _at(path: Path, what: str) -> ShimBinary:
    if not path.exists():
        raise UnknownError(f"{_UNRESOLVED}: {what}: stat {path}: no such file or directory")
    return ShimBinary(path=path, groups=path.name == SUPERVISOR)


async def _run(
    program: Path,
    arguments: Sequence[str],
    host: ShimHost,
    bundle: Bundle,
    stdin: bytes,
    timeout_s: float,
    *,
    phase: str,
) -> bytes:
    what = f'task "{bundle.id}": {phase} shim {program}'
    return await _answer(what, program, arguments, bundle.path, _environment(host, bundle.namespace), stdin, timeout_s)


def _environment(host: ShimHost, namespace: str) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if name not in OUR_OWN},
        "TTRPC_ADDRESS": host.ttrpc_address,
        "GRPC_ADDRESS": host.address,
        "NAMESPACE": namespace,
        "ORLOP_STATE": host.state,
        "ORLOP_EARLY_DELETION": "1" if host.early_deletion else "0",
        "MAX_SHIM_VERSION": str(MAX_SHIM_VERSION),
        "GOMAXPROCS": os.environ.get("GOMAXPROCS", "2"),
    }


async def _answer(
    what: str,
    program: Path,
    arguments: Sequence[str],
    directory: Path | None,
    environment: Mapping[str, str],
    stdin: bytes,
    timeout_s: float,
) -> bytes:
    """Run a shim's program to its end; its standard output."""
    try:
        failpoints.reach("task.shim.spawning")
        process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            cwd=directory,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise UnknownError(f"{what}: {error.strerror}") from error
    failpoints.reach("task.shim.spawned")
    try:
        async with asyncio.timeout(timeout_s):
            output, errors = await _exchange(process, stdin)
    except TimeoutError as error:
        raise DeadlineExceededError(f"{what}: no answer within {timeout_s:g} s") from error
    finally:
        if process.returncode is None:
            await _end(process)
    if max(len(output), len(errors)) > MAX_OUTPUT:
        raise InternalError(f"{what}: it prints more than {MAX_OUTPUT} bytes")
    if process.returncode != 0:
        words = (errors + output).decode(errors="replace").strip()[-2000:]
        raise InternalError(f"{what}: exit status {process.returncode}: {words or 'no output'}")
    failpoints.reach("task.shim.answered")
    return output


async def _exchange(process: asyncio.subprocess.Process, stdin: bytes) -> tuple[bytes, bytes]:
    """As `communicate`, but a program that prints and prints is killed; of what it says a little more than allowed."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it need not read
        process.stdin.write(stdin)
        await process.stdin.drain()
    process.stdin.close()
    output, errors = await asyncio.gather(_bounded(process, process.stdout), _bounded(process, process.stderr))
    await process.wait()
    return output, errors


async def _bounded(process: asyncio.subprocess.Process, stream: asyncio.StreamReader | None) -> bytes:
    assert stream is not None
    found = bytearray()
    while piece := await stream.read(1 << 16):
        if len(found) > MAX_OUTPUT:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            continue
        found += piece
    return bytes(found)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left, and read what it has said, or its pipes would stay open."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    with contextlib.suppress(TimeoutError):  # a grandchild may hold them
        async with asyncio.timeout(1):
            for stream in (process.stdout, process.stderr):
                while stream is not None and await stream.read(1 << 16):
                    pass
    await process.wait()
