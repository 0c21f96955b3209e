"""What each role may call, as one table: a row for each method of the contract. A method without a row is refused."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from orlop.base.rpc import Call
from orlop.server.roles.tenant import Role, Tenant

NOBODY: Final = frozenset[Role]()
ALL: Final = frozenset(Role)
RUN: Final = frozenset({Role.RUN, Role.FULL})
FULL: Final = frozenset({Role.FULL})

Check = Callable[[Tenant, Call, Any], Awaitable[None] | None]


@dataclass(frozen=True, slots=True)
class Row:
    """One method.

    Attributes:
        roles: who may call it.
        fields: of the request, those that `read` and `run` may set; None for a request that is no message of ours.
        check: what `run` is further checked for.
        always: what every role is.
        after: is told of the answers that `run` gets.
    """

    roles: frozenset[Role]
    fields: tuple[str, ...] | None = ()
    check: Check | None = None
    always: Check | None = None
    after: Callable[[Tenant, Any, Any], None] | None = None


def _service(name: str, rows: Mapping[str, Row]) -> dict[str, Row]:
    return {f"/{name}/{method}": row for method, row in rows.items()}


_STREAMS: Final = ("stdin", "stdout", "stderr", "terminal")

TABLE: Final[Mapping[str, Row]] = {
    **_service(
        "containerd.services.containers.v1.Containers",
        {
            "Get": Row(ALL, ("id",)),
            "List": Row(ALL, ("filters",)),
            "ListStream": Row(ALL, ("filters",)),
            "Create": Row(RUN, ("container",), Tenant.container),
            "Update": Row(RUN, ("container", "update_mask"), Tenant.container),
            "Delete": Row(RUN, ("id",)),
        },
    ),
    **_service(
        "containerd.services.tasks.v1.Tasks",
        {
            # Not checkpoint: CRIU restores with root's rights. Not runtime_path, task_api_*: programs and sockets.
            "Create": Row(RUN, ("container_id", "rootfs", "options", *_STREAMS), Tenant.create_task),
            "Start": Row(RUN, ("container_id", "exec_id")),
            "Delete": Row(RUN, ("container_id",)),
            "DeleteProcess": Row(RUN, ("container_id", "exec_id")),
            "Get": Row(ALL, ("container_id", "exec_id")),
            "List": Row(ALL, ("filter",)),
            "Kill": Row(RUN, ("container_id", "exec_id", "signal", "all")),
            "Exec": Row(RUN, ("container_id", "exec_id", "spec", *_STREAMS), Tenant.execute),
            "ResizePty": Row(RUN, ("container_id", "exec_id", "width", "height")),
            "CloseIO": Row(RUN, ("container_id", "exec_id", "stdin")),
            "Pause": Row(RUN, ("container_id",)),
            "Resume": Row(RUN, ("container_id",)),
            "ListPids": Row(ALL, ("container_id",)),
            "Checkpoint": Row(FULL),
            "Update": Row(RUN, ("container_id", "resources"), Tenant.update_task),
            "Metrics": Row(ALL, ("filters",)),
            "Wait": Row(ALL, ("container_id", "exec_id")),
        },
    ),
    **_service(
        "containerd.services.images.v1.Images",
        {
            "Get": Row(ALL, ("name",)),
            "List": Row(ALL, ("filters",)),
            "Create": Row(RUN, ("image", "source_date_epoch")),
            "Update": Row(RUN, ("image", "update_mask", "source_date_epoch")),
            "Delete": Row(RUN, ("name", "sync", "target")),
        },
    ),
    **_service(
        "containerd.services.content.v1.Content",
        {
            "Info": Row(ALL, ("digest",)),
            "Update": Row(RUN, ("info", "update_mask")),
            "List": Row(ALL, ("filters",)),
            "Delete": Row(RUN, ("digest",)),
            "Read": Row(ALL, ("digest", "offset", "size")),
            "Status": Row(ALL, ("ref",)),
            "ListStatuses": Row(ALL, ("filters",)),
            "Write": Row(RUN, ("action", "ref", "total", "expected", "offset", "data", "labels")),
            "Abort": Row(RUN, ("ref",)),
        },
    ),
    **_service(
        "containerd.services.snapshots.v1.Snapshots",
        {
            "Prepare": Row(RUN, ("snapshotter", "key", "parent", "labels"), Tenant.snapshot, after=Tenant.remember),
            "View": Row(RUN, ("snapshotter", "key", "parent", "labels"), Tenant.snapshot, after=Tenant.remember),
            "Mounts": Row(RUN, ("snapshotter", "key"), after=Tenant.remember),
            "Commit": Row(RUN, ("snapshotter", "name", "key", "labels", "parent"), Tenant.snapshot),
            "Remove": Row(RUN, ("snapshotter", "key")),
            "Stat": Row(ALL, ("snapshotter", "key")),
            "Update": Row(RUN, ("snapshotter", "info", "update_mask"), Tenant.snapshot_update),
            "List": Row(ALL, ("snapshotter", "filters")),
            "Usage": Row(ALL, ("snapshotter", "key")),
            # It goes through what all namespaces have.
            "Cleanup": Row(FULL),
        },
    ),
    **_service(
        "containerd.services.diff.v1.Diff",
        {
            # Not payloads: they go to stream processors, programs with the daemon's rights.
            "Apply": Row(RUN, ("diff", "mounts", "sync_fs"), Tenant.apply),
            "Diff": Row(RUN, ("left", "right", "media_type", "ref", "labels", "source_date_epoch"), Tenant.diff),
        },
    ),
    **_service(
        "containerd.services.leases.v1.Leases",
        {
            "Create": Row(RUN, ("id", "labels")),
            "Delete": Row(RUN, ("id", "sync")),
            "List": Row(ALL, ("filters",)),
            "AddResource": Row(RUN, ("id", "resource")),
            "DeleteResource": Row(RUN, ("id", "resource")),
            "ListResources": Row(ALL, ("id",)),
        },
    ),
    **_service(
        "containerd.services.events.v1.Events",
        {
            "Publish": Row(FULL),
            "Forward": Row(NOBODY),  # shims' own, in any namespace
            "Subscribe": Row(ALL, ("filters",)),
        },
    ),
    **_service("containerd.services.events.ttrpc.v1.Events", {"Forward": Row(NOBODY)}),
    **_service(
        "containerd.services.introspection.v1.Introspection",
        {
            "Plugins": Row(ALL, ("filters",)),
            "Server": Row(ALL),
            "PluginInfo": Row(ALL, ("type", "id")),  # not options: they have a runtime's program run
        },
    ),
    **_service(
        "containerd.services.namespaces.v1.Namespaces",
        {
            # Namespaces, and their labels and quotas with them, are for root's socket.
            "Get": Row(ALL, ("name",), always=Tenant.own_namespace),
            "List": Row(ALL, ("filter",)),
            "Create": Row(NOBODY),
            "Update": Row(NOBODY),
            "Delete": Row(NOBODY),
        },
    ),
    **_service(
        "containerd.services.mounts.v1.Mounts",
        {name: Row(FULL) for name in ("Activate", "Deactivate", "Info", "Update", "List")},
    ),
    **_service(
        "containerd.services.sandbox.v1.Store",
        {name: Row(FULL) for name in ("Create", "Update", "Delete", "List", "Get")},
    ),
    **_service(
        "containerd.services.sandbox.v1.Controller",
        {
            name: Row(FULL)
            for name in ("Create", "Start", "Platform", "Stop", "Wait", "Status", "Shutdown", "Metrics", "Update")
        },
    ),
    **_service("containerd.services.streaming.v1.Streaming", {"Stream": Row(RUN, None)}),
    **_service(
        "containerd.services.transfer.v1.Transfer",
        {"Transfer": Row(RUN, ("source", "destination", "options"), Tenant.transfer)},
    ),
    **_service("orlop.services.timings.v1.Timings", {"Get": Row(NOBODY)}),
    **_service("containerd.services.version.v1.Version", {"Version": Row(ALL)}),
    # It goes through what all namespaces have, and mends it.
    **_service("orlop.services.fsck.v1.Fsck", {"Check": Row(NOBODY)}),
    **_service("grpc.health.v1.Health", {"Check": Row(ALL, None), "Watch": Row(ALL, None)}),
}
