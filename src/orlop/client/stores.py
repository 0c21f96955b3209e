"""The stores that a transfer works on (`core.transfer.Stores`), over the API: the client's own nouns."""

from collections.abc import Mapping, Sequence

from orlop.client.content import Content
from orlop.client.diff import Diff
from orlop.client.images import Images
from orlop.client.session import Session
from orlop.client.snapshots import Snapshots
from orlop.core.mount import Mount
from orlop.core.transfer import Named
from orlop.oci.image import Descriptor


class SessionStores:
    """See `core.transfer.Stores`; namespace and lease are the session's.

    Args:
        sync: a layer is on disk when it has been applied.
    """

    def __init__(self, session: Session, *, sync: bool = False) -> None:
        self._session = session
        self.content = Content(session)
        self.images = NamedImages(session)
        self.applier = _Applier(Diff(session), sync=sync)

    def snapshots(self, snapshotter: str) -> Snapshots:
        """See `core.transfer.Stores.snapshots`; an unknown name is told by the first call."""
        return Snapshots(self._session, snapshotter)


class _Applier:
    """See `core.transfer.Applier`."""

    def __init__(self, diff: Diff, *, sync: bool) -> None:
        self._diff = diff
        self._sync = sync

    async def apply(self, layer: Descriptor, mounts: Sequence[Mount]) -> Descriptor:
        return await self._diff.apply(layer, mounts, sync=self._sync)


class NamedImages:
    """See `core.transfer.Images`."""

    def __init__(self, session: Session) -> None:
        self._images = Images(session)

    async def named(self, name: str) -> Named:
        """See `core.transfer.Images.named`."""
        image = await self._images.get(name)
        return Named(name=image.name, target=image.target, labels=image.labels)

    async def put(self, name: str, target: Descriptor, labels: Mapping[str, str]) -> Named:
        """See `core.transfer.Images.put`; labels of an image that exists stay where none are given."""
        image = await self._images.create(name, target, labels=labels, replace=True)
        return Named(name=image.name, target=image.target, labels=image.labels)
