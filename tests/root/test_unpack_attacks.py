"""Hostile layers meet real workers: what they cannot do, how jobs end, and that nothing is left when they have."""

import asyncio
import gzip
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from orlop.base.errdefs import (
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
)
from orlop.core import trees
from orlop.core.diff import LayerBlob
from orlop.core.diff.apply import Plan
from orlop.core.diff.extract import Limits
from orlop.core.diff.workers import Pool
from orlop.core.mount import Mount
from orlop.core.mount.perform import temp_mount
from orlop.core.snapshots.directories import usage
from tests.hostile import tarballs as raw
from tests.hostile.tarballs import archive, directory, hardlink, member, pax, symlink
from tests.root.layers import Stack, apply_bytes, apply_file, digest, tree

pytestmark = pytest.mark.root


@pytest.fixture
def stack(tmp_path):
    return Stack(tmp_path)


@pytest.fixture
def target(tmp_path):
    """A directory to unpack into, on a small file system of its own."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,nr_inodes=2000", "tmpfs", path], check=True)
    inner = path / "tree"
    inner.mkdir()
    try:
        yield inner
    finally:
        subprocess.run(["umount", path], check=True)


def plain(path):
    return [Mount(type="bind", source=str(path), options=("rw", "rbind"))]


# -- a stack of layers --------------------------------------------------------------------------------------------


def test_a_link_of_a_lower_layer_leads_a_write_no_further_than_the_merged_root(stack, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    stack.add(blob=archive(symlink(b"door", os.fsencode(outside)), symlink(b"up", b"../../../../../..")))
    upper = stack.add(blob=archive(member(b"door/f", b"x"), member(b"up/g", b"x"), hardlink(b"h", b"up/g")))
    assert os.listdir(outside) == []
    assert (upper / str(outside).lstrip("/") / "f").is_file()
    assert (upper / "g").stat().st_nlink == 2


def test_a_whiteout_of_a_link_of_a_lower_layer_hides_the_link(stack):
    stack.add(blob=archive(directory(b"d"), member(b"d/f"), symlink(b"l", b"d")))
    stack.add(blob=archive(member(b".wh.l")))
    with temp_mount(stack.view()) as root:
        assert sorted(tree(root)) == ["d", "d/f"]


def test_an_opaque_mark_through_a_link_of_a_lower_layer_is_about_its_target(stack):
    stack.add(blob=archive(directory(b"d"), member(b"d/f"), symlink(b"l", b"d")))
    stack.add(blob=archive(member(b"l/.wh..wh..opq"), member(b"l/new")))
    with temp_mount(stack.view()) as root:
        assert sorted(tree(root)) == ["d", "d/new", "l"]


@pytest.mark.parametrize("order", ["first", "middle", "last"])
def test_an_opaque_mark_on_the_root_hides_every_lower_layer(stack, order):
    """overlayfs does not look for a mark there, so each name below is hidden for itself."""
    stack.add(blob=archive(member(b"old"), member(b"d/old"), directory(b"e", mode=0o700), symlink(b"l", b"e")))
    members = [member(b"d/new"), member(b"l/x"), member(b"f")]
    members.insert({"first": 0, "middle": 1, "last": 3}[order], member(b".wh..wh..opq"))
    stack.add(blob=archive(*members))
    with temp_mount(stack.view()) as root:
        found = sorted(tree(root))
    assert found == [
        "d",
        "d/new",
        *(["e", "e/x"] if order == "last" else []),
        "f",
        *(["l", "l/x"] if order != "last" else []),
    ]


def test_devices_and_set_uid_files_are_made_but_cannot_be_used_while_unpacking(stack):
    """The mount that a worker writes through has nodev, nosuid, noexec: see sandbox.harden."""
    upper = stack.add(blob=archive(raw.device(b"mem", 1, 1, mode=0o666), member(b"su", b"#!/bin/sh\n", mode=0o4755)))
    assert stat.S_ISCHR((upper / "mem").lstat().st_mode)
    assert stat.S_IMODE((upper / "su").stat().st_mode) == 0o4755


def test_a_hard_link_to_a_device_of_a_lower_layer_is_copied_up(stack):
    stack.add(blob=archive(raw.device(b"null", 1, 3, mode=0o666)))
    upper = stack.add(blob=archive(hardlink(b"again", b"null", mode=0o666)))
    assert (upper / "again").stat().st_rdev == os.makedev(1, 3)
    assert (upper / "again").stat().st_ino == (upper / "null").stat().st_ino


def test_a_layer_deeper_than_a_path_can_be_is_unpacked_and_removed(stack, tmp_path):
    step = b"/".join([b"d"] * 1500)
    upper = stack.add(
        blob=archive(
            pax([(b"path", step + b"/f")]),
            member(),
            pax([(b"linkpath", step)]),
            symlink(b"l", b""),
            pax([(b"path", b"l/" + step + b"/f")]),
            member(),
        )
    )
    assert usage(str(upper)).inodes == 1 + 3000 + 1 + 2
    trees.remove(upper)
    assert not upper.exists()
    stack.layers.clear()


def test_opaque_marks_deeper_than_a_path_can_be_are_refused(stack, tmp_path):
    stack.add(blob=archive(member(b"f")))
    step = b"/".join([b"d"] * 1500)
    with pytest.raises(InvalidArgumentError, match="lies too deep"):
        stack.add(
            blob=archive(
                pax([(b"path", step + b"/f")]),
                member(),
                pax([(b"linkpath", step)]),
                symlink(b"l", b""),
                pax([(b"path", b"l/" + step + b"/.wh..wh..opq")]),
                member(),
            )
        )
    trees.remove(tmp_path / "layer1")  # pytest could not


def test_security_attributes_cannot_fill_the_memory_of_who_sets_them(target, tmp_path):
    """A worker may not set them and reports them; 20 MB of them are more than that report takes."""
    entry = pax([(b"SCHILY.xattr.security.k%d" % number, b"x" * 60_000) for number in range(17)])
    blob = archive(*(entry + member(b"f%d" % number) for number in range(20)))
    with pytest.raises(ResourceExhaustedError, match="security attributes of more than"):
        apply_bytes(blob, plain(target), tmp_path)


# -- limits and the file system -----------------------------------------------------------------------------------


def test_an_error_names_layer_phase_entry_and_reason(target, tmp_path):
    blob = archive(member(b"fine"), hardlink(b"d/bad\n", b"nowhere"))
    with pytest.raises(InvalidArgumentError) as caught:
        apply_bytes(blob, plain(target), tmp_path)
    assert str(caught.value) == (
        f'layer {digest(blob)}: extract: entry "d/bad\\n": links to "nowhere", which does not exist: invalid argument'
    )


@pytest.mark.parametrize("what", ["bytes", "inodes", "one file"])
def test_a_full_disk_says_so_and_the_worker_is_gone(target, tmp_path, what):
    if what == "inodes":
        blob = archive(*(member(b"%d" % number) for number in range(2500)))
    elif what == "bytes":
        blob = archive(*(member(b"%d" % number, bytes(1 << 20)) for number in range(20)))
    else:
        blob = archive(member(b"big", bytes(20 << 20)))
    with pytest.raises(ResourceExhaustedError, match=r"extract: entry .*No space left on device") as caught:
        apply_bytes(gzip.compress(blob, 1), plain(target), tmp_path)
    assert caught.value.hint == "free space on the file system of the snapshots"


def test_a_bomb_fills_the_disk_and_no_memory(target, tmp_path):
    blob = gzip.compress(raw.header(b"zeros", size=1 << 30) + bytes(256 << 20), 1)
    with pytest.raises(ResourceExhaustedError, match="No space left"):
        apply_bytes(blob, plain(target), tmp_path)


def test_a_sparse_bomb_is_within_its_limit_or_refused(target, tmp_path):
    bomb = archive(raw.old_sparse(b"s", [(0, 0)], b"", real_size=raw.base256(1 << 41, 12)))
    with pytest.raises(ResourceExhaustedError, match="files of more than"):
        apply_bytes(bomb, plain(target), tmp_path)
    small = archive(raw.old_sparse(b"s", [(0, 1)], b"x", real_size=raw.base256(1 << 39, 12)))
    apply_bytes(small, plain(target), tmp_path)
    assert (target / "s").stat().st_size == 1 << 39
    assert (target / "s").stat().st_blocks < 100


def test_limits_are_told_as_such(target, tmp_path):
    blob = archive(*(member(b"%d" % number, b"x" * 2000) for number in range(50)))
    for limits, text in ((Limits(entries=20), "more than 20 entries"), (Limits(size=30_000), "more than 30000 bytes")):
        with pytest.raises(ResourceExhaustedError, match=text):
            apply_bytes(blob, plain(target), tmp_path, limits=limits)


def test_a_read_only_mount_is_refused_before_anything_is_started(tmp_path):
    with pytest.raises(FailedPreconditionError, match="read-only"):
        apply_bytes(archive(), [Mount(type="bind", source=str(tmp_path), options=("ro", "rbind"))], tmp_path)


def test_a_target_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InternalError, match="prepare"):
        apply_bytes(archive(), plain(tmp_path / "missing"), tmp_path)


# -- the worker's life --------------------------------------------------------------------------------------------


class Stalled:
    """A layer that comes through a pipe and stops in the middle: its worker waits for the rest."""

    def __init__(self, scratch: Path, target: Path) -> None:
        self.path = scratch / "blob"
        os.mkfifo(self.path)
        self._held = os.open(self.path, os.O_RDWR)
        os.set_blocking(self._held, True)
        beginning = archive(*(member(b"%d" % number, b"x" * 400) for number in range(20)))[:-1024]
        os.write(self._held, beginning)
        self._last = target / "19"

    async def under_way(self) -> None:
        async with asyncio.timeout(30):
            while not self._last.exists():  # noqa: ASYNC110 - another process makes it
                await asyncio.sleep(0.01)

    def layer(self) -> LayerBlob:
        return LayerBlob(media_type="", digest="sha256:" + "0" * 64)

    def close(self) -> None:
        os.close(self._held)


def workers(pool: Pool) -> list[int]:
    """Processes of the pool's jobs, the untrusted ones last."""
    assert pool._process is not None
    found, pending = [], [pool._process.pid]
    while pending:
        pid = pending.pop(0)
        try:
            inner = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        except FileNotFoundError:
            continue
        children = [pid for pid in map(int, inner.split()) if _runs(pid)]
        found += children
        pending += children
    return found


