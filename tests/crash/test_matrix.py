"""The daemon is killed at every fail point of an operation of each store: nothing that it answered is undone, nothing
stays that nobody owns, and who does it again gets there. `make crash` plays all points of all operations.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.base import failpoints
from orlop.oci.digest import Digest
from tools.crash.matrix import NOBODY, Outcome, course, crash, crashes, errors
from tools.crash.operations import ROOT, Operation
from tools.crash.picture import settled
from tools.crash.plan import EVERY
from tools.crash.stage import BTRFS_BYTES, Stage, Where
from tools.filesystems import mounted
from tools.images import Image

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

BY_NAME = {operation.name: operation for operation in EVERY}
PLAYED = (
    "write content",
    "collection",
    "migration",
    "remove snapshots (overlayfs)",
    "create image",
    "deactivate mounts",
)
FAILING = (
    "write content",
    "collection",
    "prepare, commit, view (overlayfs)",
    "create image",
    "activate mounts",
    "create task",
)


@pytest.fixture(scope="module")
def stage(short_directory: Path, busybox_image: Image) -> Iterator[Stage]:
    with Stage(short_directory / "crash", busybox_image) as one:
        yield one


@pytest.mark.parametrize("name", PLAYED)
def test_every_point(stage: Stage, name: str) -> None:
    operation = BY_NAME[name]
    run = course(stage, operation)
    rows = [
        crash(stage, operation, run, point, victim, turn)
        for point, victim, turn in crashes(operation, run.passed, set(run.passed), every=False)
    ]
    assert {row.point for row in rows} == set(run.passed)
    assert not [(row.point, row.turn, row.problems) for row in rows if row.outcome is Outcome.FAILED]


@pytest.mark.parametrize("name", FAILING)
def test_every_point_fails(stage: Stage, name: str) -> None:
    """An I/O error is told, nothing is half done, and the same daemon goes on."""
    operation = BY_NAME[name]
    run = course(stage, operation)
    rows = [
        crash(stage, operation, run, point, victim, turn)
        for point, victim, turn in errors(run.passed, set(run.passed), every=False)
    ]
    assert {row.point for row in rows} == run.passed.keys() - failpoints.SOUND.keys()
    assert {row.outcome for row in rows} <= {Outcome.REFUSED, Outcome.ENDURED}, [
        (row.point, row.turn, row.outcome, row.problems) for row in rows
    ]


def test_a_blob_that_was_refused_and_not_given_back_can_be_deleted(stage: Stage) -> None:
    """The digest counted as being committed for ever, so that a deletion left the file; and the caller was not told
    why there was no commit."""
    operation = BY_NAME["refused commit"]
    row = crash(stage, operation, course(stage, operation), "content.commit.taken-back", NOBODY, 1)
    assert (row.outcome, row.problems) == (Outcome.ENDURED, [])


def test_a_start_that_cannot_write_says_so_and_the_next_one_can(stage: Stage) -> None:
    operation = BY_NAME["new database"]
    run = course(stage, operation)
    turns = list(errors(run.passed, {"metadata.batch.applied"}))
    rows = [crash(stage, operation, run, point, victim, turn) for point, victim, turn in turns]
    assert not [row.problems for row in rows if row.outcome is Outcome.FAILED]


@pytest.mark.parametrize("name", ["write content elsewhere", "delete content elsewhere", "read content elsewhere"])
def test_every_point_of_blobs_that_lie_elsewhere(short_directory: Path, busybox_image: Image, name: str) -> None:
    operation = BY_NAME[name]
    with Stage(short_directory / "elsewhere", busybox_image, where=Where.ELSEWHERE) as stage:
        run = course(stage, operation)
        assert [point for point in run.passed if point.startswith("content.remote.")]
        rows = [
            crash(stage, operation, run, point, victim, turn)
            for point, victim, turn in crashes(operation, run.passed, set(run.passed), every=False)
        ]
    assert not [(row.point, row.turn, row.problems) for row in rows if row.outcome is Outcome.FAILED]


@pytest.mark.parametrize("name", ["prepare, commit, view (btrfs)", "remove snapshots (btrfs)"])
def test_every_point_of_subvolumes(short_directory: Path, busybox_image: Image, tmp_path: Path, name: str) -> None:
    """A commit that was cut off left an active snapshot to which nobody could write any more."""
    try:
        with mounted(tmp_path, "btrfs", BTRFS_BYTES):
            pass
    except RuntimeError as error:
        pytest.skip(f"no btrfs here: {error}")
    operation = BY_NAME[name]
    with Stage(short_directory / "btrfs", busybox_image, where=Where.BTRFS) as stage:
        run = course(stage, operation)
        played = [*crashes(operation, run.passed, set(run.passed), every=False)]
        played += errors(run.passed, {point for point in run.passed if point.startswith("btrfs.")})
        rows = [crash(stage, operation, run, *one) for one in played if one[0].startswith(("btrfs.", "snapshots."))]
    assert [point for point in run.passed if point.startswith("btrfs.")]
    assert not [(row.point, row.victim, row.turn, row.problems) for row in rows if row.outcome is Outcome.FAILED]


@pytest.mark.parametrize("point", ["overlayfs.probe.mounted", "erofs.probe.mounted"])
def test_a_trial_that_was_cut_off_leaves_nothing(stage: Stage, point: str) -> None:
    """At the start the kernel is tried by mounting; `.probe-…` was left below the snapshotter's root, and a mount."""
    operation = BY_NAME["new database"]
    run = course(stage, operation)
    if point not in run.passed:
        pytest.skip("this host cannot mount such")
    row = crash(stage, operation, run, point, "daemon", 1)
    assert row.outcome is not Outcome.MISSED
    assert not row.problems


