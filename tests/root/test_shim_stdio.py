"""Where the supervisor takes input from and sends output to: FIFOs, files, logging programs, terminals."""

import array
import fcntl
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.api.runtime.task.v3 import shim_pb2 as pb
from tests.root.shims import Reader, Shim, failure, opened, running, until

pytestmark = pytest.mark.root


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    with opened(tmp_path) as one:
        yield one


def keepers(shim: Shim) -> list[int]:
    """Pids of this supervisor's keepers."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                if Path(f"/proc/{name}/cmdline").read_text().startswith("orlop-keeper") and int(stat[1]) == shim.pid:
                    found.append(int(name))
            except OSError:
                continue
    return found


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


# ---- output


def test_both_outputs(shim: Shim):
    out, err = shim.fifo("out"), shim.fifo("err")
    readers = Reader(out), Reader(err)
    script = "echo out; echo err >&2; echo more"
    shim.run("c", ["/bin/sh", "-c", script], request={"stdout": str(out), "stderr": str(err)})
    assert [reader.result() for reader in readers] == [b"out\nmore\n", b"err\n"]


def test_reader_who_comes_late(shim: Shim):
    """What was written waits in the FIFO until the task is deleted, and the reader then sees the end."""
    out = shim.fifo("out")
    shim.run("c", ["/bin/echo", "late"], request={"stdout": str(out)})
    shim.wait("c")
    fd = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(fd, 100) == b"late\n"
    assert os.read(fd, 100) == b""
    os.close(fd)


@pytest.mark.parametrize("uid", [0, 1234])
def test_dev_stdout_can_be_opened(shim: Shim, uid: int):
    out = shim.fifo("out")
    reader = Reader(out)
    script = "echo x > /dev/stdout && echo y > /proc/self/fd/1"
    user = {"uid": uid, "gid": uid}
    shim.run("c", ["/bin/sh", "-c", script], request={"stdout": str(out)}, user=user)
    assert shim.wait("c") == 0
    assert reader.result() == b"x\ny\n"


def test_owner_of_stdio(shim: Shim):
    from orlop.api.types.runc.options import oci_pb2

    out = shim.fifo("out")
    options = oci_pb2.Options(io_uid=1234, io_gid=1235).SerializeToString()
    wanted = {"stdout": str(out), "options": {"type_url": "containerd.runc.v1.Options", "value": options}}
    shim.create("c", ["/bin/true"], request=wanted)
    assert os.stat(out).st_gid == 1235  # the owner is set again by runc, to the process's user


def test_client_killed_in_mid_output(shim: Shim):
    """The process neither dies nor loses anything; it stops when the FIFO is full, and goes on with the next reader."""
    out = shim.fifo("out")
    client = subprocess.Popen(["head", "-c", "1000", out], stdout=subprocess.DEVNULL)
    shim.run("c", ["/bin/sh", "-c", "seq 1 200000; echo end"], request={"stdout": str(out)})
    client.wait()
    reader = Reader(out)
    assert shim.wait("c") == 0
    assert reader.result().endswith(b"199999\n200000\nend\n")


def test_much_output(shim: Shim):
    out = shim.fifo("out")
    reader = subprocess.Popen(["wc", "-c", out], stdout=subprocess.PIPE)
    shim.run("c", ["/bin/dd", "if=/dev/zero", "bs=65536", "count=1600"], request={"stdout": str(out)}, mounts=devices())
    assert shim.wait("c") == 0
    data, _ = reader.communicate()
    assert data.split()[0] == str(65536 * 1600).encode()


def devices() -> list[dict[str, object]]:
    return [{"destination": "/dev/zero", "type": "bind", "source": "/dev/zero", "options": ["bind"]}]


@pytest.mark.parametrize("scheme", ["file://", ""])
def test_file(shim: Shim, tmp_path: Path, scheme: str):
    """Appended to, both outputs in order; a plain path to a file works as in containerd."""
    log = tmp_path / "log"
    log.write_text("before\n")
    where = f"{scheme}{log}"
    shim.run("c", ["/bin/sh", "-c", "echo a; echo b >&2; echo c"], request={"stdout": where, "stderr": where})
    assert shim.wait("c") == 0
    shim.delete("c")  # waits until all has arrived
    assert log.read_text() == "before\na\nb\nc\n"


def test_file_is_made(shim: Shim, tmp_path: Path):
    shim.run("c", ["/bin/echo", "x"], request={"stdout": f"file://{tmp_path}/deep/er/log"})
    shim.wait("c")
    shim.delete("c")
    assert (tmp_path / "deep/er/log").read_text() == "x\n"


def test_container_cannot_reach_the_file(shim: Shim, tmp_path: Path):
    log = tmp_path / "log"
    shim.run("c", ["/bin/sh", "-c", ": > /proc/self/fd/1; ls -l /proc/self/fd/1"], request={"stdout": f"file://{log}"})
    shim.wait("c")
    shim.delete("c")
    assert "pipe:" in log.read_text()


def test_full_disk_loses_output_and_no_process(shim: Shim, tmp_path: Path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], check=True)
    try:
        script = "seq 1 100000; exit 5"
        shim.run("c", ["/bin/sh", "-c", script], request={"stdout": f"file://{small}/log"})
        assert shim.wait("c") == 5
        shim.delete("c")
        assert (small / "log").stat().st_size == 65536
        assert "output is being lost" in shim.log()
    finally:
        subprocess.run(["umount", small], check=True)


def test_logging_program(shim: Shim, tmp_path: Path):
    program = tmp_path / "logger"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "os.close(5)\n"
        "out, err = open(3, 'rb').read(), open(4, 'rb').read()\n"
        "with open(sys.argv[2], 'w') as file:\n"
        "    print(sys.argv[1:], os.environ['CONTAINER_ID'], os.environ['CONTAINER_NAMESPACE'], out, err, file=file)\n"
    )
    program.chmod(0o755)
    where = f"binary://{program}?to={tmp_path}/log"
    shim.run("c", ["/bin/sh", "-c", "echo a; echo b >&2"], request={"stdout": where, "stderr": where})
    shim.wait("c")
    shim.delete("c")
    until((tmp_path / "log").exists, "the logging program has written nothing")
    until((tmp_path / "log").read_text, "the logging program has written nothing")
    assert (tmp_path / "log").read_text() == f"['to', '{tmp_path}/log'] c ns b'a\\n' b'b\\n'\n"


def test_logging_program_that_fails(shim: Shim):
    code, message = failure(lambda: shim.create("c", ["/bin/true"], request={"stdout": "binary:///bin/false"}))
    assert (code, "ended at once" in message) == (2, True)


# ---- input


def test_three_megabytes_of_input(shim: Shim):
    into, out = shim.fifo("in"), shim.fifo("out")
    reader = Reader(out)
    shim.run("c", ["/bin/wc", "-c"], request={"stdin": str(into), "stdout": str(out)})
    with open(into, "wb") as file:
        for _ in range(48):
            file.write(os.urandom(65536))
    shim.close_stdin("c")
    assert shim.wait("c") == 0
    assert reader.result().strip() == b"3145728"
    assert keepers(shim) == []


def test_input_ends_only_when_the_client_says_so(shim: Shim):
    """A client that goes away without a word is one that comes back: containerd's shim holds the FIFO open, too."""
    into, out = shim.fifo("in"), shim.fifo("out")
    reader = Reader(out)
    shim.run("c", ["/bin/cat"], request={"stdin": str(into), "stdout": str(out)})
    assert len(keepers(shim)) == 1
    for word in (b"one ", b"two "):
        with open(into, "wb") as file:
            file.write(word)
    assert shim.task_state("c").status == 2
    with open(into, "wb") as file:
        shim.close_stdin("c")
        file.write(b"three")
    assert shim.wait("c") == 0
    assert reader.result() == b"one two three"


