"""The stores that a transfer works on (`core.transfer.Stores`), over the API: the client's own nouns."""

from collections.abc import Mapping

from orlop.client.content import Content
from orlop.client.diff import Diff
from orlop.client.images import Images
from orlop.client.session import Session
from orlop.client.snapshots import Snapshots
from orlop.core.transfer import Named
from orlop.oci.image import Descriptor


class SessionStores:
    """See `core.transfer.Stores`; namespace and lease are the session's."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.content = Content(session)
        self.images = NamedImages(session)
        self.applier = Diff(session)

    def snapshots(self, snapshotter: str) -> Snapshots:
        """See `core.transfer.Stores.snapshots`; an unknown name is told by the first call."""
        return Snapshots(self._session, snapshotter)


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
