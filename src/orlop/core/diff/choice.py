"""Which of several differs does a thing: the first that does not answer that it cannot.

Source: containerd's plugins/services/diff/local.go.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from orlop.base.errdefs import UnimplementedError
from orlop.core.diff import Differ

T = TypeVar("T")


async def first_able(differs: Iterable[Differ], step: Callable[[Differ], Awaitable[T]]) -> T:
    """What the first able differ gives. Raises UnimplementedError, the last one's, if none is."""
    refusal = UnimplementedError("diff: no differ is loaded")
    for differ in differs:
        try:
            return await step(differ)
        except UnimplementedError as error:
            refusal = error
    raise refusal
