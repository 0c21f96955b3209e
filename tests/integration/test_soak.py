"""The soak of `make soak`, made small enough for every run: what is loaded, compared and promised is the same."""

from pathlib import Path

import pytest

from tools.soak import Scale, judge, soak
from tools.vitals import Vitals

NOTHING = Vitals(**dict.fromkeys(Vitals.__slots__, 0))


@pytest.mark.root
@pytest.mark.timeout(400)
def test_a_soak(short_directory: Path, busybox_image: object) -> None:
    """Nothing is held after load that was not before; two minutes at most on an idle machine."""
    scale = Scale().times(0.04)
    soak(short_directory / "soak", scale, scale.times(0.1), seconds=75, say=print)


def test_what_counts_as_held() -> None:
    """A mount, a process, a cgroup, a row or a file is a leak at once; memory and descriptors above their reasons."""
    assert judge(NOTHING, NOTHING, 0) == []
    for name in ("processes", "mounts", "cgroups", "rows", "files"):
        assert judge(NOTHING, _with(name, 1), 1000) == [f"{name}: 1 more than after the first round"]
    for name in ("daemon_descriptors", "helper_descriptors", "daemon_threads", "helper_threads"):
        assert judge(NOTHING, _with(name, 4), 1000) == []
        assert judge(NOTHING, _with(name, 20), 1000) == [f"{name}: 20 more than after the first round"]
    assert judge(NOTHING, _with("daemon_bytes", 24 << 20), 0) == []
    assert judge(NOTHING, _with("daemon_bytes", 25 << 20), 0) == [
        "daemon_bytes: 25.0 MiB more than after the first round"
    ]
    assert judge(NOTHING, _with("daemon_bytes", 25 << 20), 0, peak=20 << 20) == [], "a part of the peak may stay"


def _with(name: str, value: int) -> Vitals:
    return Vitals(**{**dict.fromkeys(Vitals.__slots__, 0), name: value})
