"""Driving an OCI runtime (runc, crun or an equal) by its command line.

Every call is a child process that the reaper waits for; a call that fails raises `RuntimeFailedError`, which quotes the
runtime's own words from its JSON log or its stderr. The state of the runtime lies at `<root>` (namespace included).
"""

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from orlop.base.errdefs import DeadlineExceededError, NotFoundError, OrlopError, UnknownError
from orlop.core.mount import disk
from orlop.shim.reaper import Reaper
from orlop.shim.spawn import DEVNULL, spawn

LIMIT_VARIABLE = "ORLOP_RUNTIME_LIMIT"
CALL_LIMIT_S = 90.0  # below the daemon's patience with us
# Undoing must end soon: whoever waits has been waiting already.
UNDO_LIMIT_S = 10.0
_QUOTE_LIMIT = 16 << 10
_ANSWER_LIMIT = 1 << 20
# For the state of one container.
_ENOUGH_BYTES = 64 << 10
# Where a client names a program without a path and the supervisor was started with a bare environment.
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class RuntimeFailedError(UnknownError):
    """The OCI runtime said no. `reason` is what it said; the code is UNKNOWN, as containerd-shim-runc-v2 answers.

    Attributes:
        phase: what was asked of it: create, start, exec, …
    """

    def __init__(self, phase: str, container: str, reason: str) -> None:
        super().__init__(f'OCI runtime {phase} failed: container "{container}": {reason}')
        self.phase = phase
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Stdio:
    """Descriptors that become the process's 0, 1 and 2."""

    stdin: int = DEVNULL
    stdout: int = DEVNULL
    stderr: int = DEVNULL


class Runtime:
    """One runtime program with one state root.

    Args:
        command: absolute path of the program.
        root: its state directory for this namespace.
        systemd_cgroup: cgroups are made by asking systemd.
    """

    def __init__(self, reaper: Reaper, *, command: str, root: str, systemd_cgroup: bool = False) -> None:
        self._reaper = reaper
        self.command = command
        self.name = os.path.basename(command)
        self.root = root
        self.systemd_cgroup = systemd_cgroup
        self._limit_s = float(os.environ.get(LIMIT_VARIABLE) or CALL_LIMIT_S)

    async def create(
        self,
        container: str,
        *,
        bundle: str,
        pid_file: str,
        stdio: Stdio,
        console_socket: str = "",
        no_pivot: bool = False,
        no_new_keyring: bool = False,
    ) -> None:
        """Make the container; its init waits to be started. Its pid is in `pid_file`."""
        args = ["create", "--bundle", bundle, "--pid-file", pid_file]
        if console_socket:
            args += ["--console-socket", console_socket]
        if no_pivot:
            args.append("--no-pivot")
        if no_new_keyring:
            args.append("--no-new-keyring")
        await self._call("create", container, [*args, container], bundle, stdio)

    async def start(self, container: str, *, bundle: str) -> None:
        """Let init run the user's program."""
        await self._call("start", container, ["start", container], bundle)

    async def exec(
        self,
        container: str,
        *,
        bundle: str,
        process_file: str,
        pid_file: str,
        stdio: Stdio,
        console_socket: str = "",
    ) -> None:
        """Run one more process; when this returns it runs, or has already ended. Its pid is in `pid_file`."""
        args = ["exec", "--process", process_file, "--pid-file", pid_file, "--detach"]
        if console_socket:
            args += ["--console-socket", console_socket]
        await self._call("exec", container, [*args, container], bundle, stdio)

    async def delete(
        self, container: str, *, bundle: str, force: bool = False, limit_s: float = 0, log: str = "log.json"
    ) -> None:
        """Remove the runtime's state and the cgroup; one that is not there is success.

        Args:
            log: the log's name in `bundle`, for a bundle that serves several containers.
        """
        args = ["delete", "--force", container] if force else ["delete", container]
        try:
            await self._call("delete", container, args, bundle, limit_s=limit_s, log=log)
        except RuntimeFailedError as error:
            if "does not exist" not in error.reason:
                raise

    async def kill(self, container: str, signum: int, *, bundle: str, everyone: bool = False) -> None:
        """Signal init, or every process of the container."""
        args = ["kill", "--all"] if everyone else ["kill"]
        await self._call("kill", container, [*args, container, str(signum)], bundle)

    async def status(self, container: str, *, bundle: str) -> str:
        """The container's state in the runtime's word: created, running, paused or stopped; empty if it knows none."""
        try:
            data = await self._ask("state", container, ["state", container], bundle)
            return str(json.loads(data).get("status", ""))
        except (RuntimeFailedError, ValueError):
            return ""

    async def require_mapped_mounts(self, container: str, *, bundle: str) -> None:
        """Raises UnknownError if the runtime does not map the ids of mounts, or does not say what it can do."""
        try:
            features = json.loads(await self._ask("features", container, ["features"], bundle))
            extensions = features["linux"]["mountExtensions"]
            able = bool(extensions["idmap"]["enabled"])
        except (ValueError, KeyError, TypeError):
            able = False
        if not able:
            # containerd's words
            raise UnknownError("failed to validate OCI runtime features: idmap mounts not supported on runtime")

    async def pause(self, container: str, *, bundle: str) -> None:
        await self._call("pause", container, ["pause", container], bundle)

    async def resume(self, container: str, *, bundle: str) -> None:
        await self._call("resume", container, ["resume", container], bundle)

    async def update(self, container: str, *, bundle: str, resources_file: str) -> None:
        """Set resources, as JSON of the runtime-spec's LinuxResources in `resources_file`."""
        await self._call("update", container, ["update", "--resources", resources_file, container], bundle)

    async def checkpoint(self, container: str, args: Sequence[str], *, bundle: str) -> None:
        """Dump the container with CRIU; `args` are the runtime's options. As long as it takes."""
        await self._call("checkpoint", container, ["checkpoint", *args, container], bundle, limit_s=None)

    async def restore(
        self,
        container: str,
        args: Sequence[str],
        *,
        bundle: str,
        pid_file: str,
        stdio: Stdio,
        console_socket: str = "",
    ) -> None:
        """Bring a checkpointed container back, running. As long as it takes."""
        fixed = ["restore", "--bundle", bundle, "--pid-file", pid_file, "--detach", "--no-subreaper"]
        if console_socket:
            fixed += ["--console-socket", console_socket]
        await self._call("restore", container, [*fixed, *args, container], bundle, stdio, limit_s=None)

    async def _ask(self, phase: str, container: str, args: Sequence[str], bundle: str) -> bytes:
        """What a call has written to stdout, as far as is reasonable."""
        output = os.memfd_create("stdout", os.MFD_CLOEXEC)
        try:
            await self._call(phase, container, args, bundle, Stdio(stdout=output))
            return os.pread(output, _ANSWER_LIMIT, 0)
        finally:
            os.close(output)

    async def _call(
        self,
        phase: str,
        container: str,
        args: Sequence[str],
        bundle: str,
        stdio: Stdio | None = None,
        limit_s: float | None = 0,
        log: str = "log.json",
    ) -> None:
        """Run the program to its end, at most `limit_s`: 0 is the usual limit or less, None is none."""
        if limit_s is not None:
            limit_s = min(limit_s or self._limit_s, self._limit_s)
        log = os.path.join(bundle, log)
        start_of_log = _size(log)
        argv = [self.command, "--root", self.root, "--log", log, "--log-format", "json"]
        if self.systemd_cgroup:
            argv.append("--systemd-cgroup")
        stderr = DEVNULL if stdio is not None else os.memfd_create("stderr", os.MFD_CLOEXEC)
        try:
            status = await self._run([*argv, *args], stdio or Stdio(stderr=stderr), limit_s)
            if status != 0:
                reason = _last_error(log, start_of_log) or _last_lines(stderr) or _how_it_ended(self.command, status)
                raise RuntimeFailedError(phase, container, reason + _where_full(bundle, self.root))
        except TimeoutError as error:
            text = f'OCI runtime {phase}: container "{container}": no answer from {self.command} within {limit_s:g} s'
            raise DeadlineExceededError(text) from error
        except OSError as error:
            raise RuntimeFailedError(phase, container, f"{self.command} cannot be run: {error.strerror}") from error
        finally:
            if stdio is None:
                os.close(stderr)

    async def _run(self, argv: Sequence[str], stdio: Stdio, limit_s: float | None) -> int:
        """Run to the end; when given up it is killed, and has ended when this raises."""
        # runc would tell the service manager of its own container, and wait 100 ms for the answer at each start.
        env = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        pid = spawn(argv, env=env, stdin=stdio.stdin, stdout=stdio.stdout, stderr=stdio.stderr)
        ended = self._reaper.future(pid)
        try:
            async with asyncio.timeout(limit_s):
                return (await asyncio.shield(ended)).status
        except (TimeoutError, asyncio.CancelledError):
            if not ended.done():
                os.kill(pid, signal.SIGKILL)
            while not ended.done():
                try:
                    await asyncio.wait([ended])
                except asyncio.CancelledError:
                    continue  # a killed child ends soon; leaving earlier would undo its work beside it
            raise


