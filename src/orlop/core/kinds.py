"""The kinds of plug-ins, with containerd's names and the Python type of their instances.

Kinds whose instances live in a room of `core` that need not be imported to name them are typed for the checker only.
"""

from typing import TYPE_CHECKING, Any, Final

from orlop.core.plugin import Kind

if TYPE_CHECKING:
    from orlop.base.rpc import Service
    from orlop.core.deprecations import Deprecations
    from orlop.core.events import Exchange
    from orlop.core.fsck.checks import Check
    from orlop.core.images.verifier import ImageVerifier
    from orlop.core.metadata import Database
    from orlop.core.metadata.sandboxes import SandboxStore
    from orlop.core.metadata.trash import Trash
    from orlop.core.mount.activation import Handler
    from orlop.core.mount.manager import MountManager
    from orlop.core.runtime import TaskManager
    from orlop.core.runtime.shim_manager import ShimManager
    from orlop.core.sandboxes import Controller
    from orlop.core.snapshots import Snapshotter
    from orlop.core.snapshots.recovery import Recovery
    from orlop.core.snapshots.stores import Stores
    from orlop.core.streaming import Manager
    from orlop.core.transfer.ends import Transferrer

METADATA: "Final[Kind[Database]]" = Kind("io.containerd.metadata.v1")
TRASH: "Final[Kind[Trash]]" = Kind("io.orlop.trash.v1")
CHECK: "Final[Kind[Check]]" = Kind("io.orlop.check.v1")
EVENT: "Final[Kind[Exchange]]" = Kind("io.containerd.event.v1")
WARNING: "Final[Kind[Deprecations]]" = Kind("io.containerd.warning.v1")
CONTENT: Final[Kind[Any]] = Kind("io.containerd.content.v1")
SNAPSHOTTER: "Final[Kind[Snapshotter]]" = Kind("io.containerd.snapshotter.v1")
SNAPSHOTS: "Final[Kind[Stores]]" = Kind("io.orlop.snapshots.v1")
RECOVERY: "Final[Kind[Recovery]]" = Kind("io.orlop.recovery.v1")
MOUNT_HANDLER: "Final[Kind[Handler]]" = Kind("io.containerd.mount-handler.v1")
MOUNT_MANAGER: "Final[Kind[MountManager]]" = Kind("io.containerd.mount-manager.v1")
DIFFER: Final[Kind[Any]] = Kind("io.containerd.differ.v1")
GC: Final[Kind[Any]] = Kind("io.containerd.gc.v1")
LEASE: Final[Kind[Any]] = Kind("io.containerd.lease.v1")
SHIM: "Final[Kind[ShimManager]]" = Kind("io.containerd.shim.v1")
RUNTIME: "Final[Kind[TaskManager]]" = Kind("io.containerd.runtime.v2")
IMAGE_VERIFIER: "Final[Kind[ImageVerifier]]" = Kind("io.containerd.image-verifier.v1")
TRANSFER: "Final[Kind[Transferrer]]" = Kind("io.containerd.transfer.v1")
STREAMING: "Final[Kind[Manager]]" = Kind("io.containerd.streaming.v1")
SANDBOX_STORE: "Final[Kind[SandboxStore]]" = Kind("io.containerd.sandbox.store.v1")
SANDBOX_CONTROLLER: "Final[Kind[Controller]]" = Kind("io.containerd.sandbox.controller.v1")
SERVICE: Final[Kind[Any]] = Kind("io.containerd.service.v1")
GRPC: "Final[Kind[Service]]" = Kind("io.containerd.grpc.v1")
TRACING: Final[Kind[Any]] = Kind("io.containerd.tracing.processor.v1")
TASK_MONITOR: Final[Kind[Any]] = Kind("io.containerd.monitor.task.v1")
MONITOR: Final[Kind[Any]] = Kind("io.containerd.monitor.container.v1")
TTRPC: "Final[Kind[Service]]" = Kind("io.containerd.ttrpc.v1")
