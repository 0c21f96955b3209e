"""Run real daemons for demo, tests and bench: orlopd, Debian's containerd, a registry; and the clients that drive them.

Each daemon lives in one directory (root, state, socket, configuration, log) and leaves nothing outside when closed. It
is a context manager; `kill()` and `start()` in between play a crash.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Final, Self

from tools import peers, residue
from tools.images import Image

BIN: Final = peers.ROOT / ".venv" / "bin"
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 15.0
USER: Final = "orlop"
PASSWORD: Final = "cargo"
# bcrypt of PASSWORD: the registry knows no other kind
HTPASSWD: Final = "orlop:$2y$05$Rx9EYQno5i4zV8.jAtGKZOApZP/MRKsAvAPTUSkv9XTcIagE.5eOS\n"


COLLECT_ON_REQUEST: Final = """
[plugins."io.containerd.gc.v1.scheduler"]
pause_threshold = 0.000001
mutation_threshold = 0
startup_delay = "1h"
"""
"""Configuration, theirs and ours: collections happen when a client asks for one and at no other time."""


class DaemonError(Exception):
    """A daemon did not start, or did not do what was asked; the text ends with the end of its log."""


class Missing(Exception):
    """A program is not there; the text names the command that brings it."""


def program(name: str) -> Path:
    """Find a peer's program.

    Raises:
        Missing: it is not in .peers.
    """
    path = peers.locate(name)
    if path is None:
        raise Missing(f"{name} is not in .peers: run `make setup`")
    return path


def our_program(name: str) -> Path:
    """Find a program that orlop installs.

    Raises:
        Missing: it is not in .venv.
    """
    path = BIN / name
    if not path.exists():
        raise Missing(f"{path} is not there: run `make setup`")
    return path


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A small environment: peers on PATH before the system's programs, nothing that steers containerd or orlop."""
    path = f"{peers.PEERS}/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "LANG", "TERM") if name in os.environ}
    return {"HOME": "/root", **kept, "PATH": path, **(extra or {})}


@cache
def containerd_version() -> tuple[int, int]:
    """Release of the peers' containerd and its shim, such as (1, 6).

    Raises:
        Missing: it is not in .peers.
    """
    shown = _run([program("containerd"), "--version"]).stdout
    found = re.search(r"\b(\d+)\.(\d+)\.\d+", shown)
    if found is None:
        raise DaemonError(f"containerd --version says {shown!r}")
    return int(found[1]), int(found[2])