def test_input_before_the_client_opens(shim: Shim):
    into = shim.fifo("in")
    shim.run("c", ["/bin/sh", "-c", "read x; exit $x"], request={"stdin": str(into)})
    with open(into, "wb") as file:
        file.write(b"9\n")
    assert shim.wait("c") == 9


def test_process_that_does_not_read(shim: Shim):
    """Its input FIFO has no reader any more when it has ended and been deleted; nothing is left."""
    into = shim.fifo("in")
    shim.run("c", ["/bin/sleep", "100"], request={"stdin": str(into)})
    before = descriptors(shim.pid)
    with open(into, "wb", buffering=0) as file:
        os.set_blocking(file.fileno(), False)
        while file.write(bytes(65536)):
            pass
        shim.task_kill("c")
        shim.wait("c")
        shim.delete("c")
        with pytest.raises(BrokenPipeError):
            file.write(b"x")
    assert descriptors(shim.pid) < before
    assert keepers(shim) == []


def test_exec_with_input(shim: Shim):
    shim.run("c", ["/bin/sleep", "100"])
    into, out = shim.fifo("in"), shim.fifo("out")
    reader = Reader(out)
    shim.exec("c", "e", ["/bin/cat"], stdin=str(into), stdout=str(out))
    shim.task_start("c", "e")
    with open(into, "wb") as file:
        file.write(b"abc")
    shim.close_stdin("c", "e")
    assert shim.wait("c", "e") == 0
    assert reader.result() == b"abc"


# ---- terminals


