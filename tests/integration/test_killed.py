"""The daemon, the supervisor or both are killed again and again while containers write into a FIFO, a file and a
terminal: no container notices, no byte is lost, and everything can be asked right after the restart.
"""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import orlop
from tests.root.shims import Reader, running, supervisors, until
from tools.daemons import Ctr, Orlopd
from tools.images import Image

pytestmark = [pytest.mark.root, pytest.mark.interop]

ROUNDS = 3
# Lines until told to stop, in bursts, so that there is never much to compare; the last one says how many they were.
WRITER = """
while [ ! -e /go ]; do sleep 0.02; done
i=0
while [ ! -e /stop ]; do
    n=0
    while [ $n -lt 100 ]; do echo line $i; i=$((i+1)); n=$((n+1)); done
    sleep 0.005
done
echo end $i
exit 5
"""
# How it is to end is told by a signal, which needs no daemon.
ENDS = "trap 'exit 6' TERM; while :; do sleep 0.02; done"
FLOWS = ("fifo", "file", "tty")


class Stage:
    """A daemon of its own, three containers that write and one that waits to be ended."""

    def __init__(self, daemon: Orlopd, ctr: Ctr, image: Image, directory: Path) -> None:
        self.daemon = daemon
        self.ctr = ctr
        self.directory = directory
        self.terminal = bytearray()
        ctr("images", "import", image.archive)
        start = ("run", "-d")
        where = ("--fifo-dir", str(directory / "fifos"))
        ctr(*start, *where, image.reference, "fifo", "sh", "-c", WRITER)
        ctr(*start, "--log-uri", f"file://{directory}/log", image.reference, "file", "sh", "-c", WRITER)
        ctr(*start, "--null-io", image.reference, "ends", "sh", "-c", ENDS)
        with self.client() as client:
            self.reader = Reader(Path(client.task("fifo").state().streams.stdout))
            container = client.new_container(
                "tty", image.reference, orlop.SpecOptions(args=["sh", "-c", WRITER], tty=True)
            )
            self.pty = orlop.FifoIO(stdout=self.terminal, terminal=True, directory=str(directory / "tty"))
            container.new_task(self.pty).start()
        self.pids = self.tasks()

    def client(self) -> orlop.Client:
        return orlop.Client(str(self.daemon.address), self.ctr.namespace, timeout_s=60)

    def tasks(self) -> dict[str, tuple[str, str]]:
        """What `ctr tasks ls` shows: pid and state by container."""
        rows = [line.split() for line in self.ctr("tasks", "ls").splitlines()[1:]]
        return {name: (pid, state) for name, pid, state in rows}

    def written(self, flow: str) -> bytes:
        if flow == "fifo":
            return bytes(self.reader.data)
        if flow == "file":
            return (self.directory / "log").read_bytes()
        return bytes(self.terminal).replace(b"\r\n", b"\n")

    def flows(self) -> None:
        """Return when each container has written something since this was called."""
        before = {flow: len(self.written(flow)) for flow in FLOWS}
        for flow in FLOWS:
            until(lambda flow=flow: len(self.written(flow)) > before[flow], f"{flow} writes no more")  # type: ignore[misc]

    def touch(self, flow: str, path: str, number: int = 0) -> None:
        self.ctr("tasks", "exec", "--exec-id", f"touch{number}", flow, "touch", path)

    def supervisor(self) -> int:
        (pid,) = supervisors(self.daemon.address)
        return pid

    def kill_supervisor(self) -> None:
        pid = self.supervisor()
        os.kill(pid, signal.SIGKILL)
        until(lambda: not running(pid), f"supervisor {pid} lives")


@pytest.fixture
def stage(
    new_orlopd: Callable[..., Orlopd], go_ctr: Callable[..., Ctr], busybox_image: Image, tmp_path: Path
) -> Iterator[Stage]:
    daemon = new_orlopd()
    one = Stage(daemon, go_ctr(daemon, f"killed-{os.getpid()}"), busybox_image, tmp_path)
    yield one
    if daemon.process is None:
        daemon.start()
    daemon.end_tasks()
    one.pty.close()
    one.reader.result()


