"""The check of bundles: each has an owner, a task or a sandbox, and each owner has its bundle.

    task-without-bundle, sandbox-without-bundle     an owner, and no bundle
    bundle-orphan                                   a bundle, and no owner: what a shim may hold in it included
    work-orphan                                     a work directory, and no bundle

Whose a bundle is, its manager says on the event loop, where it makes and removes them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orlop.core.fsck import Finding
from orlop.core.fsck.checks import Order
from orlop.core.runtime.bundle import Bundle, Bundles


class Owner(Protocol):
    """Who makes bundles and removes them."""

    @property
    def bundles(self) -> Bundles: ...

    def held(self) -> list[Bundle]:
        """The bundles of all that there is; on the event loop."""
        ...

    def addresses(self) -> set[str]:
        """Where the shims are that hold what there is, alive or not; on the event loop."""
        ...

    def owns(self, namespace: str, name: str) -> bool:
        """Whether there is one of that name, or one is being made or removed; on the event loop."""
        ...

    async def recover(self, bundle: Bundle) -> bool:
        """Take over what a bundle is of that is nobody's, or remove what is there; returns whether it is ours now."""
        ...


@dataclass(frozen=True, slots=True)
class BundlesLook:
    """One look at the bundles of one owner.

    Attributes:
        what: `task` or `sandbox`.
        removal: the command that removes one whose bundle has gone.
    """

    owner: Owner
    what: str
    removal: str

    def run(self, order: Order) -> Iterator[Finding]:
        yield from self._lost(order)
        yield from self._orphans(order)
        yield from self._works(order)

    def _lost(self, order: Order) -> Iterator[Finding]:
        for bundle in [one for one in order.call(self.owner.held) if not one.path.is_dir()]:
            if order.call(self._still(bundle)):
                yield Finding(
                    kind=f"{self.what}-without-bundle",
                    object=f"{bundle.namespace}/{bundle.id}",
                    namespaces=(bundle.namespace,),
                    wrong=f"its bundle {bundle.path} has gone",
                    mends=f"deleting it: {self.removal}",
                )

    def _still(self, bundle: Bundle) -> Callable[[], bool]:
        return lambda: any(one is bundle for one in self.owner.held()) and not bundle.path.is_dir()

    def _orphans(self, order: Order) -> Iterator[Finding]:
        for bundle in self.owner.bundles.found():
            order.go_on()
            if not order.call(self._is_orphan(bundle)):
                continue
            found = Finding(
                kind="bundle-orphan",
                object=str(bundle.path),
                namespaces=(bundle.namespace,),
                wrong=f"it is here, and no {self.what} of that name",
                mends="--repair takes it over if its shim holds what it is of, else removes it, with all of it",
            )
            if order.repair:
                taken = order.wait(self.owner.recover(bundle))
                gone = not bundle.path.exists()
                words = "taken over: its shim holds it" if taken else "removed, with its processes and mounts"
                found = found.after(taken or gone, words if taken or gone else "")
            yield found

    def _is_orphan(self, bundle: Bundle) -> Callable[[], bool]:
        return lambda: not self.owner.owns(bundle.namespace, bundle.id) and bundle.path.is_dir()

    def _works(self, order: Order) -> Iterator[Finding]:
        bundles = self.owner.bundles
        for path in bundles.works():
            bundle = bundles.get(path.parent.name, path.name)
            if order.call(self._is_orphaned_work(order, bundle, path)):
                yield Finding(
                    kind="work-orphan",
                    object=str(path),
                    namespaces=(bundle.namespace,),
                    wrong=f"it is the work directory of no {self.what}",
                    mends="removed" if order.repair else "--repair removes it",
                    mended=order.repair,
                )
        if order.repair:
            bundles.sweep_hidden()

    def _is_orphaned_work(self, order: Order, bundle: Bundle, path: Path) -> Callable[[], bool]:
        def look() -> bool:
            if self.owner.owns(bundle.namespace, bundle.id) or bundle.path.exists() or not path.is_dir():
                return False
            if order.repair:  # out of sight in the same breath, so that no new one's is removed
                self.owner.bundles.discard_work(path)
            return True

        return look
