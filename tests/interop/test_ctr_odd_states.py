"""Killing and deleting tasks through `ctr` in every state: Debian's on containerd and on orlopd, and ours on orlopd.

Compared are the exit status, the class of the error and what is left. Each row begins with a container of its own.
"""

import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from orlop.base.errdefs import NotFoundError, OrlopError
from orlop.client.io import NullIO
from orlop.client.spec import SpecOptions
from orlop.client.sync import Client
from tools.daemons import Ctr, Engine
from tools.images import Image

pytestmark = [pytest.mark.root, pytest.mark.interop]

# A shell that ends with 7 when it is asked to.
ASKED = ("sh", "-c", 'trap "exit 7" TERM; while :; do sleep 0.05; done')
TERM = 1 << 14  # in SigCgt of /proc/PID/status

KILLS = ("kill one", "kill --all -s KILL one", "kill --exec-id e1 one")
DELETES = ("rm one", "rm --force one", "rm --force --exec-id e1 one")
ACTIONS = {
    "no task": ("kill one", "rm one", "rm --force one"),
    "created": (*KILLS, *DELETES),
    "running": (*KILLS, *DELETES),
    "paused": ("kill -s KILL one", "kill --all -s KILL one", "rm one", "rm --force one"),
    "stopped": (*KILLS, *DELETES),
    "with a process": ("kill -s KILL one", "kill -s KILL --exec-id e1 one", "rm --exec-id e1 one", *DELETES),
    "with a stopped process": ("kill --exec-id e1 one", "rm --exec-id e1 one", "rm --force --exec-id e1 one"),
    "runtime broken": ("kill -s KILL one", "rm one", "rm --force one"),
    "stopped, runtime broken": ("kill -s KILL one", "rm one", "rm --force one"),
}

