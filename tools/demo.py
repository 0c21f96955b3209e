"""Show the main job on real input: `make demo`.

Two images made from Debian packages go to a real registry on loopback; a fresh orlopd pulls them, keeps tenants apart,
runs containers, loses its process to SIGKILL and goes on; Debian's own Go `ctr` drives it too; and a ten-line Python
program does the same with no daemon. Each command is printed as one would type it, with its output. A command that
ends otherwise than the story says ends the demo with status 1.

On a host that forbids mounts or Linux namespaces the distribution half is shown, and what the host forbids is said.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tools import daemons, host, images, peers, residue
from tools.daemons import BIN, Orlopd, Registry

EXAMPLE: Final = peers.ROOT / "examples" / "in_process.py"
STEP_TIMEOUT_S: Final = 120.0
CONTAINERS: Final = frozenset({"hello", "answer", "seven", "typo", "web", "go-client"})


class DemoError(Exception):
    """The story went otherwise than told."""


class Terminal:
    """Prints commands and what they say, and checks how they end."""

    def __init__(self, address: Path) -> None:
        # our programs first, so that `ctr` is ours; Debian's has its path written out
        path = f"{BIN}:{daemons.environment()['PATH']}"
        self.env = daemons.environment({"CONTAINERD_ADDRESS": os.fspath(address), "PATH": path})
        self.style = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")

    def title(self, text: str) -> None:
        print(f"\n{self.style[0]}== {text}{self.style[1]}", flush=True)

    def say(self, text: str) -> None:
        print(f"# {text}", flush=True)

    def run(
        self,
        command: str,
        *,
        status: int | None = 0,
        expect: str | None = None,
        env: Mapping[str, str] | None = None,
        program: Path | None = None,
        lines: int | None = None,
    ) -> str:
        """Run a command line of plain words and quotes.

        Args:
            status: the exit status that the story says; None takes any but 0.
            expect: text that must be in the output.
            env: variables written before the command.
            program: what really runs as the first word.
            lines: print only so many lines of the output.

        Raises:
            DemoError: it ended otherwise.
        """
        prefix = "".join(f"{name}={value} " for name, value in (env or {}).items())
        print(f"{self.style[0]}$ {prefix}{command}{self.style[1]}", flush=True)
        words = shlex.split(command)
        found = program or Path(shutil.which(words[0], path=self.env["PATH"]) or words[0])
        output, ended = self._pass_through([os.fspath(found), *words[1:]], {**self.env, **(env or {})}, lines)
        if status is None and ended == 0:
            raise DemoError(f"`{command}` succeeded, and should not")
        if status is not None and ended != status:
            raise DemoError(f"`{command}` ended with status {ended}, not {status}")
        if expect is not None and expect not in output:
            raise DemoError(f"`{command}` did not say {expect!r}")
        if ended:
            self.say(f"exit status {ended}")
        return output

    def _pass_through(self, argv: list[str], env: Mapping[str, str], lines: int | None) -> tuple[str, int]:
        output: list[str] = []
        with subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=env,
        ) as process:
            watchdog = threading.Timer(STEP_TIMEOUT_S, process.kill)
            watchdog.start()
            try:
                for line in process.stdout or ():
                    output.append(line)
                    if lines is None or len(output) <= lines:
                        print(line, end="", flush=True)
            finally:
                watchdog.cancel()
        if lines is not None and len(output) > lines:
            print(f"# … {len(output) - lines} lines more")
        return "".join(output), process.returncode


def distribution(terminal: Terminal, registry: Registry, forbidden: str | None) -> None:
    """Pull, list, and keep tenants apart."""
    debian = f"{registry.host}/library/debian:latest"
    terminal.title("Two tenants, one store")
    terminal.run("ctr namespaces create foo mylabel=bar")
    terminal.run("ctr namespaces ls", expect="mylabel=bar")
    if forbidden is None:
        pull, fetched = f"dist pull {debian}", "total:"
    else:
        terminal.say("without mounts nothing can be unpacked here: fetch stores the image and stops there")
        pull, fetched = f"dist fetch {debian}", ""
    terminal.run(pull, expect=fetched)
    terminal.run("dist images ls", expect=debian)
    terminal.say("the other tenant sees nothing of it, and downloads nothing when it pulls the same")
    foo = {"CONTAINERD_NAMESPACE": "foo"}
    terminal.run("dist images ls -q", env=foo)
    terminal.run(pull, env=foo, expect="0.0 B" if forbidden is None else "")
    terminal.run(f"dist images rm {debian}", env=foo)
    terminal.run("ctr namespaces rm foo", expect="foo")
    terminal.run("ctr namespaces rm default", status=None, expect="must be empty")


def containers(terminal: Terminal, registry: Registry, daemon: Orlopd) -> None:
    """A container's life, with our ctr and with Debian's, across the daemon's death."""
    busybox = f"{registry.host}/library/busybox:latest"
    debian = f"{registry.host}/library/debian:latest"
    terminal.title("A container's life")
    terminal.run(f"ctr images pull {busybox}")
    terminal.run(f"ctr run --rm {busybox} hello echo 'hello from a container'", expect="hello from a container")
    terminal.run(f"ctr run --rm {debian} answer python3 -c 'print(6 * 7)'", expect="42")
    terminal.run(f"ctr run --rm {busybox} seven sh -c 'exit 7'", status=7)
    terminal.run(f"ctr run --rm {busybox} typo no-such-command", status=None)
    terminal.run(f"ctr run -d {busybox} web sleep 600")
    terminal.run("ctr tasks ls", expect="RUNNING")
    terminal.run("ctr tasks exec --exec-id one web cat /etc/motd", expect="orlop")
    terminal.run("ctr tasks pause web")
    terminal.run("ctr tasks ls", expect="PAUSED")
    terminal.run("ctr tasks resume web")

    terminal.title("The daemon dies; the container does not")
    print(f"{terminal.style[0]}$ kill -9 {daemon.pid}   # orlopd{terminal.style[1]}")
    daemon.kill()
    start(terminal, daemon)
    terminal.run("ctr tasks ls", expect="RUNNING")
    terminal.run("ctr tasks exec --exec-id two web echo 'still here'", expect="still here")

    terminal.title("Debian's own ctr, unmodified")
    go = daemons.program("ctr")
    shown = os.path.relpath(go, peers.ROOT)
    terminal.run(f"{shown} version", program=go)
    terminal.run(f"{shown} tasks ls", program=go, expect="RUNNING")
    terminal.run(f"{shown} run --rm {debian} go-client perl -e 'print 6 * 7, qq(\\n)'", program=go, expect="42")

    terminal.title("The end of it")
    terminal.run("ctr tasks kill --signal SIGKILL web")
    await_stopped(terminal)
    terminal.run("ctr tasks ls", expect="STOPPED")
    terminal.run("ctr tasks rm web")
    terminal.run("ctr containers rm web")
    terminal.run("ctr containers ls -q")
    terminal.run("ctr snapshots ls", lines=4)


