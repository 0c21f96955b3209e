"""Finding a cgroup to write to, and when the writing happens."""

import os
import threading

from orlop.linux import cgroup_warmth
from orlop.linux.cgroup_warmth import Warmth


def test_the_file_of_the_own_cgroup_is_found_on_v2_v1_and_hybrid(tmp_path):
    mountinfo, cgroups = tmp_path / "mountinfo", tmp_path / "cgroup"
    for name in ("unified/a", "memory/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "cgroup.procs").touch()
    v2 = f"30 25 0:26 / {tmp_path}/unified rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
    v1 = f"31 25 0:27 / {tmp_path}/memory rw,nosuid shared:5 - cgroup cgroup rw,memory\n"
    for text, own, wanted in (
        (v2, "0::/a\n", "unified/a"),
        (v1, "3:memory:/b\n", "memory/b"),
        (v1 + v2, "4:pids:/x\n3:memory:/b\n0::/a\n", "memory/b"),
    ):
        mountinfo.write_text(text)
        cgroups.write_text(own)
        found = cgroup_warmth.own_procs_file(str(cgroups), str(mountinfo))
        assert found == f"{tmp_path}/{wanted}/cgroup.procs"
    mountinfo.write_text("")
    assert cgroup_warmth.own_procs_file(str(cgroups), str(mountinfo)) is None


def test_it_writes_from_a_touch_on_and_ends_when_closed(monkeypatch, tmp_path):
    procs = tmp_path / "cgroup.procs"
    procs.touch()
    written = threading.Event()
    real_write = os.write

    def write(descriptor, data):
        written.set()
        return real_write(descriptor, data)

    monkeypatch.setattr(cgroup_warmth, "own_procs_file", lambda: str(procs))
    monkeypatch.setattr(os, "write", write)
    warmth = Warmth(window_s=0.05)
    warmth.touch()
    assert written.wait(10)
    warmth.close()
    assert set(procs.read_text()) == {"0"}


def test_where_it_cannot_work_nothing_happens(monkeypatch, tmp_path):
    monkeypatch.setattr(cgroup_warmth, "own_procs_file", lambda: str(tmp_path / "none"))
    warmth = Warmth(window_s=10)
    warmth.touch()
    warmth.close()
