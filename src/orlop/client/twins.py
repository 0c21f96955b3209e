"""What the generated blocking client rests on, beside `channel.drive`."""

from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

from orlop.client.channel import DrivenIterator

Inner = TypeVar("Inner")
Outer = TypeVar("Outer")


class MappedIterator(Generic[Outer]):
    """A driven iterator whose items are wrapped into their blocking twins."""

    def __init__(self, items: AsyncIterator[Inner], wrap: Callable[[Inner], Outer]) -> None:
        self._items: DrivenIterator[Any] = DrivenIterator(items)  # Any: Inner cannot be named outside __init__
        self._wrap: Callable[[Any], Outer] = wrap

    def __iter__(self) -> "MappedIterator[Outer]":
        return self

    def __next__(self) -> Outer:
        return self._wrap(next(self._items))

    def close(self) -> None:
        """End the stream now."""
        self._items.close()


def unwrap(value: Any) -> Any:
    """The asyncio object inside a blocking one; anything else as it is."""
    # Any: whatever a caller may pass where an object of the client is one of the choices.
    return getattr(value, "_inner", value)
