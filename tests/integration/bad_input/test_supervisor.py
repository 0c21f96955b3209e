"""A supervisor that is killed under the calls that it is serving."""

import contextlib
import os
import signal
import subprocess
import threading
import time

import pytest

import orlop
from orlop.base import errdefs
from orlop.base.errdefs import (
    InternalError,
    UnavailableError,
)
from tests.integration.bad_input.pulling import NAMESPACE
from tools import host, residue
from tools.daemons import Orlopd

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


def supervisors(daemon: Orlopd) -> list[int]:
    processes = residue.find(daemon.directory).processes
    return [pid for pid, command in processes.items() if "orlop.cmd.shim " in command]


def test_a_supervisor_killed_under_its_calls(client, daemon, prepared):
    """Calls that were under way end, with their result or with UNAVAILABLE; the container goes on and can be had."""
    with client.new_container("bad", prepared, orlop.SpecOptions(args=("sleep", "1000"))) as container:
        with container.new_task() as task:
            task.start()
            stop = threading.Event()
            wrong: list[BaseException] = []

            def ask() -> None:
                with orlop.Client(str(daemon.address), NAMESPACE, timeout_s=30) as mine:
                    while not stop.is_set():
                        try:
                            mine.task("bad").pids()
                        except UnavailableError:
                            continue
                        except BaseException as error:
                            wrong.append(error)
                            return

            def wait() -> None:
                with orlop.Client(str(daemon.address), NAMESPACE) as mine:
                    outcomes.append(mine.task("bad").wait().code)

            outcomes: list[int] = []
            threads = [threading.Thread(target=ask) for _ in range(4)] + [threading.Thread(target=wait)]
            for thread in threads:
                thread.start()
            pids = supervisors(daemon)
            assert pids
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            for _ in range(50):
                with contextlib.suppress(UnavailableError):
                    task.pids()
            stop.set()
            for thread in threads[:4]:
                thread.join(60)
            assert wrong == []
            assert task.pid in task.pids()
            with task.exec("e", container.exec_spec(["true"])) as process:
                process.start()
                assert process.wait().code == 0
            task.kill("KILL")
            threads[4].join(60)
            assert outcomes == [137]
            assert task.wait().code == 137
            task.delete()


def test_a_supervisor_killed_while_it_creates(client, daemon, prepared):
    """Whatever the moment, a create that fails has left nothing, and the next one works."""
    problems: list[str] = []
    for delay in range(6):
        name = f"bad{delay}"
        with client.new_container(name, prepared, orlop.SpecOptions(args=("true",))) as container:
            killer = subprocess.Popen(
                ["sh", "-c", f"sleep 0.0{delay}; kill -9 {' '.join(map(str, supervisors(daemon))) or 0}"],
                process_group=0,
                stderr=subprocess.DEVNULL,
            )
            try:
                with container.new_task() as task:
                    killer.wait()
                    with contextlib.suppress(UnavailableError):
                        task.start()
                    task.delete(force=True)
            except (UnavailableError, errdefs.UnknownError, InternalError) as error:
                problems += [str(error)] if name not in str(error) and "shim" not in str(error) else []
            finally:
                killer.wait()
        with client.new_container("after", prepared, orlop.SpecOptions(args=("true",))) as container:
            with container.new_task() as task:
                task.start()
                assert task.wait().code == 0
                task.delete()
    assert problems == []


def test_a_supervisor_killed_while_the_oci_runtime_makes_a_container(client, daemon, prepared, tmp_path):
    """The runtime goes on without its supervisor, and what it makes in the end is removed all the same."""
    from google.protobuf.any_pb2 import Any as AnyMessage

    from orlop.api.types.runc.options.oci_pb2 import Options

    begun, killed, slow = tmp_path / "begun", tmp_path / "killed", tmp_path / "runc"
    waits = f"touch {begun}; while [ ! -e {killed} ]; do sleep 0.01; done"
    slow.write_text(f'#!/bin/sh\ncase " $* " in *" create "*) {waits};; esac\nexec {host.find("runc")} "$@"\n')
    slow.chmod(0o755)
    packed = AnyMessage(type_url="containerd.runc.v1.Options", value=Options(binary_name=str(slow)).SerializeToString())

    def kill() -> None:
        deadline = time.monotonic() + 30
        while not begun.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        for pid in supervisors(daemon):
            os.kill(pid, signal.SIGKILL)
        killed.touch()

    killer = threading.Thread(target=kill)
    killer.start()
    options = orlop.SpecOptions(args=("sleep", "1000"))
    with client.new_container("bad", prepared, options, runtime_options=packed) as container:
        with contextlib.suppress(UnavailableError):  # or its successor does it
            container.new_task().delete(force=True)
        killer.join()
        assert killed.exists()
        with container.new_task() as task:
            task.start()
            task.kill("KILL")
            task.wait()
            task.delete()