def test_a_task_is_gone_that_a_supervisor_deleted_before_it_died(stage: Stage) -> None:
    """The daemon went on to count it, so that no other of its name could be made."""
    operation = BY_NAME["delete task"]
    run = course(stage, operation)
    row = crash(stage, operation, run, "shim.record.removed", "supervisor", 1)
    assert row.outcome is not Outcome.MISSED
    assert not row.problems


@pytest.mark.parametrize("point", ["shim.exec.written", "shim.record.renamed"])
def test_an_exec_is_added_wholly_or_not_at_all(stage: Stage, point: str) -> None:
    """There was a record before there was what it is to run: the successor's could never be started."""
    operation = BY_NAME["exec"]
    row = crash(stage, operation, course(stage, operation), point, "supervisor", 1)
    assert row.outcome is not Outcome.MISSED
    assert not row.problems


def test_what_was_unpacked_is_synced_by_the_next_daemon(stage: Stage) -> None:
    """It waited until something else was unpacked, and a loss of power until then took it."""
    operation = BY_NAME["unpack and sync"]
    row = crash(stage, operation, course(stage, operation), "snapshots.flush.synced", "daemon", 1)
    assert row.outcome is not Outcome.MISSED
    assert not row.problems


def test_a_sandbox_that_was_started_stays(stage: Stage) -> None:
    """Who was not answered and started it again was told that it was started before, and it was taken away."""
    operation = BY_NAME["start sandbox"]
    row = crash(stage, operation, course(stage, operation), "shim.sandbox.renamed", "daemon", 1)
    assert row.outcome is not Outcome.MISSED
    assert not row.problems


def test_a_trial_of_a_runtime_that_was_cut_off_leaves_nothing(stage: Stage) -> None:
    """A bundle `orlop-probe-…` was left beside the supervisors' sockets, until the machine was started anew."""
    operation = BY_NAME["first task"]
    stage.afresh()
    run = course(stage, operation)
    stage.afresh()  # what works here is known now
    if "shim.choice.tried" not in run.passed:
        pytest.skip("there is one OCI runtime on this host, which is not tried")
    row = crash(stage, operation, run, "shim.choice.tried", "supervisor", 1)
    assert row.outcome is not Outcome.MISSED
    assert not row.problems


def test_a_supervisor_that_could_not_be_started_leaves_nothing(stage: Stage) -> None:
    """Its socket was left, with nobody behind it."""
    operation = BY_NAME["first task"]
    stage.afresh()
    row = crash(stage, operation, course(stage, operation), "shim.launch.spawning", NOBODY, 1)
    assert (row.outcome, row.problems) == (Outcome.REFUSED, [])


