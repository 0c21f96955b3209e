"""Small parts of the supervisor: records, options, stdio addresses, the reaper, keepers, oom by inotify."""

import asyncio
import os
import signal
import stat
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any

from orlop.api.types.runc.options import oci_pb2
from orlop.api.types.runtimeoptions.v1 import api_pb2
from orlop.base.errdefs import InvalidArgumentError, NotFoundError, UnimplementedError
from orlop.shim import cgroup, keeper, options, records, sinks
from orlop.shim.oom import OomWatcher
from orlop.shim.reaper import Exit, Reaper
from orlop.shim.records import Record
from orlop.shim.spawn import spawn

# ---- records


def test_record_comes_back(tmp_path: Path):
    record = Record(
        boot="b", container="c", exec_id="e", pid=7, start_time=8, status=records.RUNNING, keeper={"pid": 9}
    )
    records.write(str(tmp_path), record)
    assert records.read(records.path(str(tmp_path), "e")) == record
    assert records.read_all(str(tmp_path), "b") == []  # no init, no task
    records.write(str(tmp_path), Record(boot="b", container="c"))
    assert [one.exec_id for one in records.read_all(str(tmp_path), "b")] == ["", "e"]
    assert records.read_all(str(tmp_path), "another boot") == []
    assert sorted(os.listdir(tmp_path / "orlop")) == ["exec-e.json", "init.json"]


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"boot": 1}', b"\xff"])
def test_no_record(tmp_path: Path, text: bytes):
    (tmp_path / "x").write_bytes(text)
    assert records.read(str(tmp_path / "x")) is None


def test_record_of_a_later_release():
    assert Record.from_json(b'{"boot": "b", "container": "c", "mood": "good"}') == Record(boot="b", container="c")


# ---- options


def test_options_of_runc():
    message = oci_pb2.Options(binary_name="crun", root="/r", systemd_cgroup=True, io_uid=5)
    found = options.parse(Any(type_url="containerd.runc.v1.Options", value=message.SerializeToString()))
    assert (found.binary, found.root, found.systemd_cgroup, found.io_uid) == ("crun", "/r", True, 5)
    assert options.parse(None) == options.parse(Any()) == options.Options()


def test_options_from_a_file(tmp_path: Path):
    (tmp_path / "o.toml").write_text('BinaryName = "crun"\nSystemdCgroup = true\nIoUid = 3\n')
    message = api_pb2.Options(config_path=str(tmp_path / "o.toml"))
    found = options.parse(Any(type_url="runtimeoptions.v1.Options", value=message.SerializeToString()))
    assert (found.binary, found.systemd_cgroup, found.io_uid) == ("crun", True, 3)


def test_options_that_are_wrong(tmp_path: Path):
    with pytest.raises(InvalidArgumentError):
        options.parse(Any(type_url="containerd.runc.v1.Options", value=b"\xff"))
    with pytest.raises(UnimplementedError):
        options.parse(Any(type_url="containerd.runhcs.v1.Options", value=b""))
    message = api_pb2.Options(config_path=str(tmp_path / "none"))
    with pytest.raises(InvalidArgumentError, match="none"):
        options.parse(Any(type_url="runtimeoptions.v1.Options", value=message.SerializeToString()))


# ---- stdio


def test_stdio_addresses():
    assert sinks.split("/a") == ("fifo", "/a")
    assert sinks.split("fifo:///a") == ("fifo", "/a")
    assert sinks.split("file:///a b") == ("file", "/a b")
    assert sinks.split("binary:///a?b=c") == ("binary", "/a?b=c")
    for address in ("a", "file://a", "http:///a", "/a\0b"):
        with pytest.raises(InvalidArgumentError):
            sinks.split(address)


def test_only_fifos_files_and_devices(tmp_path: Path):
    (tmp_path / "link").symlink_to("/dev/null")
    for path in (tmp_path, tmp_path / "link"):
        with pytest.raises(InvalidArgumentError):
            sinks.open_place(str(path), "stdout")


