"""Operations on tasks by other runtimes and shims than the usual: one that dumps and restores, one with few rights."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from google.protobuf.any_pb2 import Any as PackedAny

import orlop
from orlop.api.types.runc.options.oci_pb2 import Options
from orlop.base.errdefs import NotFoundError
from tools import daemons, standin
from tools.crash.operations import Operation
from tools.crash.stage import Stage, until
from tools.crash.tasks import bystander, create, status

NOTES: Final = "echo 42 > /state; exec sleep 1000"
LOW_SCORE: Final = -900


def _script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return os.fspath(path)


def _dump(stage: Stage) -> Path:
    return stage.directory / "dump"


def _options(stage: Stage, *, restores: bool = False) -> PackedAny:
    """Of a runtime that stands in for one with CRIU."""
    runc = shutil.which("runc", path=daemons.environment()["PATH"])
    calls = stage.directory / "calls"
    program = _script(stage.directory / "runtime", f'exec {sys.executable} {standin.__file__} {calls} {runc} "$@"')
    options = Options(binary_name=program, criu_image_path=os.fspath(_dump(stage)) if restores else "")
    return PackedAny(type_url=options.DESCRIPTOR.full_name, value=options.SerializeToString())


def _noting(stage: Stage) -> None:
    """A bystander, and a task that has noted something in its files."""
    bystander(stage, container=False)
    shutil.rmtree(_dump(stage), ignore_errors=True)
    with stage.client() as client:
        arguments = orlop.SpecOptions(args=["sh", "-c", NOTES])
        made = client.new_container("c", stage.image.reference, arguments, runtime_options=_options(stage))
        task = made.new_task()
        task.start()
        state = Path(f"/proc/{task.pid}/root/state")
        until(lambda: state.exists() and state.read_text() == "42\n", "it has noted nothing")
    stage.promise("task", lambda client: status(client, "c", "RUNNING"))


def _checkpoint(stage: Stage) -> None:
    """It goes on afterwards."""
    shutil.rmtree(_dump(stage), ignore_errors=True)
    with stage.client() as client:
        client.task("c").checkpoint(image_path=os.fspath(_dump(stage)))
    stage.promise("dump", lambda _client: _is_whole(_dump(stage)))


def _is_whole(dump: Path) -> None:
    assert (dump / "pages-2.img").stat().st_size > len(standin.PAGES)
    assert (dump / "net/state.img").read_text() == "42\n"


def _dumped(stage: Stage) -> None:
    """Its task has been dumped, and deleted."""
    _noting(stage)
    stage.withdraw("task")
    with stage.client() as client:
        task = client.task("c")
        task.checkpoint(stop=True, image_path=os.fspath(_dump(stage)))
        until(lambda: task.status() == "STOPPED", "the task does not end")
        task.delete()
    stage.promise("dump", lambda _client: _is_whole(_dump(stage)))


def _restore(stage: Stage) -> None:
    with stage.client() as client:
        try:
            task = client.task("c")
        except NotFoundError:
            task = client.containers.get("c").new_task(options=_options(stage, restores=True))
        if task.status() == "CREATED":
            task.start()
    stage.promise("task", _is_restored)


def _is_restored(client: orlop.Client) -> None:
    status(client, "c", "RUNNING")
    assert Path(f"/proc/{client.task('c').pid}/root/restored").read_text() == "42\n"


# -- few rights -------------------------------------------------------------------------------------------------------


def _less_able(stage: Stage) -> None:
    """A container that wants a lower oom_score_adj than its supervisor can give it."""
    bystander(stage, runs=False, container=False)
    shims = stage.directory / "shims"
    shims.mkdir(exist_ok=True)
    name = "containerd-shim-orlop-v1"
    program = f'exec setpriv --bounding-set=-sys_resource {daemons.our_program(name)} "$@"'
    shim = _script(shims / name, program)
    with stage.client() as client:
        made = client.new_container("first", stage.image.reference, orlop.SpecOptions(args=["sleep", "1000"]))
        spec = json.loads(made.record.spec)
        made.delete()
        spec["process"]["oomScoreAdj"] = LOW_SCORE
        spec["linux"]["cgroupsPath"] = spec["linux"]["cgroupsPath"].replace("/first", "/c")
        snapshots = client.snapshots()
        image = client.images.get(stage.image.reference)
        snapshots.prepare("c", image.chain_id(), labels={"containerd.io/gc.root": "yes"})
        client.containers.create(
            "c", json.dumps(spec).encode(), runtime=shim, snapshotter="overlayfs", snapshot_key="c"
        )


OPERATIONS: Final = (
    Operation(name="checkpoint", store="tasks", prepare=_noting, perform=_checkpoint, tasks=True),
    Operation(name="restore", store="tasks", prepare=_dumped, perform=_restore, tasks=True),
    Operation(name="rewrite spec", store="tasks", prepare=_less_able, perform=create, tasks=True),
)