def test_a_removal_that_failed_is_tried_again(stage: Stage) -> None:
    """The container's cgroup stayed until the next of that name, or the namespace's next supervisor."""
    operation = BY_NAME["run to the end"]
    run = course(stage, operation)
    last = run.passed["shim.process.spawning"]  # is the removal after the deletion was answered
    row = crash(stage, operation, run, "shim.process.spawning", NOBODY, last)
    assert (row.outcome, row.problems) == (Outcome.ENDURED, [])


@pytest.mark.parametrize("victim", ["supervisor", "both"])
def test_what_a_supervisor_that_held_nothing_had_to_do_is_done(stage: Stage, victim: str) -> None:
    """The OCI runtime's state of a deleted task, its tombstone and the socket waited for the namespace's next one."""
    operation = BY_NAME["run to the end"]
    run = course(stage, operation)
    row = crash(stage, operation, run, "shim.process.spawned", victim, run.passed["shim.process.spawned"])
    assert row.outcome is not Outcome.MISSED
    assert not row.problems


@pytest.mark.parametrize(
    ("point", "victim", "turn"),
    [
        ("shim.restore.restored", "supervisor", 1),
        ("shim.restore.restored", NOBODY, 1),
        ("shim.record.written", NOBODY, 3),  # the first two are those of the creation
    ],
)
def test_a_restoration_that_was_not_recorded_can_be_begun_again(
    stage: Stage, point: str, victim: str, turn: int
) -> None:
    """The OCI runtime had a container of that name by then, so that no start succeeded any more; or it ran, and nobody
    waited for it."""
    operation = BY_NAME["restore"]
    row = crash(stage, operation, course(stage, operation), point, victim, turn)
    assert row.outcome is not Outcome.MISSED
    assert not row.problems


def test_a_spec_is_rewritten_wholly_or_not_at_all(stage: Stage) -> None:
    operation = BY_NAME["rewrite spec"]
    run = course(stage, operation)
    assert run.passed["shim.spec.renamed"]
    for victim in ("supervisor", NOBODY):
        row = crash(stage, operation, run, "shim.spec.written", victim, 1)
        assert row.outcome is not Outcome.MISSED
        assert not row.problems


def test_every_store_is_played() -> None:
    assert {BY_NAME[name].store for name in PLAYED} == {
        "content",
        "metadata",
        "overlayfs",
        "images",
        "mounts",
    }


def test_the_matrix_sees_what_is_wrong(stage: Stage) -> None:
    """Each invariant, broken by hand."""
    stage.afresh()
    with stage.client() as client:
        flipped, lost = (client.content.write(f"b{number}", b"blob %d" % number, labels=ROOT) for number in range(2))
        held = client.with_lease(client.leases.create("held").id)
        held.snapshots().prepare("key")
    root = stage.daemon.root
    assert settled(stage) == []
    blob = _blob(root, flipped)
    blob.chmod(0o600)
    blob.write_bytes(b"blob 7")
    _blob(root, lost).unlink()
    stray = str(Digest.of(b"stray"))
    _blob(root, stray).write_bytes(b"stray")
    (root / "content/ingest/stray").mkdir()
    (root / "snapshots/overlayfs/4711").mkdir()
    (root / "trash/entry").touch()
    with stage.database() as db:
        [(number,)] = db.execute("SELECT number FROM snapshots").fetchall()
    shutil.rmtree(root / f"snapshots/overlayfs/{number}")
    assert set(settled(stage, timeout_s=0)) == {
        f"not the bytes of its digest: {flipped}",
        f"a row without bytes: {lost}",
        f"bytes without a row: {stray}",
        "an ingest without a row: stray",
        "a snapshot's directory without a row: ('overlayfs', '4711')",
        f"a snapshot without a directory: ('overlayfs', '{number}')",
        "in the trash: entry",
    }
    stage.afresh()
    assert settled(stage, empty=True) == []


def test_the_matrix_sees_a_broken_promise(stage: Stage) -> None:
    def prepare(stage: Stage) -> None:
        stage.promise("never", lambda client: client.images.get("there/is:none"))

    operation = Operation(name="nothing", store="", prepare=prepare, perform=lambda _stage: None)
    with pytest.raises(Exception, match=r'never: was answered, and is not so: image "there/is:none": not found'):
        course(stage, operation)
    stage.afresh()


def _blob(root: Path, digest: str) -> Path:
    algorithm, _, name = digest.partition(":")
    return root / "content/blobs" / algorithm / name
