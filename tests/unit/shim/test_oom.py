"""Memory exhaustion on cgroup v2, played on a tree of files: inotify does not mind which file system they are on."""

import asyncio
from pathlib import Path

from orlop.shim import cgroup
from orlop.shim.oom import OomWatcher

LIMIT_S = 10.0


def events(directory: Path, kills: int) -> None:
    (directory / "memory.events").write_text(f"low 0\nhigh 3\nmax 7\noom {kills}\noom_kill {kills}\noom_group_kill 0\n")


async def told(queue: asyncio.Queue[str]) -> str:
    async with asyncio.timeout(LIMIT_S):
        return await queue.get()


def test_each_kill_is_told_and_nothing_else(tmp_path: Path) -> None:
    async def main() -> None:
        queue: asyncio.Queue[str] = asyncio.Queue()
        watcher = OomWatcher(queue.put_nowait)
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            events(tmp_path / name, 1)  # what was before the watch is not told
            watcher.watch(name, cgroup.Paths(v2=str(tmp_path / name)))
        events(tmp_path / "a", 1)  # written, and no more kills than before
        events(tmp_path / "b", 2)
        assert await told(queue) == "b"
        events(tmp_path / "a", 2)
        assert await told(queue) == "a"
        watcher.unwatch("a")
        events(tmp_path / "a", 9)
        events(tmp_path / "b", 3)
        assert await told(queue) == "b"
        assert queue.empty()
        watcher.close()

    asyncio.run(main())


def test_what_happened_just_before_the_exit_is_told_when_it_is_looked_at(tmp_path: Path) -> None:
    async def main() -> list[str]:
        seen: list[str] = []
        watcher = OomWatcher(seen.append)
        events(tmp_path, 0)
        watcher.watch("a", cgroup.Paths(v2=str(tmp_path)))
        events(tmp_path, 1)
        watcher.check("a")  # the loop has not come round to inotify yet
        await asyncio.sleep(0)
        watcher.close()
        return seen

    assert asyncio.run(main()) == ["a"]


def test_a_cgroup_that_is_not_there_is_no_trouble(tmp_path: Path) -> None:
    async def main() -> None:
        watcher = OomWatcher(lambda _container: None)
        watcher.watch("a", cgroup.Paths(v2=str(tmp_path / "none")))
        watcher.watch("b", cgroup.Paths(v1={"memory": str(tmp_path / "none")}))
        watcher.watch("c", cgroup.Paths())
        watcher.check("a")
        watcher.unwatch("a")
        watcher.close()

    asyncio.run(main())