def stalled(tmp_path, target, scenario):
    async def run():
        stop = Stalled(tmp_path, target)
        try:
            async with Pool(1) as pool:
                job = asyncio.ensure_future(apply_file(pool, stop.path, stop.layer(), Plan.of(plain(target))))
                await stop.under_way()
                trusted, _worker = workers(pool)
                await _asleep(trusted)
                await scenario(pool, job)
                assert await _gone(lambda: workers(pool))
                # and the next layer is unpacked as if nothing had been
                blob = tmp_path / "next"
                blob.write_bytes(archive(member(b"next")))
                await apply_file(pool, blob, stop.layer(), Plan.of(plain(target)))
                assert (target / "next").exists()
        finally:
            stop.close()

    asyncio.run(run())


def test_a_cancelled_apply_has_no_process_when_its_caller_goes_on(tmp_path, target):
    async def scenario(_pool, job):
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job

    stalled(tmp_path, target, scenario)


def test_a_deadline_ends_the_worker(tmp_path, target):
    async def scenario(_pool, job):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(job, 0.01)

    stalled(tmp_path, target, scenario)


@pytest.mark.parametrize("which", [0, 1], ids=["trusted", "worker"])
def test_a_killed_process_ends_the_job_with_an_error(tmp_path, target, which):
    async def scenario(pool, job):
        os.kill(workers(pool)[which], signal.SIGKILL)
        with pytest.raises(InternalError, match=r"extract: .*(killed by SIGKILL|process died)"):
            await job

    stalled(tmp_path, target, scenario)


