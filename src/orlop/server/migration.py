"""Configuration files of containerd's earlier versions, brought to the one that we write.

    2   fully qualified names of plug-ins; `[grpc]`, `[ttrpc]`, `[debug]`, `[metrics]` beside them
    3   the parts of CRI and the restart monitor have new names
    4   listeners are plug-ins: `[plugins."io.containerd.server.v1.grpc"]` and its siblings

A file without a version is read as the newest, and short names of version 1 are understood in it. Tables are changed in
place, a step for each version, for the keys that we share with containerd; what we do not have passes through and is
warned about where it would have been read.

Source: docs/man/containerd-config.toml.5 of containerd, and the migrations of its plug-ins.
"""

from typing import Any, Final

from orlop.base.errdefs import InvalidArgumentError

NEWEST: Final = 4
OLDEST: Final = 2

Table = dict[str, Any]  # Any: what a TOML file holds

# Sections of versions 2 and 3 and the plug-in that each became, with the keys that went along under new names.
SERVERS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "io.containerd.server.v1.grpc": (
        "grpc",
        {key: key for key in ("address", "uid", "gid", "max_recv_message_size", "max_send_message_size", "door")},
    ),
    "io.containerd.server.v1.grpc-tcp": (
        "grpc",
        {
            "tcp_address": "address",
            "tcp_tls_ca": "tls_ca",
            "tcp_tls_cert": "tls_cert",
            "tcp_tls_key": "tls_key",
            "tcp_tls_common_name": "tls_common_name",
        },
    ),
    "io.containerd.server.v1.ttrpc": ("ttrpc", {key: key for key in ("address", "uid", "gid")}),
    "io.containerd.server.v1.debug": ("debug", {key: key for key in ("address", "uid", "gid")}),
    "io.containerd.server.v1.metrics": ("metrics", {"address": "address"}),
    "io.containerd.metrics.v1.grpc-prometheus": ("metrics", {"grpc_histogram": "grpc_histogram"}),
}

# Names of version 1. Only those that a plug-in of ours, or one that clients ask about, bears.
_SHORT: Final = {
    "bolt": "io.containerd.metadata.v1.bolt",
    "cgroups": "io.containerd.monitor.task.v1.cgroups",
    "cri": "io.containerd.grpc.v1.cri",
    "opt": "io.containerd.internal.v1.opt",
    "restart": "io.containerd.monitor.container.v1.restart",
    "scheduler": "io.containerd.gc.v1.scheduler",
    "task": "io.containerd.runtime.v2.task",
    **{name: f"io.containerd.snapshotter.v1.{name}" for name in ("btrfs", "devmapper", "native", "overlayfs", "zfs")},
}


def migrate(table: Table, place: str) -> int:
    """Bring a file's table to the newest version, in place. The version that it had.

    Raises:
        InvalidArgumentError: a version that we cannot read, or a name in a list of plug-ins that is none; names both.
    """
    version = table.get("version", NEWEST)
    if not isinstance(version, int) or isinstance(version, bool) or not OLDEST <= version <= NEWEST:
        raise InvalidArgumentError(
            f"configuration {place}: version {version!r}: only {OLDEST} to {NEWEST} are known",
            hint="write it anew for one of these, or leave the version out" if version == 1 else "",
        )
    for section in ("grpc", "ttrpc", "debug", "metrics", "plugins"):
        if not isinstance(table.get(section, {}), dict):
            raise InvalidArgumentError(f"configuration {place}: {section}: must be a table")
    _lengthen(table, place)
    if version == OLDEST:
        _from_2_to_3(table)
    _from_3_to_4(table)  # the newest too: what is deprecated there still counts
    table["version"] = NEWEST
    return version


def _lengthen(table: Table, place: str) -> None:
    plugins = table.get("plugins", {})
    for short in [name for name in plugins if name in _SHORT]:
        _move(plugins, short, _SHORT[short])
    for key in ("disabled_plugins", "required_plugins"):
        names = table.get(key)
        if not isinstance(names, list):
            continue  # judged where it is read
        for number, name in enumerate(names):
            if isinstance(name, str) and "." not in name:
                if name not in _SHORT:
                    raise InvalidArgumentError(
                        f'configuration {place}: {key}: "{name}": expect a name such as io.containerd.x.vx'
                    )
                names[number] = _SHORT[name]


def _from_2_to_3(table: Table) -> None:
    plugins = table.get("plugins", {})
    _move(plugins, "io.containerd.internal.v1.restart", "io.containerd.monitor.container.v1.restart")
    _move(plugins, "io.containerd.monitor.v1.cgroups", "io.containerd.monitor.task.v1.cgroups")
    _move(plugins, "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp")
    cri = plugins.pop("io.containerd.grpc.v1.cri", None)
    if isinstance(cri, dict):
        images = {name: cri.pop(name) for name in ("registry", "max_concurrent_downloads") if name in cri}
        containerd = cri.get("containerd")
        snapshotter = containerd.pop("snapshotter", None) if isinstance(containerd, dict) else None
        if snapshotter is not None:
            images["snapshotter"] = snapshotter
        if images:
            plugins.setdefault("io.containerd.cri.v1.images", {}).update(images)
        if cri:
            plugins.setdefault("io.containerd.cri.v1.runtime", {}).update(cri)


def _from_3_to_4(table: Table) -> None:
    plugins = table.setdefault("plugins", {})
    for uri, (section, keys) in SERVERS.items():
        old = table.get(section, {})
        moved = {new: old.pop(key) for key, new in keys.items() if key in old}
        if moved and uri not in plugins:
            plugins[uri] = moved
    for section in ("grpc", "ttrpc", "metrics", "debug"):
        if table.get(section) == {}:
            del table[section]


def _move(plugins: Table, old: str, new: str) -> None:
    if old in plugins:
        plugins.setdefault(new, plugins.pop(old))
        plugins.pop(old, None)