NO_NEED = "the runtime is not needed to end a process, and not for what is left of one that has ended"
# What differs, by state and action; of Debian's ctr on orlopd, and of ours.
DIFFERENCES: dict[tuple[str, str], str] = {
    ("runtime broken", "kill -s KILL one"): NO_NEED,
    ("runtime broken", "rm --force one"): NO_NEED,
    ("stopped, runtime broken", "kill -s KILL one"): NO_NEED,
    ("stopped, runtime broken", "rm one"): NO_NEED,
    ("stopped, runtime broken", "rm --force one"): NO_NEED,
}
OUR_DIFFERENCES: dict[tuple[str, str], str] = {**DIFFERENCES}
# Debian's ctr since 1.7 sends the signal to all, which is refused for a process beside init, and gives up.
SINCE_1_7 = {("with a process", "rm --force --exec-id e1 one")}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a row gave."""

    status: int
    error: str
    left: str


@dataclass(frozen=True, slots=True)
class Stand:
    """A `ctr` on a daemon, and the runtime that can be broken."""

    ctr: Ctr
    client: Client
    image: str
    runtime: Path

    @property
    def broken(self) -> Path:
        return self.runtime.with_name("broken")

    def outcomes(self, state: str) -> dict[str, Outcome]:
        return {action: self.outcome(state, action) for action in ACTIONS[state]}

    def outcome(self, state: str, action: str) -> Outcome:
        try:
            self._prepare(state)
            done = self.ctr.run("tasks", *shlex.split(action))
            self._settle(state, action)
            return Outcome(done.returncode, _class_of(done.stderr) if done.returncode else "", self._left())
        finally:
            self.broken.unlink(missing_ok=True)
            self._clean()

    def _prepare(self, state: str) -> None:
        if state in ("no task", "created"):
            container = self.client.new_container("one", self.image, SpecOptions(args=ASKED))
            if state == "created":
                container.new_task(NullIO()).detach()
            return
        binary = ("--runc-binary", self.runtime) if "broken" in state else ()
        self.ctr("run", "--detach", "--null-io", *binary, self.image, "one", *ASKED)
        task = self.client.task("one")
        _until(lambda: _catches(task.pid, TERM))
        if "process" in state:
            ended = ("true",) if "stopped" in state else ASKED
            container = self.client.containers.get("one")
            task.exec("e1", container.exec_spec(ended), io=NullIO()).start()
            if "stopped" in state:
                _until(lambda: self._status("e1") == "STOPPED")
        if state == "paused":
            self.ctr("tasks", "pause", "one")
        if state.startswith("stopped"):
            self.ctr("tasks", "kill", "-s", "KILL", "one")
            _until(lambda: self._status() == "STOPPED")
        if "broken" in state:
            self.broken.touch()

    def _settle(self, state: str, action: str) -> None:
        """Wait for the end that a signal brings some time later."""
        exec_id = "e1" if "--exec-id" in action else ""
        if not action.startswith("kill") or "broken" in state or (exec_id and "process" not in state):
            return
        _until(lambda: self._status(exec_id) not in ("RUNNING", "CREATED", "PAUSED"))

    def _left(self) -> str:
        return f"{self._status()}, {self._status('e1')}"

    def _status(self, exec_id: str = "") -> str:
        try:
            task = self.client.task("one")
            return str((task.process(exec_id) if exec_id else task).state().status)
        except NotFoundError:
            return "none"

    def _clean(self) -> None:
        for step in (lambda: self.client.task("one").resume(), lambda: self.client.task("one").delete(force=True)):
            try:
                step()
            except OrlopError:
                continue
        try:
            self.client.containers.get("one").delete()
        except NotFoundError:
            return


def _class_of(errors: str) -> str:
    """The class at the end of an error's text; the last line of ctr's."""
    lines = [line for line in errors.splitlines() if line.strip() and not line.strip().startswith("hint:")]
    last = lines[-1] if lines else ""
    found = re.search(r"(not found|already exists|failed precondition|invalid argument|unavailable)\"?$", last)
    return found[1] if found else "unknown"


def _catches(pid: int, mask: int) -> bool:
    words = Path(f"/proc/{pid}/status").read_text().split()
    return bool(int(words[words.index("SigCgt:") + 1], 16) & mask)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def stands(
    containerd: Engine,
    orlopd: Engine,
    go_ctr: Callable[..., Ctr],
    our_ctr: Callable[..., Ctr],
    busybox_image: Image,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Stand]]:
    made = {}
    runc = shutil.which("runc")
    for who, daemon, bind in (
        ("containerd", containerd, go_ctr),
        ("orlopd", orlopd, go_ctr),
        ("ours", orlopd, our_ctr),
    ):
        runtime = tmp_path_factory.mktemp(who) / "runc"
        broken = runtime.with_name("broken")
        runtime.write_text(f'#!/bin/sh\n[ -e "{broken}" ] && {{ echo it is broken >&2; exit 1; }}\nexec {runc} "$@"\n')
        runtime.chmod(0o755)
        ctr = bind(daemon, f"odd-{who}")
        ctr("images", "import", busybox_image.archive)
        made[who] = Stand(ctr, Client(str(daemon.address), ctr.namespace), busybox_image.reference, runtime)
    yield made
    for stand in made.values():
        # What a broken runtime could not remove is removed before the next container of that name.
        stand.ctr("run", "--rm", "--null-io", busybox_image.reference, "one", "true")
        stand.ctr("images", "rm", "--sync", busybox_image.reference)
        stand.client.close()


@pytest.mark.parametrize("state", ACTIONS)
def test_every_action(state: str, stands: dict[str, Stand]) -> None:
    with ThreadPoolExecutor(len(stands)) as pool:
        rows = {who: pool.submit(stand.outcomes, state) for who, stand in stands.items()}
    found = {who: row.result() for who, row in rows.items()}
    problems = []
    for who, known in (("orlopd", DIFFERENCES), ("ours", OUR_DIFFERENCES)):
        for action, theirs in found["containerd"].items():
            ours = found[who][action]
            if who == "ours" and (state, action) in SINCE_1_7 and theirs.error == "failed precondition":
                continue
            if (theirs == ours) is ((state, action) in known):
                problems.append(f"{who}: {state}: {action}: containerd {theirs}, here {ours}")
    assert not problems, "\n".join(problems)
