"""Metrics of cgroup v1: from io.containerd.cgroups.v1.Metrics to containerd's names.

Source: core/metrics/cgroups/v1 of containerd, whose odd units (bytes of page faults) are kept: dashboards know them.
"""

from typing import Final

from orlop.core.metrics import Family, named

_DEVICE: Final = ("op", "device", "major", "minor")

# Names whose spelling in the message differs from the metric's.
_SPELT: Final = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
}
_MEMORY: Final = (
    *("cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback", "pgpgin", "pgpgout", "pgfault", "pgmajfault"),
    *("inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable"),
)
_LIMITS: Final = ("hierarchical_memory_limit", "hierarchical_memsw_limit")


def _memory(name: str) -> Family:
    plain = name.removeprefix("total_")
    field = name.replace(plain, _SPELT.get(plain, plain))
    return Family(name=named(f"memory_{name}", "bytes"), help=f"The {name} amount", path=("memory", field))


def _entry(name: str, field: str) -> tuple[Family, ...]:
    return (
        Family(
            name=named(f"memory_{name}_failcnt", "total"), help=f"The {name} failcnt", path=("memory", field, "failcnt")
        ),
        *(
            Family(
                name=named(f"memory_{name}_{what}", "bytes"), help=f"The {name} {what}", path=("memory", field, what)
            )
            for what in ("limit", "max", "usage")
        ),
    )


def _blkio(name: str, unit: str) -> Family:
    return Family(
        name=named(f"blkio_{name}", unit),
        help=f"The blkio {name.replace('_', ' ')}",
        path=("blkio", name),
        value="value",
        labels=_DEVICE,
    )


def _hugetlb(name: str, unit: str) -> Family:
    return Family(
        name=named(f"hugetlb_{name}", unit),
        help=f"The hugetlb {name}",
        path=("hugetlb",),
        value=name,
        labels=("page",),
        fields=("pagesize",),
    )


FAMILIES: Final = (
    Family(name=named("pids", "limit"), help="The limit to the number of pids allowed", path=("pids", "limit")),
    Family(name=named("pids", "current"), help="The current number of pids", path=("pids", "current")),
    Family(name=named("cpu_total", "nanoseconds"), help="The total cpu time", path=("cpu", "usage", "total")),
    Family(name=named("cpu_kernel", "nanoseconds"), help="The total kernel cpu time", path=("cpu", "usage", "kernel")),
    Family(name=named("cpu_user", "nanoseconds"), help="The total user cpu time", path=("cpu", "usage", "user")),
    Family(
        name=named("per_cpu", "nanoseconds"),
        help="The total cpu time per cpu",
        path=("cpu", "usage", "per_cpu"),
        labels=("cpu",),
    ),
    Family(
        name=named("cpu_throttle_periods", "total"),
        help="The total cpu throttle periods",
        path=("cpu", "throttling", "periods"),
    ),
    Family(
        name=named("cpu_throttled_periods", "total"),
        help="The total cpu throttled periods",
        path=("cpu", "throttling", "throttled_periods"),
    ),
    Family(
        name=named("cpu_throttled_time", "nanoseconds"),
        help="The total cpu throttled time",
        path=("cpu", "throttling", "throttled_time"),
    ),
    *(_memory(name) for name in (*_MEMORY, *_LIMITS)),
    *(_memory(f"total_{name}") for name in _MEMORY),
    *_entry("usage", "usage"),
    *_entry("swap", "swap"),
    *_entry("kernel", "kernel"),
    *_entry("kerneltcp", "kernel_tcp"),
    Family(
        name=named("memory_oom", "total"),
        help="The number of times a container has received an oom event",
        path=("memory_oom_control", "oom_kill"),
    ),
    _blkio("io_merged_recursive", "total"),
    _blkio("io_queued_recursive", "total"),
    _blkio("io_service_bytes_recursive", "bytes"),
    _blkio("io_service_time_recursive", "total"),
    _blkio("io_serviced_recursive", "total"),
    _blkio("io_time_recursive", "total"),
    _blkio("sectors_recursive", "total"),
    _hugetlb("usage", "bytes"),
    _hugetlb("failcnt", "total"),
    _hugetlb("max", "bytes"),
)