def await_stopped(terminal: Terminal) -> None:
    """Wait until no task runs: kill only sends the signal."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        listed = subprocess.run(["ctr", "tasks", "ls"], env=terminal.env, capture_output=True, text=True, check=False)
        if "RUNNING" not in listed.stdout:
            return
        time.sleep(0.05)
    raise DemoError("the killed task is still listed as running after 10 s")


def in_process(terminal: Terminal, directory: Path) -> None:
    """The same without a daemon: a Python program holds the engine."""
    terminal.title("No daemon: the engine inside a Python program")
    print(EXAMPLE.read_text())
    archive = images.image("busybox").archive
    places = f"{directory}/engine/root {directory}/engine/state"
    terminal.run(f"python {EXAMPLE} {archive} {places}", expect="hello from a Python program")


def push(terminal: Terminal, registry: Registry) -> None:
    terminal.title("Two images from Debian packages, in a real registry")
    for name in ("busybox", "debian"):
        built = images.image(name)
        packed, unpacked = built.archive.stat().st_size / 1e6, built.unpacked_bytes / 1e6
        reference = registry.push(built, f"library/{name}")
        terminal.say(f"{reference}: {built.files} files, {unpacked:.0f} MB ({packed:.0f} MB packed), by skopeo")


def start(terminal: Terminal, daemon: Orlopd) -> None:
    command = " ".join(str(part) for part in daemon.command())
    print(f"{terminal.style[0]}$ {command.replace(str(BIN) + '/', '')} &{terminal.style[1]}", flush=True)
    began = time.monotonic()
    daemon.start()
    terminal.say(f"ready after {(time.monotonic() - began) * 1000:.0f} ms")


def story(directory: Path) -> None:
    forbidden = host.forbids_root_tests()
    daemon = Orlopd(directory / "orlopd")
    terminal = Terminal(daemon.address)
    if forbidden:
        terminal.say(f"{forbidden}; so only the distribution half is shown")
    with Registry(directory / "registry") as registry:
        push(terminal, registry)
        terminal.title("A fresh orlopd")
        try:
            start(terminal, daemon)
            terminal.run("ctr version")
            terminal.run("ctr plugins ls")
            if forbidden is not None:
                terminal.say("what cannot work here is skipped, and says why")
                terminal.run("ctr plugins ls --detailed id==overlayfs")
            distribution(terminal, registry, forbidden)
            if forbidden is None:
                containers(terminal, registry, daemon)
                in_process(terminal, directory)
            terminal.title("SIGTERM")
            status = daemon.stop()
            terminal.say(f"orlopd ended with status {status}")
        finally:
            daemon.close()


def main() -> int:
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="orlop-demo."))
    cgroups = residue.cgroups()
    try:
        story(directory)
        left = residue.settle(directory, cgroups_before=cgroups)
        # on a busy host somebody else's containers come and go meanwhile
        left.cgroups = [path for path in left.cgroups if os.path.basename(path) in CONTAINERS]
        if left:
            raise DemoError(f"left behind:\n{left}")
    except (DemoError, daemons.DaemonError, daemons.Missing, peers.PeerError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    finally:
        residue.remove(residue.find(directory))
        shutil.rmtree(directory, ignore_errors=True)
    print(f"\nNothing is left: no mount, no process, no cgroup. {time.monotonic() - began:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
