"""Another daemon, which never dies here, in whose content store the bytes of the one that does lie."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import orlop
from tools.daemons import COLLECT_ON_REQUEST, Orlopd


class Elsewhere:
    """A context manager."""

    def __init__(self, directory: Path) -> None:
        self.daemon = Orlopd(directory, config=COLLECT_ON_REQUEST)

    @property
    def config(self) -> str:
        """What has another daemon use this one."""
        return f"""
[proxy_plugins.far]
type = "content"
address = "{self.daemon.address}"
"""

    def __enter__(self) -> Elsewhere:
        self.daemon.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.daemon.close()

    def afresh(self) -> None:
        """With nothing in it."""
        self.daemon.stop()
        shutil.rmtree(self.daemon.root)
        self.daemon.start()

    def blobs(self) -> set[str]:
        return {info.digest for client in self._namespaces() for info in client.content.walk()}

    def ingests(self) -> set[str]:
        return {ingest.ref for client in self._namespaces() for ingest in client.content.ingests()}

    def is_whole(self, digest: str) -> bool:
        """Whether the bytes are those of their digest; True if it has been deleted meanwhile."""
        for client in self._namespaces():
            if client.content.exists(digest):
                algorithm, _, name = digest.partition(":")
                return hashlib.new(algorithm, client.content.read(digest)).hexdigest() == name
        return True

    def _namespaces(self) -> Iterator[orlop.Client]:
        with orlop.Client(str(self.daemon.address), "default", timeout_s=30) as client:
            for one in client.namespaces.list():
                yield client.in_namespace(one.name)