def test_links_on_the_way_are_followed_that_root_made(tmp_path: Path):
    (tmp_path / "here").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "here" / "fifo")
    (tmp_path / "far").symlink_to(tmp_path / "here")
    (tmp_path / "near").symlink_to("./far/../here")
    (tmp_path / "round").symlink_to("round")
    try:
        for name in ("far", "near"):
            fd, kind = sinks.open_place(f"{tmp_path}/{name}//fifo", "stdout")
            try:
                assert os.path.samestat(os.fstat(fd), (tmp_path / "here" / "fifo").stat())
                assert kind == stat.S_IFIFO
            finally:
                os.close(fd)
    except InvalidArgumentError:
        assert os.geteuid() != 0
    if os.geteuid() == 0:
        os.chown(tmp_path / "far", 65534, 65534, follow_symlinks=False)
    before = len(os.listdir("/proc/self/fd"))
    for name in ("far", "near", "round", "file"):
        with pytest.raises(InvalidArgumentError, match=f"stdout {tmp_path}/{name}/fifo: "):
            sinks.open_place(f"{tmp_path}/{name}/fifo", "stdout")
    with pytest.raises(NotFoundError):
        sinks.open_place(f"{tmp_path}/here/none", "stdout")
    assert len(os.listdir("/proc/self/fd")) == before


# ---- children


def ended_but_not_reaped(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_reaper_keeps_exits_that_come_before_their_pid_is_known():
    async def main() -> list[Exit]:
        reaper = Reaper()
        reaper.start(asyncio.get_running_loop())
        found: list[Exit] = []
        with reaper.expecting():
            pid = spawn(["/bin/sh", "-c", "exit 5"], env={})
            ended_but_not_reaped(pid)
            reaper.reap()
            reaper.watch(pid, found.append)
        killed = spawn(["/bin/sleep", "100"], env={})
        ended = reaper.future(killed)
        os.kill(killed, signal.SIGTERM)
        found.append(await ended)
        forgotten = spawn(["/bin/true"], env={})
        ended_but_not_reaped(forgotten)
        reaper.reap()
        assert reaper._unclaimed == {}
        return found

    assert [exit_.status for exit_ in asyncio.run(main())] == [5, 128 + signal.SIGTERM]


def test_children_start_with_default_signals():
    reader, writer = os.pipe()
    # who runs the tests in the background of a shell has these two ignored, which is inherited
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGQUIT)}
    try:
        pid = spawn(["/bin/grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"], env={}, stdout=writer)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    os.close(writer)
    with open(reader, encoding="ascii") as file:
        assert {line.split()[1] for line in file} == {"0" * 16}
    os.waitpid(pid, 0)


@pytest.mark.parametrize("forbidden", [False, True])
def test_keeper_keeps(monkeypatch: pytest.MonkeyPatch, forbidden: bool):
    if forbidden:
        monkeypatch.setattr(keeper, "_program", lambda: -1)
    reader, writer = os.pipe()
    kept = keeper.start("test", {"w": writer})
    os.close(writer)
    (fetched,) = kept.fetch().values()
    os.write(fetched, b"x")
    os.close(fetched)
    assert os.read(reader, 1) == b"x"
    later = keeper.Keeper(kept.pid, kept.start_time + 1, {"w": writer})
    assert later.fetch() == {}
    later.end()
    kept.end()
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(kept.pid, 0)[1]) == -signal.SIGKILL


# ---- memory


def test_out_of_memory_in_v2_is_seen(tmp_path: Path):
    events = tmp_path / "memory.events"
    events.write_text("oom 0\noom_kill 1\n")

    async def main() -> list[str]:
        told: list[str] = []
        arrived = asyncio.Event()

        def tell(container: str) -> None:
            told.append(container)
            arrived.set()

        watcher = OomWatcher(tell)
        watcher.watch("c", cgroup.Paths(v2=str(tmp_path)))
        events.write_text("oom 1\noom_kill 1\n")  # reached the limit, killed nobody
        events.write_text("oom 2\noom_kill 2\n")
        async with asyncio.timeout(10):
            await arrived.wait()
        watcher.unwatch("c")
        watcher.watch("none", cgroup.Paths(v2="/none"))
        watcher.close()
        return told

    assert asyncio.run(main()) == ["c"]
