"""Everything that a namespace has, and its removal in an order in which each step is possible.

Tasks come before the containers they are of, containers and sandboxes before images, all of them before snapshots and
content. Every step is one that can be made again: what is gone is as good as removed. So a removal that was cut off, by
whichever side's death, is resumed by starting it anew.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from orlop.base.errdefs import FailedPreconditionError, NotFoundError

if TYPE_CHECKING:
    from orlop.client.client import Client

SNAPSHOTTER: Final = "io.containerd.snapshotter.v1"
RESTART_LABEL: Final = "containerd.io/restart.status"
# What others make while it is removed is removed too, as often as this.
ATTEMPTS: Final = 3

Removed = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Names of what a namespace has; in the order of the fields it is removed.

    Attributes:
        snapshots: by snapshotter, children before their parents.
        ingests: refs of unfinished ingests.
    """

    tasks: list[str] = field(default_factory=list)
    containers: list[str] = field(default_factory=list)
    sandboxes: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    snapshots: Mapping[str, list[str]] = field(default_factory=dict)
    leases: list[str] = field(default_factory=list)
    ingests: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)

    def kinds(self) -> Iterator[tuple[str, list[str]]]:
        """What there is, kind by kind, without those of which there is nothing."""
        pairs = [("tasks", self.tasks), ("containers", self.containers), ("sandboxes", self.sandboxes)]
        pairs += [("images", self.images), ("mounts", self.mounts)]
        pairs += [(f"snapshots on {name}", keys) for name, keys in self.snapshots.items()]
        pairs += [("leases", self.leases), ("ingests", self.ingests), ("content", self.content)]
        return ((kind, names) for kind, names in pairs if names)


async def contents(client: "Client") -> Contents:
    """What the client's namespace has at the moment."""
    snapshots = {}
    for plugin in await client.introspection.plugins([f"type=={SNAPSHOTTER},status==ok"]):
        if keys := await _keys(client, plugin.id):
            snapshots[plugin.id] = keys
    return Contents(
        tasks=[one.id for one in await client.tasks()],
        containers=[one.id for one in await client.containers.list()],
        sandboxes=[one.id for one in await client.sandboxes.list()],
        images=[one.name for one in await client.images.list()],
        mounts=[one.name for one in await client.mounts.list()],
        snapshots=snapshots,
        leases=[one.id for one in await client.leases.list()],
        ingests=[one.ref for one in await client.content.ingests()],
        content=[one.digest async for one in client.content.walk()],
    )


async def remove(client: "Client", progress: Removed | None = None) -> None:
    """Empty the client's namespace and remove it; a namespace that is not there is removed already.

    Args:
        progress: is told kind and name of each thing when it is gone.

    Raises:
        FailedPreconditionError: others make things in it as fast as they are removed.
    """
    tell = progress or (lambda _kind, _name: None)
    for attempt in range(ATTEMPTS):
        try:
            await _empty(client, await contents(client), tell)
            with contextlib.suppress(NotFoundError):
                await client.namespaces.delete(client.namespace)
        except FailedPreconditionError:
            if attempt == ATTEMPTS - 1:
                raise
        else:
            return


async def _empty(client: "Client", found: Contents, tell: Removed) -> None:
    async def each(kind: str, names: Iterable[str], removal: Callable[[str], Awaitable[object]]) -> None:
        for name in names:
            with contextlib.suppress(NotFoundError):
                await removal(name)
            tell(kind, name)

    async def delete_task(name: str) -> None:
        await (await client.task(name)).delete(force=True)

    async def delete_container(name: str) -> None:
        await (await client.containers.get(name)).delete(keep_snapshot=True)

    async def delete_sandbox(name: str) -> None:
        await (await client.sandboxes.get(name)).delete()

    await _let_end(client, found.containers)
    await each("task", found.tasks, delete_task)
    await each("container", found.containers, delete_container)
    await each("sandbox", found.sandboxes, delete_sandbox)
    await each("image", found.images, client.images.delete)
    await each("mount", found.mounts, client.mounts.deactivate)
    for snapshotter, keys in found.snapshots.items():
        await each("snapshot", keys, client.snapshots(snapshotter).remove)
    await each("lease", found.leases, client.leases.delete)
    await each("ingest", found.ingests, client.content.abort)
    await each("content", found.content, client.content.delete)


async def _let_end(client: "Client", containers: list[str]) -> None:
    """Have the restart monitor leave them alone."""
    for name in containers:
        with contextlib.suppress(NotFoundError):
            container = await client.containers.get(name)
            if RESTART_LABEL in container.record.labels:
                await container.label({RESTART_LABEL: ""})


async def _keys(client: "Client", snapshotter: str) -> list[str]:
    """The snapshots of one snapshotter, children before their parents."""
    parents = {one.name: one.parent async for one in client.snapshots(snapshotter).walk()}
    depth: dict[str, int] = {}
    for name in parents:
        chain, at = [], name
        while at in parents and at not in depth:
            chain.append(at)
            at = parents[at]
        above = depth.get(at, 0)
        for number, one in enumerate(reversed(chain), start=1):
            depth[one] = above + number
    return sorted(parents, key=lambda name: (-depth[name], name))