def test_a_killed_zygote_takes_its_jobs_along(tmp_path, target):
    async def run():
        stop = Stalled(tmp_path, target)
        try:
            async with Pool(1) as pool:
                job = asyncio.ensure_future(apply_file(pool, stop.path, stop.layer(), Plan.of(plain(target))))
                await stop.under_way()
                found = workers(pool)
                assert pool._process is not None
                pool._process.kill()
                with pytest.raises(InternalError, match="died"):
                    await job
                assert await _gone(lambda: [pid for pid in found if _runs(pid)])
                blob = tmp_path / "next"
                blob.write_bytes(archive(member(b"next")))
                await apply_file(pool, blob, stop.layer(), Plan.of(plain(target)))
        finally:
            stop.close()

    asyncio.run(run())


async def _asleep(pid: int) -> None:
    """Wait until the trusted process has handed on what its worker has said: while there is more it does not sleep."""
    async with asyncio.timeout(30):
        while _state(pid) != "S":  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)


async def _gone(left: Callable[[], list[int]]) -> bool:
    """Whether processes whose descriptors are closed have come to their very end."""
    for _ in range(1000):
        if not left():
            return True
        await asyncio.sleep(0.01)
    return False


def _runs(pid: int) -> bool:
    try:
        return _state(pid) not in "ZX"
    except FileNotFoundError:
        return False


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_two_jobs_at_once_do_not_disturb_each_other(tmp_path, target):
    """One is refused, one is fine, in the same pool at the same time."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(archive(*(member(b"good%d" % number) for number in range(200))))
    bad.write_bytes(archive(*(member(b"bad%d" % number) for number in range(200)), hardlink(b"x", b"nowhere")))
    layer = LayerBlob(media_type="", digest="sha256:" + "0" * 64)

    async def run():
        async with Pool(2) as pool:
            return await asyncio.gather(
                apply_file(pool, good, layer, Plan.of(plain(target))),
                apply_file(pool, bad, layer, Plan.of(plain(target))),
                return_exceptions=True,
            )

    fine, refused = asyncio.run(run())
    assert fine.digest == digest(good.read_bytes())
    assert isinstance(refused, InvalidArgumentError)


# -- what the sandbox refuses -------------------------------------------------------------------------------------


UNPACKING = "sandbox.enter([], [], sys.argv[1])"
READING = """sandbox.enter_trees({"tree": [Mount(type="bind", source=sys.argv[1], options=("rbind",))]})"""


def confined(attempts: str, enter: str = UNPACKING) -> list[str]:
    """Run statements in a process that is confined and locked as a worker is; what each of them came to."""
    program = f"""
