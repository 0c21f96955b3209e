"""The package's files are removed under a running supervisor, as an upgrade does: every call still works.

The supervisor is run from an installation of the test's own, which is then taken away.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import google.protobuf
import pytest

import orlop
from orlop.api.runtime.sandbox.v1 import sandbox_pb2
from orlop.api.runtime.task.v3 import shim_pb2 as pb
from orlop.api.types.runtimeoptions.v1 import api_pb2
from tests.root.shims import Reader, Shim, failure, opened, running, until

pytestmark = pytest.mark.root


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Where the installation has its packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "v")], check=True)
    [found] = (tmp_path / "v" / "lib").glob("python3*/site-packages")
    for name, source in (("orlop", Path(orlop.__file__).parent), ("google", Path(google.protobuf.__file__).parents[1])):
        shutil.copytree(source, found / name, ignore=shutil.ignore_patterns("__pycache__"))
    return found


@pytest.fixture
def shim(tmp_path: Path, packages: Path) -> Iterator[Shim]:
    program = tmp_path / "v" / "bin" / "containerd-shim-orlop-v1"
    program.write_text(f"#!{tmp_path}/v/bin/python\nimport sys\nfrom orlop.cmd.shim import main\nsys.exit(main())\n")
    program.chmod(0o755)
    with opened(tmp_path, executable=program) as one:
        yield one


def test_every_call_works_without_the_package(shim: Shim, packages: Path, tmp_path: Path) -> None:
    shim.run("before", ["/bin/sleep", "1000"])
    until(lambda: "all modules are imported" in shim.log(), "modules are missing")
    for path in packages.iterdir():
        shutil.rmtree(path)

    assert shim.task_state("before").pid
    assert shim.call("Pids", pb.PidsRequest(id="before"), pb.PidsResponse).processes
    assert shim.call("Stats", pb.StatsRequest(id="before"), pb.StatsResponse).stats.value
    shim.call("Pause", pb.PauseRequest(id="before"), None)
    shim.call("Resume", pb.ResumeRequest(id="before"), None)
    wanted = pb.UpdateTaskRequest(id="before")
    wanted.resources.value = b'{"pids": {"limit": 50}}'
    shim.call("Update", wanted, None)
    assert failure(lambda: shim.call("Checkpoint", pb.CheckpointTaskRequest(id="before", path="/proc/x"), None))[0] == 2

    shim.exec("before", "file", ["/bin/echo", "hi"], stdout=f"file://{tmp_path}/log")
    shim.task_start("before", "file")
    shim.wait("before", "file")
    shim.delete("before", "file")
    assert (tmp_path / "log").read_text() == "hi\n"

    out, into = shim.fifo("out"), shim.fifo("in")
    reader = Reader(out)
    shim.exec("before", "tty", ["/bin/cat"], stdin=str(into), stdout=str(out), terminal=True)
    shim.task_start("before", "tty")
    shim.call("ResizePty", pb.ResizePtyRequest(id="before", exec_id="tty", width=80, height=24), None)
    with open(into, "wb") as file:
        file.write(b"typed\n")
    until(lambda: b"typed" in reader.data, "no echo")
    shim.close_stdin("before", "tty")
    shim.wait("before", "tty")
    shim.delete("before", "tty")

    program = tmp_path / "logger"
    program.write_text("#!/bin/sh\nexec 5>&-; cat <&3 >" + str(tmp_path / "logged"))
    program.chmod(0o755)
    options = api_pb2.Options(config_body=b'BinaryName = "runc"')
    packed = {"type_url": options.DESCRIPTOR.full_name, "value": options.SerializeToString()}
    shim.create("after", ["/bin/echo", "logged"], request={"stdout": f"binary://{program}", "options": packed})
    shim.task_start("after")
    assert shim.wait("after") == 0
    shim.delete("after")
    until(lambda: (tmp_path / "logged").read_text() == "logged\n", "nothing is logged")

    sandbox = "containerd.runtime.sandbox.v1.Sandbox"
    shim.call("CreateSandbox", sandbox_pb2.CreateSandboxRequest(sandbox_id="s"), None, service=sandbox)
    shim.call("Platform", sandbox_pb2.PlatformRequest(sandbox_id="s"), None, service=sandbox)

    shim.call("ShutdownSandbox", sandbox_pb2.ShutdownSandboxRequest(sandbox_id="s"), None, service=sandbox)

    shim.task_kill("before", everyone=True)
    assert shim.wait("before") == 137
    shim.delete("before")
    assert "Traceback" not in shim.log()
    pid = shim.pid
    shim.call("Shutdown", pb.ShutdownRequest(now=True), None)
    until(lambda: not running(pid), "it stays")
    shim.disconnect()
    shim.address = ""
