"""Container metrics: every name leads to a field that exists, and values carry their labels."""

import pytest

from orlop.api.cgroups.v1 import metrics_pb2 as v1
from orlop.api.cgroups.v2 import metrics_pb2 as v2
from orlop.core.metrics import cgroup1, cgroup2, samples

KNOWN = [
    # as `container_…` lines of Debian's containerd read
    (cgroup1, "container_memory_usage_usage_bytes"),
    (cgroup1, "container_memory_total_pgmajfault_bytes"),
    (cgroup1, "container_memory_hierarchical_memsw_limit_bytes"),
    (cgroup1, "container_cpu_total_nanoseconds"),
    (cgroup1, "container_per_cpu_nanoseconds"),
    (cgroup1, "container_blkio_io_service_bytes_recursive_bytes"),
    (cgroup1, "container_hugetlb_max_bytes"),
    (cgroup1, "container_pids_current"),
    (cgroup2, "container_memory_usage_bytes"),
    (cgroup2, "container_cpu_usage_usec_microseconds"),
    (cgroup2, "container_io_rbytes_bytes"),
    (cgroup2, "container_memory_oom_total"),
]


@pytest.mark.parametrize(("module", "name"), KNOWN)
def test_names_are_containerds(module, name):
    assert name in {family.name for family in module.FAMILIES}


@pytest.mark.parametrize(("module", "message"), [(cgroup1, v1.Metrics()), (cgroup2, v2.Metrics())])
def test_every_path_exists_and_no_name_is_there_twice(module, message):
    names = [family.name for family in module.FAMILIES]
    assert len(names) == len(set(names))
    for family in module.FAMILIES:
        descriptor = message.DESCRIPTOR
        for step in family.path:
            field = descriptor.fields_by_name[step]
            descriptor = field.message_type
        for step in (family.value, *(family.fields or family.labels)):
            assert not step or descriptor is None or step in descriptor.fields_by_name, family.name


def test_what_a_cgroup_does_not_have_gives_no_sample():
    assert not list(samples(cgroup1.FAMILIES, v1.Metrics()))


def test_values_and_their_labels():
    message = v1.Metrics()
    message.pids.current = 3
    message.cpu.usage.per_cpu.extend([5, 7])
    message.blkio.io_serviced_recursive.add(op="Read", device="/dev/x", major=8, minor=1, value=9)
    message.hugetlb.add(pagesize="2MB", usage=4)
    got = {(sample.family.name, *sample.labels): sample.value for sample in samples(cgroup1.FAMILIES, message)}
    assert got["container_pids_current",] == 3
    assert got["container_per_cpu_nanoseconds", "1"] == 7
    assert got["container_blkio_io_serviced_recursive_total", "Read", "/dev/x", "8", "1"] == 9
    assert got["container_hugetlb_usage_bytes", "2MB"] == 4