import ctypes, errno, os, socket, sys
from orlop.core.diff import sandbox
from orlop.core.mount import Mount
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")
report = os.dup(1)
root = os.open(sys.argv[1], os.O_RDONLY)
{enter}
os.open(".", os.O_RDONLY)
pid = os.fork()
if pid == 0:
    sandbox.confine({{report, root}}, sandbox.{"UNPACKING" if enter == UNPACKING else "READING"}, "orlop-test")
    sandbox.lock()
    for attempt in {attempts!r}.splitlines():
        try:
            exec(attempt)
            outcome = "done"
        except OSError as error:
            outcome = errno.errorcode[error.errno]
        os.write(report, f"{{outcome}}\\n".encode())
    os._exit(0)
os.waitpid(pid, 0)
"""
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run([sys.executable, "-c", program, directory], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("enter", [UNPACKING, READING], ids=["unpacking", "reading"])
def test_system_calls_that_a_worker_does_not_need_are_refused(enter):
    attempts = """socket.socket(socket.AF_UNIX)
socket.socket(socket.AF_INET)
os.fork()
os.execv("/bin/true", ["true"])
os.kill(1, 0)
os.mount if False else call(165, b"none", b"/tree", b"tmpfs", 0, None)
call(161, b"/tree")
call(155, b".", b".")
call(272, 0x20000)
call(101, 16, 1, 0, 0)
call(321, 0, 0, 0)
call(323, 0)
call(425, 1, 0)
call(304, 0, 0, 0)
call(437, -100, b"/", 0, 0)
call(105, 0)
call(157, 4, 1, 0, 0, 0)
call(320, 0, 0, 0, 0)
call(175, 0, 0, b"")
call(250, 0, 0, 0)
call(434, 1, 0)
call(310, 1, 0, 0, 0, 0, 0)
os.unlink("x") if False else call(87, b"x")
call(2, b"/", 0)
call(16, 0, 0, 0)
os.memfd_create("x")
os.chroot("/")
os.setxattr("/tree", "trusted.x", b"y")"""
    outcomes = confined(attempts, enter)
    assert set(outcomes) == {"EPERM"}
    assert len(outcomes) == len(attempts.splitlines())


def test_what_the_worker_sees_is_the_tree_and_nothing_else():
    outcomes = confined(
        """os.open("/etc/passwd", os.O_RDONLY)
os.open("/proc", os.O_RDONLY)
os.open("/tree/x", os.O_WRONLY | os.O_CREAT)
os.open("/x", os.O_WRONLY | os.O_CREAT)
os.open("..", os.O_RDONLY)
os.open("/dev/null", os.O_RDONLY)"""
    )
    assert outcomes == ["ENOENT", "ENOENT", "done", "EROFS", "done", "ENOENT"]


def test_who_reads_a_tree_can_change_nothing():
    outcomes = confined(
        """os.open("/etc/passwd", os.O_RDONLY)
os.open("/tree/x", os.O_WRONLY | os.O_CREAT)
os.mkdir("x", dir_fd=os.open("/tree", os.O_RDONLY))
os.chown(os.open("/tree", os.O_RDONLY), 1, 1)
os.mknod("x", 0o20666, 259, dir_fd=os.open("/tree", os.O_RDONLY))
os.open("/x", os.O_WRONLY | os.O_CREAT)""",
        READING,
    )
    assert outcomes == ["ENOENT", "EROFS", "EROFS", "EROFS", "EROFS", "EROFS"]
