"""Metrics of cgroup v2: from io.containerd.cgroups.v2.Metrics to containerd's names.

Source: core/metrics/cgroups/v2 of containerd, whose odd units (bytes of page faults) are kept: dashboards know them.
"""

from typing import Final

from orlop.core.metrics import Family, named

_MEMORY: Final = (
    *("usage", "usage_limit", "swap_usage", "swap_limit", "file_mapped", "file_dirty", "file_writeback"),
    *("pgactivate", "pgdeactivate", "pgfault", "pgmajfault", "pglazyfree", "pgrefill", "pglazyfreed", "pgscan"),
    *("pgsteal", "inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable", "anon", "file"),
    *("kernel_stack", "slab", "sock", "shmem", "anon_thp", "slab_reclaimable", "slab_unreclaimable"),
    *("workingset_refault", "workingset_activate", "workingset_nodereclaim", "thp_fault_alloc", "thp_collapse_alloc"),
)


def _cpu(name: str, unit: str, text: str) -> Family:
    return Family(name=named(f"cpu_{name}", unit), help=text, path=("cpu", name))


def _io(name: str, unit: str, text: str) -> Family:
    return Family(
        name=named(f"io_{name}", unit), help=text, path=("io", "usage"), value=name, labels=("major", "minor")
    )


FAMILIES: Final = (
    Family(name=named("pids", "limit"), help="The limit to the number of pids allowed", path=("pids", "limit")),
    Family(name=named("pids", "current"), help="The current number of pids", path=("pids", "current")),
    _cpu("usage_usec", "microseconds", "Total cpu usage"),
    _cpu("user_usec", "microseconds", "Current cpu usage in user space"),
    _cpu("system_usec", "microseconds", "Current cpu usage in kernel space"),
    _cpu("nr_periods", "total", "Current cpu number of periods"),
    _cpu("nr_throttled", "total", "Total number of times tasks have been throttled"),
    _cpu("throttled_usec", "microseconds", "Total time duration for which tasks have been throttled"),
    *(
        Family(name=named(f"memory_{name}", "bytes"), help=f"The {name} amount", path=("memory", name))
        for name in _MEMORY
    ),
    Family(
        name=named("memory_oom", "total"),
        help="The number of times a container has received an oom event",
        path=("memory_events", "oom"),
    ),
    _io("rbytes", "bytes", "IO bytes read"),
    _io("wbytes", "bytes", "IO bytes written"),
    _io("rios", "total", "Number of read IOs"),
    _io("wios", "total", "Number of write IOs"),
)
