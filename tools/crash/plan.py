"""All operations that are played."""

from __future__ import annotations

from typing import Final

from tools.crash import layers, operations, runtimes, tasks

EVERY: Final = (*operations.OPERATIONS, *layers.OPERATIONS, *tasks.OPERATIONS, *runtimes.OPERATIONS)