def kill_error(error: RuntimeFailedError | DeadlineExceededError) -> OrlopError:
    """In containerd's words. Source: checkKillError in its runc shim."""
    if isinstance(error, DeadlineExceededError):
        return error
    reason = error.reason.lower()
    if any(text in reason for text in ("process already finished", "container not running", "no such process")):
        return NotFoundError("process already finished")
    if "does not exist" in reason:
        return NotFoundError("no such container")
    return error


def find_program(name: str) -> str:
    """The absolute path of an executable, looked up on PATH as a shell would; empty if there is none."""
    if os.path.isabs(name):
        return name if os.access(name, os.X_OK) else ""
    if "/" in name:
        return ""
    for directory in (os.environ.get("PATH") or _DEFAULT_PATH).split(":"):
        path = os.path.join(directory or ".", name)
        if os.path.isabs(path) and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return ""


def read_pid_file(path: str) -> int:
    """The pid that a runtime has written.

    Raises:
        UnknownError: it has written none.
    """
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError) as error:
        raise UnknownError(f"the OCI runtime's pid file {path}: {error}") from error


def _where_full(*places: str) -> str:
    """Which file systems of these have no space left: runtimes do not say so where they cannot write their state."""
    full = {disk.mount_point(place) for place in places if _is_full(place)}
    return "".join(f"; no space left on the file system at {one}" for one in sorted(full))


def _is_full(place: str) -> bool:
    """By trying: file systems keep some of what they show as free to themselves."""
    try:
        fd = os.open(place, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _ENOUGH_BYTES)
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno in disk.FULL
    return False


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _last_error(log: str, start: int) -> str:
    """What the runtime has complained of last in the part of its log that begins at `start`."""
    try:
        with open(log, "rb") as file:
            file.seek(max(start, os.fstat(file.fileno()).st_size - _QUOTE_LIMIT))
            lines = file.read().splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal", "panic"):
            return str(entry.get("msg", "")).strip()
    return ""


def _last_lines(fd: int) -> str:
    if fd < 0:
        return ""
    size = os.fstat(fd).st_size
    return os.pread(fd, 2048, max(0, size - 2048)).decode("utf-8", "replace").strip()


def _how_it_ended(command: str, status: int) -> str:
    if status > 128:
        return f"{command} was killed by signal {status - 128}"
    return f"{command} ended with status {status} and said nothing"
