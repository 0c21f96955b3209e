"""The content store whose bytes are files of this machine."""

from pathlib import Path

from orlop.core.content import SharingPolicy
from orlop.core.content.store import ContentStore
from orlop.core.metadata import Database
from orlop.core.metadata.trash import Trash
from orlop.plugins.content.local.blobs import LocalBlobs


class LocalStore(ContentStore):
    blobs: LocalBlobs

    def __init__(self, root: Path, db: Database, trash: Trash, *, policy: SharingPolicy = SharingPolicy.SHARED) -> None:
        super().__init__(db, LocalBlobs(root, db, trash), policy=policy)
        self.root = root
        self.trash = trash

    def blob_path(self, digest: str) -> Path:
        """Where the blob's file is if the store has it. Ask `find` whether a namespace may read it."""
        return self.blobs.path(digest)
