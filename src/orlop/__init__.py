"""orlop: containerd's whole system in Python.

    import orlop

    with orlop.Client() as client:
        print(client.version().version)

`orlop.Client` is the blocking client, `orlop.aio.Client` the one for asyncio, `orlop.Engine` the whole daemon in the
calling process. Names are loaded on first use, so that importing the package costs nothing.
"""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from orlop.base.errdefs import OrlopError as OrlopError
    from orlop.client.checkpoint import CheckpointOptions as CheckpointOptions
    from orlop.client.convert import ConvertOptions as ConvertOptions
    from orlop.client.convert import LayerForm as LayerForm
    from orlop.client.convert import MediaFamily as MediaFamily
    from orlop.client.images import ImageStatus as ImageStatus
    from orlop.client.io import Capture as Capture
    from orlop.client.io import FifoIO as FifoIO
    from orlop.client.io import LogIO as LogIO
    from orlop.client.io import NullIO as NullIO
    from orlop.client.io import inherit as inherit
    from orlop.client.pull import PullOptions as PullOptions
    from orlop.client.registry import RegistryOptions as RegistryOptions
    from orlop.client.spec import SpecOptions as SpecOptions
    from orlop.client.sync import Client as Client
    from orlop.client.sync import Container as Container
    from orlop.client.sync import Image as Image
    from orlop.client.sync import Process as Process
    from orlop.client.sync import Task as Task
    from orlop.client.tasks import Exit as Exit
    from orlop.client.tasks import TaskStatus as TaskStatus
    from orlop.client.transfer import FileSink as FileSink
    from orlop.core.fsck import Finding as Finding
    from orlop.core.fsck import Unchecked as Unchecked
    from orlop.core.transfer.ends import ImageExportStream as ImageExportStream
    from orlop.core.transfer.ends import ImageImportStream as ImageImportStream
    from orlop.core.transfer.ends import ImageReference as ImageReference
    from orlop.core.transfer.ends import ImageStore as ImageStore
    from orlop.core.transfer.ends import OCIRegistry as OCIRegistry
    from orlop.core.transfer.ends import UnpackConfiguration as UnpackConfiguration
    from orlop.core.transfer.naming import Naming as Naming
    from orlop.core.transfer.progress import Progress as Progress
    from orlop.engine import Engine as Engine

_ORIGINS: Final = {
    "Capture": "orlop.client.io",
    "CheckpointOptions": "orlop.client.checkpoint",
    "Client": "orlop.client.sync",
    "Container": "orlop.client.sync",
    "ConvertOptions": "orlop.client.convert",
    "Engine": "orlop.engine",
    "Exit": "orlop.client.tasks",
    "FifoIO": "orlop.client.io",
    "FileSink": "orlop.client.transfer",
    "Finding": "orlop.core.fsck",
    "Image": "orlop.client.sync",
    "ImageExportStream": "orlop.core.transfer.ends",
    "ImageImportStream": "orlop.core.transfer.ends",
    "ImageReference": "orlop.core.transfer.ends",
    "ImageStatus": "orlop.client.images",
    "ImageStore": "orlop.core.transfer.ends",
    "LayerForm": "orlop.client.convert",
    "LogIO": "orlop.client.io",
    "MediaFamily": "orlop.client.convert",
    "Naming": "orlop.core.transfer.naming",
    "NullIO": "orlop.client.io",
    "OCIRegistry": "orlop.core.transfer.ends",
    "OrlopError": "orlop.base.errdefs",
    "Process": "orlop.client.sync",
    "Progress": "orlop.core.transfer.progress",
    "PullOptions": "orlop.client.pull",
    "RegistryOptions": "orlop.client.registry",
    "SpecOptions": "orlop.client.spec",
    "Task": "orlop.client.sync",
    "TaskStatus": "orlop.client.tasks",
    "Unchecked": "orlop.core.fsck",
    "UnpackConfiguration": "orlop.core.transfer.ends",
    "inherit": "orlop.client.io",
}
__all__ = sorted(_ORIGINS)  # noqa: PLE0605 - the table above is the list


def __getattr__(name: str) -> Any:
    """Load a public name. Any: of whatever type it has."""
    import importlib

    if name in ("aio", "errdefs"):
        return importlib.import_module({"aio": "orlop.aio", "errdefs": "orlop.base.errdefs"}[name])
    if name not in _ORIGINS:
        raise AttributeError(f"module 'orlop' has no attribute {name!r}")
    value = getattr(importlib.import_module(_ORIGINS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ORIGINS, "aio", "errdefs"})
