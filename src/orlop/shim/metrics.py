"""A container's statistics as containerd's messages: `io.containerd.cgroups.v1.Metrics` or `v2.Metrics`.

A hybrid host whose controllers are all in v1 answers with v1's message. A file that the kernel does not have leaves its
fields at zero; a cgroup that has gone is an error.

Source: the kernel's admin-guide/cgroup-v1 and cgroup-v2; the Stat functions of github.com/containerd/cgroups.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from google.protobuf.message import Message

from orlop.api.cgroups.v1 import metrics_pb2 as v1
from orlop.api.cgroups.v2 import metrics_pb2 as v2
from orlop.base.errdefs import NotFoundError
from orlop.shim import cgroup

_NS_PER_S: Final = 10**9
_MAX: Final = (1 << 64) - 1

# memory.stat of v1 has names that the message spells otherwise.
_V1_MEMORY: Final = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
    "total_pgpgin": "total_pg_pg_in",
    "total_pgpgout": "total_pg_pg_out",
    "total_pgfault": "total_pg_fault",
    "total_pgmajfault": "total_pg_maj_fault",
}
# Field of the message: files that may have it, the first that has anything counts (schedulers differ).
_V1_BLKIO: Final = {
    "io_service_bytes_recursive": (
        "blkio.io_service_bytes_recursive",
        "blkio.bfq.io_service_bytes_recursive",
        "blkio.throttle.io_service_bytes_recursive",
        "blkio.throttle.io_service_bytes",
    ),
    "io_serviced_recursive": (
        "blkio.io_serviced_recursive",
        "blkio.bfq.io_serviced_recursive",
        "blkio.throttle.io_serviced_recursive",
        "blkio.throttle.io_serviced",
    ),
    "io_queued_recursive": ("blkio.io_queued_recursive", "blkio.bfq.io_queued_recursive"),
    "io_service_time_recursive": ("blkio.io_service_time_recursive", "blkio.bfq.io_service_time_recursive"),
    "io_wait_time_recursive": ("blkio.io_wait_time_recursive", "blkio.bfq.io_wait_time_recursive"),
    "io_merged_recursive": ("blkio.io_merged_recursive", "blkio.bfq.io_merged_recursive"),
    "io_time_recursive": ("blkio.time_recursive", "blkio.bfq.time_recursive"),
    "sectors_recursive": ("blkio.sectors_recursive", "blkio.bfq.sectors_recursive"),
}


def read(container: str, paths: cgroup.Paths) -> v1.Metrics | v2.Metrics:
    """What the kernel counts now.

    Raises:
        NotFoundError: the container has no cgroup of its own, or no more.
    """
    if paths.v1:
        there = {name: path for name, path in paths.v1.items() if os.path.isdir(path)}
        if there:
            return _read_v1(there)
    elif paths.v2 and os.path.isdir(paths.v2):
        return _read_v2(paths.v2)
    raise NotFoundError(f'cgroup of container "{container}"')


# ---- v1


def _read_v1(paths: dict[str, str]) -> v1.Metrics:
    metrics = v1.Metrics()
    if "pids" in paths:
        metrics.pids.current = _number(f"{paths['pids']}/pids.current")
        metrics.pids.limit = _number(f"{paths['pids']}/pids.max", otherwise=0)
    if "cpuacct" in paths:
        _read_cpuacct(metrics.cpu.usage, paths["cpuacct"])
    if "cpu" in paths:
        stat = _pairs(f"{paths['cpu']}/cpu.stat")
        metrics.cpu.throttling.periods = stat.get("nr_periods", 0)
        metrics.cpu.throttling.throttled_periods = stat.get("nr_throttled", 0)
        metrics.cpu.throttling.throttled_time = stat.get("throttled_time", 0)
    if "memory" in paths:
        _read_memory(metrics, paths["memory"])
    if "blkio" in paths:
        _read_blkio(metrics.blkio, paths["blkio"])
    if "hugetlb" in paths:
        for size in _huge_pages(paths["hugetlb"], ".usage_in_bytes"):
            name = f"{paths['hugetlb']}/hugetlb.{size}"
            one = metrics.hugetlb.add(pagesize=size, usage=_number(f"{name}.usage_in_bytes"))
            one.max = _number(f"{name}.max_usage_in_bytes")
            one.failcnt = _number(f"{name}.failcnt")
    if "rdma" in paths:
        _read_rdma(metrics.rdma, paths["rdma"])
    return metrics


def _read_cpuacct(usage: v1.CPUUsage, path: str) -> None:
    usage.total = _number(f"{path}/cpuacct.usage")
    stat = _pairs(f"{path}/cpuacct.stat")
    ns_per_tick = _NS_PER_S // os.sysconf("SC_CLK_TCK")
    usage.user = stat.get("user", 0) * ns_per_tick
    usage.kernel = stat.get("system", 0) * ns_per_tick
    usage.per_cpu.extend(int(word) for line in _lines(f"{path}/cpuacct.usage_percpu") for word in line.split())


def _read_memory(metrics: v1.Metrics, path: str) -> None:
    _set_all(metrics.memory, {_V1_MEMORY.get(name, name): n for name, n in _pairs(f"{path}/memory.stat").items()})
    entries = (
        (metrics.memory.usage, "memory"),
        (metrics.memory.swap, "memory.memsw"),
        (metrics.memory.kernel, "memory.kmem"),
        (metrics.memory.kernel_tcp, "memory.kmem.tcp"),
    )
    for entry, name in entries:
        if os.path.exists(f"{path}/{name}.usage_in_bytes"):
            entry.usage = _number(f"{path}/{name}.usage_in_bytes")
            entry.max = _number(f"{path}/{name}.max_usage_in_bytes")
            entry.failcnt = _number(f"{path}/{name}.failcnt")
            entry.limit = _number(f"{path}/{name}.limit_in_bytes")
    _set_all(metrics.memory_oom_control, _pairs(f"{path}/memory.oom_control"))


def _read_blkio(target: v1.BlkIOStat, path: str) -> None:
    names: dict[str, str] | None = None
    for field, files in _V1_BLKIO.items():
        for file in files:
            found = [words for words in map(str.split, _lines(f"{path}/{file}")) if ":" in words[0]]
            if not found:
                continue
            names = _device_names() if names is None else names
            for device, *operation, value in found:
                major, _, minor = device.partition(":")
                getattr(target, field).add(
                    op=operation[0] if operation else "",
                    device=names.get(device, ""),
                    major=int(major),
                    minor=int(minor),
                    value=int(value),
                )
            break


def _device_names() -> dict[str, str]:
    found = {}
    for line in _lines("/proc/partitions"):
        words = line.split()
        if len(words) == 4 and words[0].isdigit():
            found[f"{words[0]}:{words[1]}"] = f"/dev/{words[3]}"
    return found


# ---- v2


def _read_v2(path: str) -> v2.Metrics:
    metrics = v2.Metrics()
    if os.path.exists(f"{path}/pids.current"):
        metrics.pids.current = _number(f"{path}/pids.current")
        metrics.pids.limit = _number(f"{path}/pids.max", otherwise=_MAX)
    _set_all(metrics.cpu, _pairs(f"{path}/cpu.stat"))
    _read_pressure(metrics.cpu.psi, f"{path}/cpu.pressure")
    if os.path.exists(f"{path}/memory.current"):
        _read_memory_v2(metrics, path)
    for line in _lines(f"{path}/io.stat"):
        device, *words = line.split()
        major, _, minor = device.partition(":")
        one = metrics.io.usage.add(major=int(major), minor=int(minor))
        _set_all(one, {name: int(n) for name, _, n in (word.partition("=") for word in words) if n.isdigit()})
    if metrics.HasField("io"):
        _read_pressure(metrics.io.psi, f"{path}/io.pressure")
    for size in _huge_pages(path, ".current"):
        name = f"{path}/hugetlb.{size}"
        huge = metrics.hugetlb.add(pagesize=size, current=_number(f"{name}.current"))
        huge.max = _number(f"{name}.max", otherwise=_MAX)
        huge.failcnt = _pairs(f"{name}.events").get("max", 0)
    _read_rdma(metrics.rdma, path)
    return metrics


def _read_memory_v2(metrics: v2.Metrics, path: str) -> None:
    memory = metrics.memory
    stat = _pairs(f"{path}/memory.stat")
    # Split into anon and file from Linux 5.9 on.
    for name in ("workingset_refault", "workingset_activate"):
        stat.setdefault(name, stat.get(f"{name}_anon", 0) + stat.get(f"{name}_file", 0))
    _set_all(memory, stat)
    memory.usage = _number(f"{path}/memory.current")
    memory.usage_limit = _number(f"{path}/memory.max", otherwise=_MAX)
    memory.max_usage = _number(f"{path}/memory.peak")
    memory.swap_usage = _number(f"{path}/memory.swap.current")
    memory.swap_limit = _number(f"{path}/memory.swap.max", otherwise=_MAX)
    memory.swap_max_usage = _number(f"{path}/memory.swap.peak")
    _read_pressure(memory.psi, f"{path}/memory.pressure")
    _set_all(metrics.memory_events, _pairs(f"{path}/memory.events"))


def _read_pressure(target: v2.PSIStats, path: str) -> None:
    for line in _lines(path):
        kind, *words = line.split()
        if kind in ("some", "full"):
            one = target.some if kind == "some" else target.full
            values = dict(word.split("=", 1) for word in words)
            one.avg10, one.avg60, one.avg300 = (float(values.get(f"avg{n}", 0)) for n in (10, 60, 300))
            one.total = int(values.get("total", 0))


# ---- both


def _read_rdma(target: v1.RdmaStat | v2.RdmaStat, path: str) -> None:
    for file, entries in (("rdma.current", target.current), ("rdma.max", target.limit)):
        for line in _lines(f"{path}/{file}"):
            device, *words = line.split()
            values = dict(word.split("=", 1) for word in words if "=" in word)
            # In the message these are 32 bits wide, and "max" is all of them.
            handles, objects = (
                min(int(n), 0xFFFFFFFF) if n.isdigit() else 0xFFFFFFFF
                for n in (values.get("hca_handle", "0"), values.get("hca_object", "0"))
            )
            entries.add(device=device, hca_handles=handles, hca_objects=objects)


def _huge_pages(path: str, ending: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(path)):
            if name.startswith("hugetlb.") and name.endswith(ending) and ".rsvd" not in name:
                yield name.removeprefix("hugetlb.").removesuffix(ending)


def _set_all(target: Message, values: dict[str, int]) -> None:
    """Set the numbers that `target` has fields for; a file's word may also be the name of a message (`swap`)."""
    known = target.DESCRIPTOR.fields_by_name
    for name, value in values.items():
        if name in known and known[name].message_type is None:
            setattr(target, name, value)


def _lines(path: str) -> list[str]:
    # A controller that the kernel was built without has no file, and a cgroup may go while it is read.
    try:
        with open(path, encoding="ascii") as file:
            return [line for line in file.read().splitlines() if line.strip()]
    except OSError:
        return []


def _number(path: str, *, otherwise: int = 0) -> int:
    """The number in a file; `otherwise` for "max", 0 if there is no such file."""
    lines = _lines(path)
    if not lines:
        return 0
    word = lines[0].strip()
    return int(word) if word.isdigit() else otherwise


def _pairs(path: str) -> dict[str, int]:
    """Lines of name and number."""
    found = {}
    for line in _lines(path):
        name, _, value = line.partition(" ")
        if value.strip().isdigit():
            found[name] = int(value)
    return found