class Daemon:
    """One daemon process over a directory of its own."""

    name = "daemon"

    def __init__(self, directory: Path, *, env: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.address = directory / f"{self.name}.sock"
        self.log_path = directory / f"{self.name}.log"
        self.env = environment(env)
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str | Path]:
        raise NotImplementedError

    def configure(self) -> None:
        """Write what the command reads."""

    @property
    def pid(self) -> int:
        if self.process is None:
            raise DaemonError(f"{self.name} is not running")
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self) -> None:
        """Start it, and return when it answers on its socket.

        Raises:
            DaemonError: it ended, or did not answer in time.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self.configure()
        deadline = time.monotonic() + START_TIMEOUT_S
        with open(self.log_path, "ab") as log:
            process = self.process = self.spawn(log)
        while not self.answers():
            if process.poll() is not None:
                status, self.process = process.returncode, None
                raise self.error(f"ended with status {status} while starting")
            if time.monotonic() > deadline:
                self.kill()
                raise self.error(f"did not answer within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.01)

    def spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [os.fspath(part) for part in self.command()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=self.env,
            cwd="/",
            process_group=0,  # a Ctrl-C on the terminal is ours to handle, not theirs
        )

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(os.fspath(self.address))
            except OSError:
                return False
        return True

    def stop(self) -> int:
        """Ask it to end (SIGTERM), wait, kill if it does not; its exit status."""
        process, self.process = self.process, None
        if process is None:
            return 0
        process.terminate()
        try:
            return process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise self.error(f"was still there {STOP_TIMEOUT_S:.0f} s after SIGTERM") from None

    def kill(self) -> None:
        """SIGKILL, as the kernel's out-of-memory killer would; its containers go on."""
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def close(self) -> None:
        """End it and take away all that it made."""
        try:
            if self.process is not None and self.process.poll() is None:
                self.end_tasks()
                self.stop()
        finally:
            self.kill()
            residue.remove(residue.find(self.directory))
            shutil.rmtree(self.directory, ignore_errors=True)

    def end_tasks(self) -> None:
        """Remove what runs, through its own door."""

    def error(self, what: str) -> DaemonError:
        tail = "\n".join(self.log.splitlines()[-20:])
        return DaemonError(f"{self.name} {what}; the end of {self.log_path}:\n{tail}")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Engine(Daemon):
    """A daemon that speaks containerd's API: what both engines share."""

    cgroups_before: frozenset[str] | None = None

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    def configure(self) -> None:
        if self.cgroups_before is None:
            self.cgroups_before = residue.cgroups()

    def end_tasks(self) -> None:
        with contextlib.suppress(Missing, subprocess.SubprocessError):
            client = Ctr(program("ctr"), self.address)
            for namespace in client("namespaces", "ls", "-q").split():
                here = client.within(namespace)
                for container in here("tasks", "ls", "-q").split():
                    here("tasks", "rm", "--force", container, check=False)
                self.forget_cgroup(namespace)

    def forget_cgroup(self, namespace: str) -> None:
        """Remove the cgroup in which a namespace's containers had theirs: the OCI runtime makes it and keeps it."""
        for path in residue.cgroups() - (self.cgroups_before or frozenset()):
            if os.path.basename(path) == namespace:
                residue.patiently_rmdir(path)  # that of a task which was just deleted may be in it for a moment


