"""A daemon of another release takes over: its own supervisor adopts the tasks of the old one, and none is stopped."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

import orlop
from tests.root.shims import supervisors, until
from tools.daemons import Orlopd
from tools.images import Image

pytestmark = pytest.mark.root

RELEASE = "99.0.0"
PROGRAMS = {"orlopd": "orlopd", "containerd-shim-orlop-v1": "shim"}
TICKS = "i=0; while [ ! -e /stop ]; do i=$((i+1)); echo tick $i; sleep 0.05; done; echo end; exit 3"


class Installed(Orlopd):
    """A daemon of an installation of its own."""

    programs: Path

    def command(self) -> Sequence[str | Path]:
        _program, *rest = super().command()
        return [self.programs / "orlopd", *rest]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of another release, which is this one under another number."""
    top = tmp_path_factory.mktemp("release") / "v"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(top)], check=True)
    [packages] = (top / "lib").glob("python3*/site-packages")
    shutil.copytree(Path(orlop.__file__).parent, packages / "orlop", ignore=shutil.ignore_patterns("__pycache__"))
    (packages / "orlop" / "version.py").write_text(f'__version__ = "{RELEASE}"\n')
    (packages / "rest.pth").write_text(sysconfig.get_path("purelib"))  # all that orlop depends on
    for name, module in PROGRAMS.items():
        path = top / "bin" / name
        path.write_text(f"#!{top}/bin/python\nimport sys\nfrom orlop.cmd.{module} import main\nsys.exit(main())\n")
        path.chmod(0o755)
    return top / "bin"


@pytest.fixture
def next_release(programs: Path) -> Iterator[Callable[[Orlopd], Orlopd]]:
    """Start a daemon of the other release in the place of a stopped one."""
    started: list[Orlopd] = []

    def start(before: Orlopd) -> Orlopd:
        daemon = Installed(before.directory)
        daemon.programs = programs
        daemon.cgroups_before = before.cgroups_before
        started.append(daemon)
        daemon.start()
        return daemon

    yield start
    for daemon in started:
        daemon.close()


def release_of(pid: int) -> Path:
    """Where the interpreter of a process lies."""
    return Path(Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]).parent


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_tasks_move_and_go_on(
    new_orlopd: Callable[..., Orlopd],
    next_release: Callable[[Orlopd], Orlopd],
    programs: Path,
    busybox_image: Image,
    tmp_path: Path,
    killed: bool,
) -> None:
    old = new_orlopd()
    namespace = f"upgrade-{os.getpid()}"
    flows: Mapping[str, bool] = {"plain": False, "tty": True}
    readers, pids = {}, {}
    with orlop.Client(str(old.address), namespace, timeout_s=60) as client:
        with open(busybox_image.archive, "rb") as archive:
            [image] = client.import_(archive)
        for name, terminal in flows.items():
            container = client.new_container(name, image, orlop.SpecOptions(args=["sh", "-c", TICKS], tty=terminal))
            output = bytearray()
            io = orlop.FifoIO(stdout=output, terminal=terminal, directory=str(tmp_path / name))
            task = container.new_task(io)
            pids[name] = task.start()
            readers[name] = (io, output)
        execution = client.task("plain").exec("e", container.exec_spec(["sleep", "1000"]))
        pids["e"] = execution.start()
    [before] = supervisors(old.address)
    if killed:
        old.kill()
    else:
        old.stop()
    new = next_release(old)

    [after] = supervisors(new.address)
    assert (before != after, release_of(after)) == (True, programs)
    with orlop.Client(str(new.address), namespace, timeout_s=60) as client:
        assert {state.container_id: state.pid for state in client.tasks()} == {name: pids[name] for name in flows}
        sizes = {name: len(output) for name, (_io, output) in readers.items()}
        until(lambda: all(len(readers[name][1]) > size for name, size in sizes.items()), "output does not go on")
        assert client.task("plain").process("e").state().pid == pids["e"]
        Path(f"/proc/{pids['plain']}/root/stop").touch()
        Path(f"/proc/{pids['tty']}/root/stop").touch()
        for name in flows:
            assert client.task(name).wait().code == 3
            assert client.task(name).delete().code == 3
            io, output = readers[name]
            io.wait()
            io.close()
            lines = bytes(output).replace(b"\r\n", b"\n").decode().splitlines()
            assert lines == [f"tick {number}" for number in range(1, len(lines))] + ["end"]
    new.forget_cgroup(namespace)


def test_a_daemon_of_the_same_release_leaves_supervisors_alone(
    new_orlopd: Callable[..., Orlopd], busybox_image: Image
) -> None:
    daemon = new_orlopd()
    with orlop.Client(str(daemon.address), f"upgrade-{os.getpid()}", timeout_s=60) as client:
        with open(busybox_image.archive, "rb") as archive:
            [image] = client.import_(archive)
        client.new_container("c", image, orlop.SpecOptions(args=["sleep", "1000"])).new_task().start()
    before = supervisors(daemon.address)
    daemon.stop()
    daemon.start()
    assert supervisors(daemon.address) == before
