"""All operations that are played."""

from __future__ import annotations

from typing import Final

from tools.crash import layers, operations

EVERY: Final = (*operations.OPERATIONS, *layers.OPERATIONS)