class Terminal:
    """A client's ends of a terminal's FIFOs."""

    def __init__(self, shim: Shim, name: str = "") -> None:
        self.into, self.out = shim.fifo(f"in{name}"), shim.fifo(f"out{name}")
        self.reader = Reader(self.out)
        self.request = {"stdin": str(self.into), "stdout": str(self.out), "terminal": True}

    def type(self, text: bytes) -> None:
        with open(self.into, "wb") as file:
            file.write(text)

    def expect(self, text: bytes) -> None:
        until(lambda: text in self.reader.data, f"{text!r} has not come: {self.reader.data!r}")


def test_terminal(shim: Shim):
    terminal = Terminal(shim)
    shim.run("c", ["/bin/sh"], request=terminal.request, terminal=True)
    shim.call("ResizePty", pb.ResizePtyRequest(id="c", width=132, height=43), None)
    terminal.type(b"tty; stty size\n")
    terminal.expect(b"/dev/pts/0\r\n43 132\r\n")
    terminal.type(b"exit 4\n")
    assert shim.wait("c") == 4
    assert terminal.reader.result().endswith(b"exit 4\r\n")
    assert shim.task_state("c").terminal
    shim.delete("c")
    assert keepers(shim) == []


def test_terminal_output_is_read_to_the_end(shim: Shim):
    terminal = Terminal(shim)
    shim.run("c", ["/bin/seq", "1", "50000"], request=terminal.request, terminal=True)
    assert shim.wait("c") == 0
    assert terminal.reader.result().endswith(b"\r\n49999\r\n50000\r\n")


def test_terminal_hangs_up_when_the_client_has_said_the_end(shim: Shim):
    terminal = Terminal(shim)
    shim.run("c", ["/bin/sh"], request=terminal.request, terminal=True)
    terminal.type(b"echo ready\n")
    terminal.expect(b"ready\r\n")
    shim.close_stdin("c")
    shim.wait("c")  # what the shell makes of it is its own affair
    terminal.reader.result()


def test_terminal_of_an_exec(shim: Shim):
    shim.run("c", ["/bin/sleep", "100"])
    terminal = Terminal(shim)
    shim.exec("c", "e", ["/bin/sh"], **terminal.request)
    shim.task_start("c", "e")
    shim.call("ResizePty", pb.ResizePtyRequest(id="c", exec_id="e", width=50, height=20), None)
    terminal.type(b"stty size; exit 6\n")
    terminal.expect(b"20 50\r\n")
    assert shim.wait("c", "e") == 6
    terminal.reader.result()
    assert failure(lambda: shim.call("ResizePty", pb.ResizePtyRequest(id="c", exec_id="e", width=5, height=2), None))[
        1
    ].startswith("cannot resize a stopped container")


def test_terminal_into_a_file(shim: Shim, tmp_path: Path):
    wanted = {"stdout": f"file://{tmp_path}/log", "terminal": True}
    shim.run("c", ["/bin/echo", "x"], request=wanted, terminal=True)
    shim.wait("c")
    shim.delete("c")
    assert (tmp_path / "log").read_bytes() == b"x\r\n"


def test_control_c(shim: Shim):
    terminal = Terminal(shim)
    shim.run("c", ["/bin/sh", "-c", "echo ready; sleep 100; echo survived"], request=terminal.request, terminal=True)
    terminal.expect(b"ready")
    terminal.type(b"\x03")
    assert shim.wait("c") == 128 + signal.SIGINT
    assert b"survived" not in terminal.reader.result()


# ---- nothing is left


def test_no_descriptor_stays(shim: Shim):
    into, out = shim.fifo("in"), shim.fifo("out")
    shim.run("w", ["/bin/true"])
    shim.wait("w")
    shim.delete("w")
    before = descriptors(shim.pid)
    for _ in range(3):
        reader = Reader(out)
        shim.run("c", ["/bin/cat"], request={"stdin": str(into), "stdout": str(out)})
        with open(into, "wb"):
            shim.close_stdin("c")
        shim.wait("c")
        shim.delete("c")
        reader.result()
    until(lambda: descriptors(shim.pid) <= before, "descriptors were left")
    assert keepers(shim) == []
    assert all(running(pid) for pid in [shim.pid])


def test_window_size_is_readable(shim: Shim):
    """The keeper holds the pty's master, and it is a terminal."""
    terminal = Terminal(shim)
    shim.run("c", ["/bin/sleep", "100"], request=terminal.request, terminal=True)
    shim.call("ResizePty", pb.ResizePtyRequest(id="c", width=99, height=33), None)
    (keeper,) = keepers(shim)
    from orlop.linux import pidfd

    handle = pidfd.pidfd_open(keeper)
    sizes = []
    for name in os.listdir(f"/proc/{keeper}/fd"):
        fd = pidfd.pidfd_getfd(handle, int(name))
        if os.isatty(fd):
            size = array.array("H", [0, 0, 0, 0])
            fcntl.ioctl(fd, termios.TIOCGWINSZ, size)
            sizes.append(size.tolist()[:2])
        os.close(fd)
    os.close(handle)
    assert sizes == [[33, 99]]
