"""The content store of this machine: blobs as files, their records in meta.db."""

from orlop.plugins.content.local.store import LocalReader, LocalStore
from orlop.plugins.content.local.writer import LocalWriter

__all__ = ["LocalReader", "LocalStore", "LocalWriter"]
