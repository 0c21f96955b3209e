"""The client for asyncio.

    import orlop.aio

    async with orlop.aio.Client() as client:
        image = await client.images.get("docker.io/library/redis:latest")

Every object of it has a blocking twin of the same name in `orlop`, with the same methods.
"""

from orlop.client.client import Client
from orlop.client.containers import Container, Containers
from orlop.client.content import Content, Writer
from orlop.client.diff import Diff
from orlop.client.images import Image, Images
from orlop.client.introspection import Introspection
from orlop.client.leases import Leases
from orlop.client.namespaces import Namespaces
from orlop.client.snapshots import Snapshots
from orlop.client.tasks import Process, Task

__all__ = [
    "Client",
    "Container",
    "Containers",
    "Content",
    "Diff",
    "Image",
    "Images",
    "Introspection",
    "Leases",
    "Namespaces",
    "Process",
    "Snapshots",
    "Task",
    "Writer",
]