class Containerd(Engine):
    """Debian's containerd, with nothing of Kubernetes."""

    name = "containerd"

    def __init__(
        self, directory: Path, *, config: str = "", off: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> None:
        """`off` are plug-ins to disable beside those of Kubernetes."""
        super().__init__(directory, env=env)
        self.config = config
        self.off = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", *off]

    @property
    def version(self) -> tuple[int, int]:
        """Release, such as (1, 6)."""
        return containerd_version()

    def command(self) -> Sequence[str | Path]:
        return [program("containerd"), "--config", self.directory / "containerd.toml", "--log-level", "info"]

    def configure(self) -> None:
        super().configure()
        text = f"""version = 2
root = "{self.root}"
state = "{self.state}"
disabled_plugins = {json.dumps(self.off)}
oom_score = 0

[grpc]
address = "{self.address}"

[ttrpc]
address = "{self.address}.ttrpc"
{self.config}"""
        (self.directory / "containerd.toml").write_text(text)


class Orlopd(Engine):
    """Our daemon; it tells by sd_notify when it is ready."""

    name = "orlopd"

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        config: str = "",
        door: str = "",
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`door` is who serves gRPC; else ORLOP_TEST_DOOR says so, else orlopd's own default holds."""
        super().__init__(directory, env=env)
        self.arguments = arguments
        door = door or os.environ.get("ORLOP_TEST_DOOR", "")
        self.config = _with_door(config, door) if door else config
        self.notifications: socket.socket | None = None
        self.ready = False

    def command(self) -> Sequence[str | Path]:
        given: list[str | Path] = ["--config", self.directory / "config.toml"] if self.config else []
        places: list[str | Path] = ["--root", self.root, "--state", self.state, "--address", self.address]
        return [our_program("orlopd"), *given, *places, *self.arguments]

    def configure(self) -> None:
        super().configure()
        if self.config:
            (self.directory / "config.toml").write_text(self.config)

    def spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        path = self.directory / "notify.sock"
        path.unlink(missing_ok=True)
        self.forget_notifications()
        self.notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.notifications.bind(os.fspath(path))
        self.notifications.setblocking(False)
        self.ready = False
        self.env["NOTIFY_SOCKET"] = os.fspath(path)
        return super().spawn(log)

    def answers(self) -> bool:
        if self.notifications is not None:
            with contextlib.suppress(BlockingIOError):
                while message := self.notifications.recv(4096):
                    self.ready = self.ready or b"READY=1" in message.splitlines()
        return self.ready and super().answers()

    def forget_notifications(self) -> None:
        if self.notifications is not None:
            self.notifications.close()
            self.notifications = None

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.forget_notifications()


def _with_door(config: str, door: str) -> str:
    line = f'[grpc]\ndoor = "{door}"\n'
    return config.replace("[grpc]\n", line) if "[grpc]\n" in config else f"{config}\n{line}"


class Registry(Daemon):
    """A real registry (distribution) on a loopback port of the system's choice."""

    name = "registry"

    def __init__(self, directory: Path, *, authenticate: bool = False) -> None:
        super().__init__(directory)
        self.authenticate = authenticate
        self.host = ""

    def command(self) -> Sequence[str | Path]:
        return [program("docker-registry"), "serve", self.directory / "registry.yml"]

    def configure(self) -> None:
        text = f"""version: 0.1
log: {{level: info, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {self.directory}/storage}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{self.host.rpartition(":")[2] or 0}"}}
"""
        if self.authenticate:
            (self.directory / "htpasswd").write_text(HTPASSWD)
            text += f"auth: {{htpasswd: {{realm: orlop, path: {self.directory}/htpasswd}}}}\n"
        (self.directory / "registry.yml").write_text(text)
        self.log_path.unlink(missing_ok=True)

    def answers(self) -> bool:
        found = re.search(r"listening on (127\.0\.0\.1:\d+)", self.log)
        if found:
            self.host = found[1]
        return found is not None

    def push(self, image: Image, repository: str | None = None, tag: str = "latest") -> str:
        """Push a built image with skopeo, all platforms and byte for byte; its reference here."""
        name = f"{repository or image.name}:{tag}"
        credentials: list[str | Path] = ["--dest-creds", f"{USER}:{PASSWORD}"] if self.authenticate else []
        command: list[str | Path] = [program("skopeo"), "--insecure-policy", "copy", "--quiet"]
        command += ["--all", "--preserve-digests", "--dest-tls-verify=false", *credentials]
        _run([*command, f"oci:{image.directory}:latest", f"docker://{self.host}/{name}"])
        return f"{self.host}/{name}"


class Ctr:
    """A `ctr`, Debian's or ours, bound to a daemon and a namespace; calling it runs one command."""

    def __init__(self, path: Path, address: Path | str, namespace: str = "default") -> None:
        self.path = path
        self.address = address
        self.namespace = namespace

    def within(self, namespace: str) -> Ctr:
        return Ctr(self.path, self.address, namespace)

    def argv(self, *arguments: str | Path) -> list[str]:
        given: list[str | Path] = [self.path, "--address", self.address, "--namespace", self.namespace, *arguments]
        return [os.fspath(part) for part in given]

    def __call__(self, *arguments: str | Path, check: bool = True, stdin: str = "", timeout_s: float = 60) -> str:
        """Run a command; what it wrote to stdout.

        Raises:
            subprocess.CalledProcessError: it failed and `check` is set; a note has its stderr.
        """
        return self.run(*arguments, check=check, stdin=stdin, timeout_s=timeout_s).stdout

    def run(
        self, *arguments: str | Path, check: bool = False, stdin: str = "", timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; status, stdout and stderr."""
        return _run(self.argv(*arguments), check=check, stdin=stdin, timeout_s=timeout_s)

    def popen(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start a command, with pipes for stdin, stdout and stderr; the caller ends it."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self.argv(*arguments), stdin=pipe, stdout=pipe, stderr=pipe, env=environment())


def _run(
    command: Sequence[str | Path], *, check: bool = True, stdin: str = "", timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            check=check,
            timeout=timeout_s,
            env=environment(),
        )
    except subprocess.CalledProcessError as error:
        error.add_note(f"stdout: {error.stdout}\nstderr: {error.stderr}")
        raise
