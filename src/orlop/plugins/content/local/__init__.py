"""The content store of this machine: blobs as files, their records in meta.db."""

from orlop.plugins.content.local.blobs import LocalReader
from orlop.plugins.content.local.store import LocalStore

__all__ = ["LocalReader", "LocalStore"]
