"""Visiting the parts of an image side by side, a bounded number at once.

Source: Dispatch in containerd's core/images/handlers.go; unlike there, the same digest is visited once, and the bound
holds for running handlers only, so that no depth of documents can block it.
"""

import asyncio
from collections.abc import Iterable, Sequence

from orlop.base.errdefs import InvalidArgumentError
from orlop.core.images.handlers import MAX_DEPTH, Handler
from orlop.oci.image import Descriptor


async def dispatch(handler: Handler, descriptors: Iterable[Descriptor], *, limit: int = 0) -> None:
    """Call `handler` for descriptors and for what it returns, side by side; parents before their children.

    When this returns, all handlers have ended. The first error cancels the rest and is raised itself, not in a group.

    Args:
        limit: how many handlers may run at once; 0 is no limit.

    Raises:
        InvalidArgumentError: the documents lie deeper in each other than any image.
    """
    gate = asyncio.Semaphore(limit) if limit > 0 else None
    seen: set[tuple[str, str]] = set()

    async def visit(descriptor: Descriptor, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise InvalidArgumentError(f"index {descriptor.digest} lies more than {MAX_DEPTH} indexes deep")
        following = await _guarded(gate, handler, descriptor)
        for child in following:
            start(child, depth + 1)

    def start(descriptor: Descriptor, depth: int) -> None:
        # One layer may stand in many manifests, and twice in one; the media type says how it is handled.
        key = (descriptor.digest, descriptor.media_type)
        if key not in seen:
            seen.add(key)
            group.create_task(visit(descriptor, depth))

    try:
        async with asyncio.TaskGroup() as group:
            for descriptor in descriptors:
                start(descriptor, 0)
    except BaseExceptionGroup as errors:
        raise _first(errors) from None


async def _guarded(gate: asyncio.Semaphore | None, handler: Handler, descriptor: Descriptor) -> Sequence[Descriptor]:
    if gate is None:
        return await handler(descriptor)
    async with gate:
        return await handler(descriptor)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
