"""Where the output of a task's processes goes, and who may open it."""

import contextlib
import json
import os
import sys
from pathlib import Path

import pytest

import orlop
from orlop.api.types.runc.options.oci_pb2 import Options
from orlop.client.io import Streams
from tests.interop.tasks.room import Room
from tests.root.shims import until

pytestmark = [pytest.mark.root, pytest.mark.interop]


@pytest.mark.parametrize("who", ["init", "exec"])
@pytest.mark.parametrize("scheme", ["file", "fifo", "binary"])
def test_where_output_goes(room: Room, scheme: str, who: str, tmp_path: Path) -> None:
    script = "echo out; echo err >&2"
    # Debian's shim may lose what a process wrote to a file that ends at once; ours must not.
    lingers = scheme == "file" and not room.stand.supervised
    if lingers:
        script += "; while [ ! -e /go ]; do sleep 0.02; done"
    target = tmp_path / "sub" / "log" if scheme == "file" else tmp_path / "log"

    def go_on(pid: int) -> None:
        if lingers:
            until(lambda: target.exists() and len(target.read_text().splitlines()) == 2, "output is missing")
            Path(f"/proc/{pid}/root/go").touch()

    uri = f"{scheme}://{target}"
    if scheme == "fifo":
        uri = str(target)  # the scheme is known to our supervisor only
        os.mkfifo(target)
        # As a client's reader does, it stays until the end: Debian's shim opens the FIFO once for each output.
        fifo = os.open(target, os.O_RDWR | os.O_NONBLOCK)
    if scheme == "binary":
        program = logger(tmp_path)
        uri = f"binary://{program}?where={target}"
    io = Address(uri)
    if who == "init":
        task = room.container("sh", "-c", script).new_task(io)
        task.start()
        go_on(task.pid)
        task.wait()
    else:
        task = room.start("sleep", "1000")
        made = task.exec("e", room.client.containers.get("c").exec_spec(["sh", "-c", script]), io=io)
        go_on(made.start())
        made.wait()
        made.delete()
        task.kill("KILL")
        task.wait()
    task.delete()
    wanted = (
        {"out", "err"} if scheme != "binary" else {"3:out", "4:err", f"id {who_id(who)}", f"ns {room.client.namespace}"}
    )
    received = bytearray()

    def lines() -> set[str]:
        if scheme == "fifo":
            with contextlib.suppress(BlockingIOError):
                received.extend(os.read(fifo, 4096))
        elif target.exists():
            received[:] = target.read_bytes()
        return set(received.decode().split("\n")) - {""}

    until(lambda: lines() >= wanted, "output is missing")
    assert lines() == wanted
    if scheme == "fifo":
        os.close(fifo)


def who_id(who: str) -> str:
    return "c" if who == "init" else "e"


class Address(orlop.NullIO):
    """Both outputs to one address, as it is."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address

    def open(self, name: str) -> Streams:
        return Streams(stdout=self._address, stderr=self._address)


def logger(directory: Path) -> Path:
    """A logging program in the manner of containerd's: inputs at 3 and 4, ready when 5 is closed."""
    program = directory / "logger"
    program.write_text(f"""#!{sys.executable}
import os, sys, threading
where = dict(zip(sys.argv[1::2], sys.argv[2::2]))["where"]
lock = threading.Lock()
def note(text):
    with lock, open(where, "a") as file:
        file.write(text + "\\n")
def copy(fd):
    for line in os.fdopen(fd):
        note(f"{{fd}}:{{line.strip()}}")
note("id " + os.environ["CONTAINER_ID"])
note("ns " + os.environ["CONTAINER_NAMESPACE"])
os.close(5)
threads = [threading.Thread(target=copy, args=(fd,)) for fd in (3, 4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
""")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("user", ["", "1000:1000"], ids=["root", "another user"])
def test_dev_stdout_can_be_opened(room: Room, user: str) -> None:
    script = ("sh", "-c", "echo init > /dev/stdout; echo problem > /dev/stderr")
    assert room.run(*script, user=user) == (0, "init\n", "problem\n")
    task = room.start("sleep", "1000", user=user)
    assert room.exec(task, "sh", "-c", "echo exec > /dev/stdout") == (0, "exec\n")


def test_dev_stdout_can_be_opened_in_a_user_namespace(room: Room) -> None:
    maps = {"uid_maps": [(0, 100000, 65536)], "gid_maps": [(0, 100000, 65536)]}
    options = Options(io_uid=100000, io_gid=100000)
    code, out, err = room.run(
        "sh", "-c", "echo init > /dev/stdout; id -u; cat /proc/self/uid_map", options=options, **maps
    )
    assert (code, err, out.split()) == (0, "", ["init", "0", "0", "100000", "65536"])
    task = room.start("sleep", "1000", options=options, **maps)
    assert Path(f"/proc/{task.pid}").stat().st_uid == 100000
    assert room.exec(task, "sh", "-c", "echo exec > /dev/stdout") == (0, "exec\n")


def test_terminals_of_init_and_of_an_exec(room: Room) -> None:
    output = bytearray()
    io = orlop.FifoIO(stdout=output, terminal=True, directory=str(room.directory))
    container = room.container(
        "sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; tty; stty size; sleep 1000", tty=True
    )
    task = container.new_task(io)
    task.start()
    task.resize(101, 43)
    Path(f"/proc/{task.pid}/root/go").touch()
    until(lambda: b"43 101" in output, f"no answer: {output!r}")
    assert output.split()[0].startswith(b"/dev/")
    again = bytearray()
    process = json.loads(container.exec_spec(["sh", "-c", "tty; exit 6"], tty=True))
    io = orlop.FifoIO(stdout=again, terminal=True, directory=str(room.directory))
    made = task.exec("e", json.dumps(process).encode(), io=io)
    made.start()
    assert made.wait().code == 6
    made.delete()
    assert again.startswith(b"/dev/")
