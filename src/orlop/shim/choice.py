"""Which OCI runtime runs a container: the client's word, else the configuration's, else the fastest that works here.

crun starts containers in less than half of runc's time, but refuses hybrid cgroup hosts and spec versions newer than
itself. So it is tried, once per boot and version, on a container that ends at once. What came out is logged and lies in
`<state>/runtime.json` for everybody to read:

    {"boot": …, "chosen": "/usr/sbin/runc", "why": "…", "tried": {"/usr/bin/crun": {"stamp": …, "failure": "…"}}}
"""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from orlop.base import failpoints
from orlop.base.errdefs import NotFoundError, OrlopError
from orlop.shim import elf
from orlop.shim.options import Options
from orlop.shim.paths import Place
from orlop.shim.reaper import Reaper, boot_id, start_time
from orlop.shim.runtime import Runtime, Stdio, find_program
from orlop.shim.trees import remove_tree

RUNTIME_VARIABLE: Final = "ORLOP_RUNTIME"
# Fastest first. The last one is what everything was made for, and is taken untried.
CANDIDATES: Final = ("crun", "runc")

TRIAL: Final = "orlop-probe-"
"""What the container begins with by which a runtime is tried."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A runtime, and the one to turn to when it does not know a container's spec version."""

    runtime: Runtime
    fallback: Runtime | None = None


class Chooser:
    """Chooses, and remembers what was tried."""

    def __init__(self, reaper: Reaper, place: Place) -> None:
        self._reaper = reaper
        self._place = place
        self._search: asyncio.Task[list[str]] | None = None
        self._default: list[str] = []

    async def choose(self, options: Options) -> Choice:
        """The runtime for a container.

        Raises:
            NotFoundError: the program that the client or the configuration names is not there, or none is.
        """
        name = options.binary or os.environ.get(RUNTIME_VARIABLE, "")
        if name:
            command = find_program(name)
            if not command:
                raise NotFoundError(f'OCI runtime "{name}": no such program', hint="install it, or name another one")
            return Choice(runtime=self._runtime(command, options))
        # Installing another runtime needs no new supervisor, removing one must not stop it.
        if not self._default or not os.access(self._default[0], os.X_OK):
            self._default = await self._searched()
        first, *rest = self._default
        fallback = self._runtime(rest[0], options) if rest else None
        return Choice(runtime=self._runtime(first, options), fallback=fallback)

    def _runtime(self, command: str, options: Options) -> Runtime:
        base = options.root or f"{self._place.state}/{os.path.basename(command)}"
        return Runtime(
            self._reaper,
            command=command,
            root=f"{base}/{self._place.namespace}",
            systemd_cgroup=options.systemd_cgroup,
        )

    async def _searched(self) -> list[str]:
        """One search for all who ask; it ends what it began, also when they give up."""
        if self._search is None:
            self._search = asyncio.get_running_loop().create_task(self._find_default())
            self._search.add_done_callback(self._forget_search)
        return await asyncio.shield(self._search)

    def _forget_search(self, search: "asyncio.Task[list[str]]") -> None:
        self._search = None
        if not search.cancelled():
            search.exception()  # nobody may be left to ask for it

    async def _find_default(self) -> list[str]:
        """Commands that work, the best first."""
        found = [command for command in map(find_program, CANDIDATES) if command]
        if not found:
            raise NotFoundError(f"OCI runtime: neither {' nor '.join(CANDIDATES)} is on PATH", hint="install runc")
        await self._forget_old_trials(found)
        known = self._read()
        tried: dict[str, Any] = {}
        for command in found[:-1]:
            stamp = _stamp(command)
            before = known.get(command, {})
            if before.get("stamp") == stamp:
                tried[command] = before
            else:
                tried[command] = {"stamp": stamp, "failure": await self._try(command)}
        usable = [command for command in found if not tried.get(command, {}).get("failure")]
        verdicts = [f"{command}: {one['failure'] or 'works here'}" for command, one in tried.items()]
        why = "; ".join(verdicts) or "the only one that is installed"
        _log.info("OCI runtime %s (%s)", usable[0], why)
        self._write({"boot": boot_id(), "chosen": usable[0], "why": why, "tried": tried})
        return usable

    async def _try(self, command: str) -> str:
        """Run a container that ends at once; empty if that works, else why it does not."""
        program = elf.quitter()
        if not program:
            return "no program to try it with on this processor"
        name = f"{TRIAL}{os.getpid()}-{start_time(os.getpid())}"
        bundle = f"{self._place.directory}/{name}"
        runtime = Runtime(self._reaper, command=command, root=f"{bundle}/root")
        try:
            _make_bundle(bundle, name, program)
            pid_file = f"{bundle}/pid"
            with self._reaper.expecting():
                await runtime.create(name, bundle=bundle, pid_file=pid_file, stdio=Stdio())
                await runtime.start(name, bundle=bundle)
        except (OSError, OrlopError) as error:
            return getattr(error, "reason", "") or str(error)
        finally:
            failpoints.reach("shim.choice.tried")
            await self._forget_trial([command], name)
        return ""

    async def _forget_trial(self, commands: Sequence[str], name: str) -> None:
        bundle = f"{self._place.directory}/{name}"
        for command in commands:
            runtime = Runtime(self._reaper, command=command, root=f"{bundle}/root")
            with contextlib.suppress(OrlopError):
                await runtime.delete(name, bundle=bundle, force=True)
        remove_tree(bundle)

    async def _forget_old_trials(self, commands: Sequence[str]) -> None:
        """Remove what supervisors have left that were killed while they tried; several may share the directory."""
        for name in os.listdir(self._place.directory):
            if name.startswith(TRIAL) and not _is_alive(name):
                await self._forget_trial(commands, name)

    @property
    def _file(self) -> str:
        return f"{self._place.state}/runtime.json"

    def _read(self) -> dict[str, Any]:
        try:
            with open(self._file, "rb") as file:
                loaded = json.load(file)
            return dict(loaded["tried"]) if loaded["boot"] == boot_id() else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _write(self, document: dict[str, Any]) -> None:
        beside = f"{self._file}.{os.getpid()}"
        try:
            with open(beside, "w", encoding="utf-8") as file:
                json.dump(document, file)
            os.rename(beside, self._file)
            failpoints.reach("shim.choice.written")
        except OSError as error:
            _log.warning("choice of the OCI runtime not written: %s", error)


def _is_alive(name: str) -> bool:
    """Whether the supervisor of a trial lives: pid and start time are in its name."""
    pid, _, started = name.removeprefix(TRIAL).partition("-")
    try:
        os.readlink(f"/proc/{int(pid)}/exe")  # a zombie has none
    except (OSError, ValueError):
        return False
    return started == str(start_time(int(pid)))


def _stamp(command: str) -> str:
    found = os.stat(command)
    return f"{found.st_mtime_ns}.{found.st_size}"


def _make_bundle(bundle: str, name: str, program: bytes) -> None:
    os.makedirs(f"{bundle}/rootfs/proc", mode=0o700)
    fd = os.open(f"{bundle}/rootfs/true", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o755)
    with open(fd, "wb") as file:
        file.write(program)
    document = {
        "ociVersion": "1.0.2",
        "process": {"args": ["/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
            "cgroupsPath": f"/{name}",
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
    }
    with open(f"{bundle}/config.json", "w", encoding="utf-8") as file:
        json.dump(document, file)
