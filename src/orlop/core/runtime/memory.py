"""Memory that a namespace's tasks may have together, if there is a quota of it: the sum of their limits.

What a task was promised is kept in its bundle when it is changed, so that a daemon that comes later counts it too. All
of this runs on the event loop without waiting, from the look at what is in use to the entry of what is added: two
creations at once cannot both take the last bytes.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from orlop.base.errdefs import ResourceExhaustedError
from orlop.base.quoting import quote

FILE: Final = "memory-limit"

_UNIFIED: Final = "memory.max"
# As the kernel's memparse() takes it.
_NUMBER: Final = re.compile(r"([0-9]{1,19})([KMGkmg]?)")
_SHIFTS: Final = {"": 0, "k": 10, "m": 20, "g": 30}


class MemoryQuotas:
    """The limits of tasks' memory by namespace.

    Args:
        limit: of a namespace, in bytes; 0 for none.
    """

    def __init__(self, limit: Callable[[str], int] = lambda _namespace: 0) -> None:
        self._limit = limit
        self._given: dict[tuple[str, str], int] = {}

    def applies(self, namespace: str) -> bool:
        """Whether the namespace has a quota of memory."""
        return self._limit(namespace) > 0

    def admit(self, namespace: str, task_id: str, asked: int, others: Iterable[tuple[str, Path]]) -> None:
        """Count a task with this limit, instead of with the one that it had.

        Args:
            asked: bytes; 0 for a task without a limit.
            others: ids and bundles of the namespace's other tasks.

        Raises:
            ResourceExhaustedError: that is too much, or no limit; the text has the quota and the use.
        """
        limit = self._limit(namespace)
        used = sum(self.of(namespace, other, bundle) for other, bundle in others)
        if limit and (not asked or used + asked > limit):
            wanted = f"{asked}" if asked else "no limit"
            raise ResourceExhaustedError(
                f"namespace {quote(namespace)}: quota memory: limit {limit}, in use {used}, asked for {wanted}",
                hint="give the container a smaller limit of memory, or have the quota raised on root's socket",
            )
        self._given[namespace, task_id] = asked

    def set(self, namespace: str, task_id: str, given: int) -> None:
        """The task has this limit, whatever that makes of the sum."""
        self._given[namespace, task_id] = given

    def forget(self, namespace: str, task_id: str) -> None:
        """The task is gone."""
        self._given.pop((namespace, task_id), None)

    def of(self, namespace: str, task_id: str, bundle: Path) -> int:
        """What the task counts for."""
        given = self._given.get((namespace, task_id))
        if given is None:
            given = 0
            with contextlib.suppress(OSError, ValueError):
                given = limit_of((bundle / "config.json").read_bytes())
            with contextlib.suppress(OSError, ValueError):
                given = int((bundle / FILE).read_text())
            self._given[namespace, task_id] = given
        return given


def limit_of(spec: bytes) -> int:
    """The limit of memory in a spec; 0 for none."""
    return _limit(_at(_parsed(spec), "linux", "resources")) or 0


def limit_in(resources: bytes) -> int | None:
    """The limit of memory in new resources of a task, 0 for none; None where that stays as it is."""
    return _limit(_parsed(resources))


def _limit(resources: Any) -> int | None:
    """OCI runtimes write what is in `unified` last, so it counts where it is."""
    written = _at(resources, "unified", _UNIFIED)
    if written is not None:
        return _bytes(written)
    value = _at(resources, "memory", "limit")
    return max(value, 0) if type(value) is int else None


def _bytes(text: Any) -> int:
    """What a text means in memory.max; 0 where it is `max`, or nothing that the kernel takes."""
    found = _NUMBER.fullmatch(text.strip()) if isinstance(text, str) else None
    return int(found[1]) << _SHIFTS[found[2].lower()] if found is not None else 0


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None  # who uses it says so


def _at(value: Any, *way: str) -> Any:
    for key in way:
        value = value.get(key) if isinstance(value, dict) else None
    return value