def kill(stage: Stage, victims: Sequence[str], meanwhile: Callable[[], None] = lambda: None) -> None:
    """Kill them, do something while they are dead, and bring the daemon back if it was one of them."""
    if "daemon" in victims:
        stage.daemon.kill()
    if "supervisor" in victims:
        stage.kill_supervisor()
    meanwhile()
    if "daemon" in victims:
        stage.daemon.start()


@pytest.mark.parametrize("victims", [("daemon",), ("supervisor",), ("daemon", "supervisor")], ids="+".join)
def test_nothing_is_lost(stage: Stage, victims: Sequence[str]) -> None:
    assert {state for _pid, state in stage.pids.values()} == {"RUNNING"}
    for flow in FLOWS:
        stage.touch(flow, "/go")
    for number in range(ROUNDS):
        stage.flows()
        supervisor = stage.supervisor()
        kill(stage, victims)
        assert stage.tasks() == stage.pids
        assert (stage.supervisor() == supervisor) is ("supervisor" not in victims)
        done = stage.ctr.run("tasks", "exec", "--exec-id", "e", FLOWS[number % 3], "sh", "-c", "echo hi; exit 4")
        assert (done.stdout, done.returncode) == ("hi\n", 4)
        stage.flows()
    with stage.client() as client:
        waits = Waits(client)
        for flow in FLOWS:
            stage.touch(flow, "/stop", ROUNDS)
        assert waits.result() == dict.fromkeys(FLOWS, 5)
        for flow in FLOWS:
            assert client.task(flow).delete().code == 5
    for flow in FLOWS:
        until(lambda flow=flow: re.search(rb"end \d+\n$", stage.written(flow)), f"{flow} has no end")  # type: ignore[misc]
        compare(stage.written(flow), flow)


@pytest.mark.parametrize("victims", [("daemon",), ("supervisor",), ("daemon", "supervisor")], ids="+".join)
def test_exits_meanwhile_are_known(stage: Stage, victims: Sequence[str]) -> None:
    """Of init and of an exec. Where nobody was left to see how it ended, that it has ended is known."""
    with stage.client() as client:
        spec = client.containers.get("tty").exec_spec(["sh", "-c", ENDS.replace("6", "7")])
        execution = client.task("tty").exec("e", spec)
        pids = [client.task("ends").state().pid, execution.start()]

    def end() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        until(lambda: not any(map(running, pids)), "they do not end")

    kill(stage, victims, end)
    known = len(victims) == 1
    with stage.client() as client:
        codes = [client.task("ends").wait().code, client.task("tty").process("e").wait().code]
        assert codes == [6, 7] if known else all(code in (255, want) for code, want in zip(codes, (6, 7), strict=True))
        assert stage.tasks() == stage.pids | {"ends": (str(pids[0]), "STOPPED")}
        assert client.task("ends").delete().code == codes[0]
        assert client.task("tty").process("e").delete().code == codes[1]
        client.containers.get("ends").new_task().start()
        assert client.task("ends").status() == "RUNNING"


class Waits:
    """Waits for all that write, one thread each, begun before they are told to end."""

    def __init__(self, client: orlop.Client) -> None:
        self.codes: dict[str, int] = {}
        self.threads = [threading.Thread(target=self._wait, args=(client, flow)) for flow in FLOWS]
        for thread in self.threads:
            thread.start()

    def _wait(self, client: orlop.Client, flow: str) -> None:
        self.codes[flow] = client.task(flow).wait().code

    def result(self) -> dict[str, int]:
        for thread in self.threads:
            thread.join(60)
        return self.codes


def compare(written: bytes, flow: str) -> None:
    """Every line once and in order, to the byte."""
    *_lines, last = written.splitlines()
    count = int(last.split()[1])
    wanted = b"".join(b"line %d\n" % number for number in range(count)) + b"end %d\n" % count
    if written != wanted:
        at = next(i for i, (left, right) in enumerate(zip(written, wanted, strict=False)) if left != right)
        pytest.fail(f"{flow}: {len(written)} bytes of {len(wanted)}; at {at}: {written[at - 20 : at + 40]!r}")
