"""The metrics page: Prometheus text of this process, of calls and of containers.

Imported only where a metrics address is configured: prometheus-client is not for every daemon's memory.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.gc_collector import GCCollector

from orlop.core.version import VERSION, revision
from orlop.server.counting import BUCKETS, Calls

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_CALL: Final = ("grpc_service", "grpc_method", "grpc_type")


class Metrics:
    """Renders the page. `monitors` are the task monitors; Any: a plug-in's instances, which know `collect()`."""

    def __init__(self, calls: Calls, monitors: Iterable[Any]) -> None:
        self._calls = calls
        self._monitors = list(monitors)
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    async def page(self) -> bytes:
        """The page now; containers whose shim does not answer in time are not in it."""
        tasks = [task for monitor in self._monitors for task in await monitor.collect()]
        once = CollectorRegistry(auto_describe=False)
        once.register(_Once([*_build(), *_calls(self._calls), *_containers(tasks)]))
        text = await asyncio.to_thread(lambda: generate_latest(self._registry) + generate_latest(once))
        return bytes(text)


class _Once:
    """A collector of families that are there already."""

    def __init__(self, families: Sequence[Any]) -> None:
        self._families = families

    def collect(self) -> Sequence[Any]:
        return self._families


def _build() -> list[Any]:
    family = CounterMetricFamily(
        "containerd_build_info", "containerd build information", labels=("version", "revision")
    )
    family.add_metric((VERSION, revision()), 1)
    return [family]


def _calls(calls: Calls) -> list[Any]:
    started = CounterMetricFamily("grpc_server_started", "Calls started on the server", labels=_CALL)
    received = CounterMetricFamily("grpc_server_msg_received", "Messages received on the server", labels=_CALL)
    sent = CounterMetricFamily("grpc_server_msg_sent", "Messages sent by the server", labels=_CALL)
    for family, counts in ((started, calls.started), (received, calls.received), (sent, calls.sent)):
        for key, count in counts.items():
            family.add_metric(key, count)
    handled = CounterMetricFamily(
        "grpc_server_handled", "Calls completed on the server, whatever came of them", labels=(*_CALL, "grpc_code")
    )
    for (key, code), count in calls.handled.items():
        handled.add_metric((*key, code), count)
    families: list[Any] = [started, received, sent, handled]
    if calls.histogram:
        families.append(_histogram(calls))
    return families


def _histogram(calls: Calls) -> Any:
    family = HistogramMetricFamily("grpc_server_handling_seconds", "Time that calls took on the server", labels=_CALL)
    names = [*(str(bound) for bound in BUCKETS), "+Inf"]
    for key, row in calls.seconds.items():
        total, buckets = 0.0, []
        for name, count in zip(names, row[:-1], strict=True):
            total += count
            buckets.append((name, total))
        family.add_metric(key, buckets, sum_value=row[-1])
    return family


def _containers(tasks: Iterable[Any]) -> list[Any]:
    families: dict[str, Any] = {}
    for task in tasks:
        for sample in task.samples:
            family = families.get(sample.family.name)
            if family is None:
                labels = ("container_id", "namespace", *sample.family.labels)
                family = GaugeMetricFamily(sample.family.name, sample.family.help, labels=labels)
                families[sample.family.name] = family
            family.add_metric((task.id, task.namespace, *sample.labels), sample.value)
    return list(families.values())
