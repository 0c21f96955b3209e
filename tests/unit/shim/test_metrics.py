"""Statistics out of a cgroup's files, as kernels write them."""

from pathlib import Path

import pytest

from orlop.api.cgroups.v1 import metrics_pb2 as v1
from orlop.api.cgroups.v2 import metrics_pb2 as v2
from orlop.base.errdefs import NotFoundError
from orlop.shim import cgroup, metrics

V2_FILES = {
    "pids.current": "3\n",
    "pids.max": "max\n",
    "cpu.stat": "usage_usec 12345\nuser_usec 10000\nsystem_usec 2345\nnr_periods 5\nnr_throttled 2\nthrottled_usec 77\n"
    "nr_bursts 1\nburst_usec 9\n",
    "cpu.pressure": "some avg10=1.50 avg60=0.50 avg300=0.25 total=4242\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "memory.current": "4096000\n",
    "memory.max": "67108864\n",
    "memory.peak": "5000000\n",
    "memory.swap.current": "0\n",
    "memory.swap.max": "max\n",
    "memory.stat": "anon 1000\nfile 2000\nkernel_stack 16384\nworkingset_refault_anon 3\n"
    "workingset_refault_file 4\npgfault 99\n",
    "memory.events": "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n",
    "io.stat": "8:0 rbytes=90112 wbytes=8192 rios=3 wios=1 dbytes=0 dios=0\n7:1 \n",
    "hugetlb.2MB.current": "2097152\n",
    "hugetlb.2MB.max": "max\n",
    "hugetlb.2MB.events": "max 6\n",
    "rdma.current": "mlx4_0 hca_handle=2 hca_object=2000\n",
    "rdma.max": "mlx4_0 hca_handle=3 hca_object=max\n",
}


def write(directory: Path, files: dict[str, str]) -> Path:
    directory.mkdir(exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


def test_v2(tmp_path: Path):
    found = metrics.read("c", cgroup.Paths(v2=str(write(tmp_path / "c", V2_FILES))))
    assert isinstance(found, v2.Metrics)
    assert (found.pids.current, found.pids.limit) == (3, (1 << 64) - 1)
    assert (found.cpu.usage_usec, found.cpu.throttled_usec, found.cpu.burst_usec) == (12345, 77, 9)
    assert (found.cpu.psi.some.avg10, found.cpu.psi.some.total) == (1.5, 4242)
    memory = found.memory
    assert (memory.usage, memory.usage_limit, memory.max_usage) == (4096000, 67108864, 5000000)
    assert (memory.anon, memory.file, memory.workingset_refault, memory.pgfault) == (1000, 2000, 7, 99)
    assert memory.swap_limit == (1 << 64) - 1
    assert (found.memory_events.oom_kill, found.memory_events.oom_group_kill) == (4, 5)
    assert (found.io.usage[0].major, found.io.usage[0].rbytes, found.io.usage[0].wios) == (8, 90112, 1)
    assert (found.hugetlb[0].pagesize, found.hugetlb[0].current, found.hugetlb[0].failcnt) == ("2MB", 2097152, 6)
    assert (found.rdma.limit[0].hca_handles, found.rdma.limit[0].hca_objects) == (3, 0xFFFFFFFF)


def test_v2_without_controllers(tmp_path: Path):
    found = metrics.read("c", cgroup.Paths(v2=str(write(tmp_path / "c", {"cpu.stat": "usage_usec 1\n"}))))
    assert isinstance(found, v2.Metrics)
    assert not found.HasField("pids")
    assert not found.HasField("io")
    assert found.cpu.usage_usec == 1


def test_v1(tmp_path: Path):
    paths = {
        "pids": {"pids.current": "2\n", "pids.max": "max\n"},
        "cpuacct": {"cpuacct.usage": "5\n", "cpuacct.stat": "user 3\nsystem 1\n", "cpuacct.usage_percpu": "2 3 \n"},
        "cpu": {"cpu.stat": "nr_periods 1\nnr_throttled 2\nthrottled_time 3\n"},
        "memory": {
            "memory.stat": "cache 1\nrss 2\npgpgin 3\nhierarchical_memsw_limit 4\nswap 5\ntotal_pgmajfault 6\n",
            "memory.usage_in_bytes": "10\n",
            "memory.max_usage_in_bytes": "11\n",
            "memory.failcnt": "12\n",
            "memory.limit_in_bytes": "9223372036854771712\n",
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 1\noom_kill 7\n",
        },
        "blkio": {
            "blkio.throttle.io_service_bytes": "8:0 Read 4096\n8:0 Write 1\nTotal 4097\n",
            "blkio.throttle.io_serviced": "Total 0\n",
        },
        "hugetlb": {
            "hugetlb.2MB.usage_in_bytes": "1\n",
            "hugetlb.2MB.max_usage_in_bytes": "2\n",
            "hugetlb.2MB.failcnt": "3\n",
        },
    }
    places = {name: str(write(tmp_path / name, files)) for name, files in paths.items()}
    found = metrics.read("c", cgroup.Paths(v1=places, v2=str(tmp_path)))
    assert isinstance(found, v1.Metrics)
    assert (found.pids.current, found.pids.limit) == (2, 0)
    assert (found.cpu.usage.total, list(found.cpu.usage.per_cpu)) == (5, [2, 3])
    assert found.cpu.usage.user == 3 * found.cpu.usage.kernel > 0
    assert found.cpu.throttling.throttled_time == 3
    assert (found.memory.cache, found.memory.pg_pg_in, found.memory.hierarchical_swap_limit) == (1, 3, 4)
    assert found.memory.total_pg_maj_fault == 6
    assert (found.memory.usage.usage, found.memory.usage.limit) == (10, 9223372036854771712)
    assert not found.memory.HasField("swap")
    assert (found.memory_oom_control.under_oom, found.memory_oom_control.oom_kill) == (1, 7)
    reads = found.blkio.io_service_bytes_recursive
    assert [(one.op, one.major, one.value) for one in reads] == [("Read", 8, 4096), ("Write", 8, 1)]
    assert (found.hugetlb[0].pagesize, found.hugetlb[0].failcnt) == ("2MB", 3)


def test_a_cgroup_that_has_gone(tmp_path: Path):
    for paths in (cgroup.Paths(), cgroup.Paths(v2=str(tmp_path / "none")), cgroup.Paths(v1={"memory": "/none"})):
        with pytest.raises(NotFoundError, match='cgroup of container "c"'):
            metrics.read("c", paths)
