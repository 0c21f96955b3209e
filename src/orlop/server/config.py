"""The daemon's configuration: a TOML file in containerd's shape, the command line over it, defaults below both.

    version = 4                                  2 and 3 are read as well, see `migration`
    root, state                                  directories; see ARCHITECTURE.md for what lies in them
    imports                                      more files, read over this one: values replace, lists and tables grow
    disabled_plugins, required_plugins, oom_score
    [cgroup] path                                of the daemon itself
    [debug] level, format                        level: trace … fatal; format: text or json
    [proxy_plugins.NAME] type, address, …        plug-ins behind another program's gRPC socket
    [stream_processors."id"]                     accepts, returns, path, args, env; those for encrypted layers are there
    [timeouts]                                   containerd's names, durations as text
    [plugins."io.containerd.server.v1.grpc"]     address, uid, gid, max_recv_message_size, max_send_message_size
                                                 door: ours, who serves gRPC, `lean` or `grpcio`; see docs/doors.md
    [plugins."io.containerd.server.v1.grpc-tcp"] address, tls_ca, tls_cert, tls_key, tls_common_name: off without one
    [plugins."io.containerd.server.v1.ttrpc"]    address, uid, gid; address empty: the gRPC address and `.ttrpc`
    [plugins."io.containerd.server.v1.debug"]    address, uid, gid: stacks and profiles, off without an address
    [plugins."io.containerd.server.v1.metrics"]  address: Prometheus, off without one
    [plugins."type.id"]                          the plug-in's own keys
    [runtimes]                                   ours: runtime name = path of the shim that serves it
    [sockets.NAME] address, namespace, role, …   ours: sockets for one namespace and a role, see docs/roles.md
    entry_points                                 ours: load plug-ins of other distributions (code in a root daemon)
    warm_cgroups                                 ours: keep the kernel's cgroup lock warm while a container is to start
    early_deletion                               ours: answer a task's deletion before its OCI runtime has removed it

Unknown keys are warned about, not refused, so that containerd's own file works. A value of the wrong type is refused.
"""

import dataclasses
import glob
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from orlop.base.errdefs import InvalidArgumentError
from orlop.core.diff import processors
from orlop.core.diff.processors import StreamProcessor
from orlop.server import migration

T = TypeVar("T")

DEFAULT_PATH: Final = Path("/etc/orlop/config.toml")
DEFAULT_IMPORTS: Final = "/etc/orlop/conf.d/*.toml"
DEFAULT_ADDRESS: Final = "/run/orlop/orlop.sock"
MESSAGE_LIMIT: Final = 16 << 20
DOORS: Final = ("lean", "grpcio")


@dataclass(kw_only=True)
class Grpc:
    """The gRPC door. `door` is one of DOORS."""

    address: str = DEFAULT_ADDRESS
    door: str = "lean"
    uid: int = 0
    gid: int = 0
    max_recv_message_size: int = MESSAGE_LIMIT
    max_send_message_size: int = MESSAGE_LIMIT


@dataclass(kw_only=True)
class GrpcTcp:
    """gRPC on TCP, `address` is host:port; off without one."""

    address: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_common_name: str = ""
    max_recv_message_size: int = MESSAGE_LIMIT
    max_send_message_size: int = MESSAGE_LIMIT


@dataclass(kw_only=True)
class Ttrpc:
    """The ttrpc door."""

    address: str = ""
    uid: int = 0
    gid: int = 0


@dataclass(kw_only=True)
class DebugSocket:
    """Stacks and profiles over HTTP on a unix socket; none without an address."""

    address: str = ""
    uid: int = 0
    gid: int = 0


@dataclass(kw_only=True)
class Metrics:
    """Prometheus metrics over HTTP; none without an address, which is `host:port`."""

    address: str = ""


@dataclass(kw_only=True)
class GrpcMetrics:
    """What is counted of gRPC calls."""

    grpc_histogram: bool = False


@dataclass(kw_only=True)
class Debug:
    """Logging."""

    level: str = "info"
    format: str = "text"


@dataclass(kw_only=True)
class Cgroup:
    """The cgroup of the daemon itself; empty: where it was started."""

    path: str = ""


@dataclass(kw_only=True)
class ProxyPlugin:
    """A plug-in that another program serves over gRPC.

    Attributes:
        type: snapshot, content, diff or sandbox.
        remote: ours: what a snapshotter is called there, if not as here; the namespace of a content store there.
    """

    type: str = ""
    address: str = ""
    remote: str = ""
    platform: str = ""
    exports: dict[str, str] = field(default_factory=dict)
    capabilities: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class BoundSocket:
    """A socket for one namespace; both gRPC and, at `.ttrpc`, ttrpc. See `orlop.server.roles`.

    Attributes:
        role: read, run or full.
        mode: of the socket's file; with `uid` and `gid` it decides who may connect.
        runtimes: names that containers made through it may ask for.
        fifo_directory: where FIFOs of its clients must lie; below the state directory if empty. The daemon makes it.
    """

    address: str = ""
    namespace: str = ""
    role: str = ""
    uid: int = 0
    gid: int = 0
    mode: int = 0o660
    runtimes: list[str] = field(default_factory=lambda: ["io.containerd.runc.v2", "io.containerd.orlop.v1"])
    fifo_directory: str = ""


@dataclass(kw_only=True)
class Config:
    """The whole configuration; `plugins` holds raw tables until the plug-in's own class reads them.

    Fields marked with a `plugin` are that plug-in's table in the file.
    """

    version: int = migration.NEWEST
    root: str = "/var/lib/orlop"
    state: str = "/run/orlop"
    oom_score: int = 0
    disabled_plugins: list[str] = field(default_factory=list)
    required_plugins: list[str] = field(default_factory=list)
    entry_points: bool = True
    warm_cgroups: bool = True
    early_deletion: bool = True
    imports: list[str] = field(default_factory=lambda: [DEFAULT_IMPORTS])
    debug: Debug = field(default_factory=Debug)
    cgroup: Cgroup = field(default_factory=Cgroup)
    proxy_plugins: dict[str, ProxyPlugin] = field(default_factory=dict)
    stream_processors: dict[str, StreamProcessor] = field(default_factory=processors.defaults)
    timeouts: dict[str, str] = field(default_factory=dict)
    runtimes: dict[str, str] = field(default_factory=dict)
    sockets: dict[str, BoundSocket] = field(default_factory=dict)
    plugins: dict[str, dict[str, Any]] = field(default_factory=dict)
    grpc: Grpc = field(default_factory=Grpc, metadata={"plugin": "io.containerd.server.v1.grpc"})
    grpc_tcp: GrpcTcp = field(default_factory=GrpcTcp, metadata={"plugin": "io.containerd.server.v1.grpc-tcp"})
    ttrpc: Ttrpc = field(default_factory=Ttrpc, metadata={"plugin": "io.containerd.server.v1.ttrpc"})
    debug_socket: DebugSocket = field(default_factory=DebugSocket, metadata={"plugin": "io.containerd.server.v1.debug"})
    metrics: Metrics = field(default_factory=Metrics, metadata={"plugin": "io.containerd.server.v1.metrics"})
    grpc_metrics: GrpcMetrics = field(
        default_factory=GrpcMetrics, metadata={"plugin": "io.containerd.metrics.v1.grpc-prometheus"}
    )
    warnings: list[str] = field(default_factory=list, metadata={"internal": True})

    @property
    def ttrpc_address(self) -> str:
        """Where the ttrpc door listens: containerd's clients and shims expect the gRPC address and `.ttrpc`."""
        return self.ttrpc.address or f"{self.grpc.address}.ttrpc"


def load(path: Path) -> Config:
    """Read a file and what it imports.

    Raises:
        InvalidArgumentError: not TOML, a version we cannot read, or a value of the wrong type; names file and key.
        OSError: the file cannot be read.
    """
    config = Config()
    _Files(config).read(path)
    return config


def defaults() -> Config:
    """The configuration where there is no file: defaults, and what lies where imports are looked for."""
    config = Config()
    files = _Files(config)
    for pattern in config.imports:
        files.read_all(pattern)
    return config


def section(cls: type[T], table: Mapping[str, Any], where: str, warnings: list[str]) -> T:
    """An instance of the dataclass `cls` from a table over its defaults; unknown keys are added to `warnings`.

    Raises:
        InvalidArgumentError: a value has the wrong type.
    """
    instance = cls()
    _merge(instance, table, where, warnings)
    return instance


def dump(config: Config, sections: Mapping[str, Any] = {}) -> str:
    """The configuration as TOML of the newest version; `sections` are the plug-ins' configurations by `type.id`."""
    tables: dict[str, Any] = {**config.plugins, **{name: _plain(value) for name, value in sections.items()}}
    for one in dataclasses.fields(config):
        if "plugin" in one.metadata:
            tables[one.metadata["plugin"]] = _plain(getattr(config, one.name))
    lines = list(_toml({**_plain(config), "plugins": dict(sorted(tables.items()))}, ()))
    return "\n".join(lines).strip() + "\n"


class _Files:
    """Files that are read over one another, each once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._seen: set[Path] = set()
        self._version = 0  # of the main file, which what it imports must not exceed

    def read(self, path: Path) -> None:
        if path.resolve() in self._seen:
            return
        main = not self._seen
        self._seen.add(path.resolve())
        with path.open("rb") as file:
            try:
                table = tomllib.load(file)
            except tomllib.TOMLDecodeError as error:
                raise InvalidArgumentError(f"configuration {path}: {error}") from error
        version = migration.migrate(table, str(path))
        if main:
            self._version = version
        elif version > self._version and self._version:
            raise InvalidArgumentError(
                f"configuration {path}: version {version} is newer than that of the importing file, {self._version}"
            )
        imports = table.get("imports", list(self._config.imports) if main else [])
        _listeners(self._config, table, str(path))
        _merge(self._config, table, str(path), self._config.warnings, grow=not main)
        for pattern in imports:
            self.read_all(pattern if pattern.startswith("/") else str(path.parent / pattern))

    def read_all(self, pattern: str) -> None:
        """Read every file that matches, by name."""
        for name in sorted(glob.glob(pattern)):
            self.read(Path(name))


def _listeners(config: Config, table: dict[str, Any], place: str) -> None:
    """Take the tables of listeners out of a file's plug-ins, into their own sections."""
    plugins = table.get("plugins", {})
    for one in dataclasses.fields(config):
        uri = one.metadata.get("plugin")
        given = plugins.pop(uri, None) if uri else None
        if given is not None:
            where = f'{place}: plugins."{uri}"'
            _expect(isinstance(given, dict), where, "a table")
            _merge(getattr(config, one.name), given, where, config.warnings)


def _merge(instance: Any, table: Mapping[str, Any], where: str, warnings: list[str], *, grow: bool = False) -> None:
    """Put `table` over a dataclass instance (Any: each plug-in has a class of its own); with `grow` lists grow."""
    hints = typing.get_type_hints(type(instance))
    known = {f.name: f for f in dataclasses.fields(instance) if not {"internal", "plugin"} & f.metadata.keys()}
    for key, value in table.items():
        place = f"{where}: {key}"
        if key not in known:
            warnings.append(f"{place}: unknown key, ignored")
            continue
        current = getattr(instance, key)
        if dataclasses.is_dataclass(current):
            _expect(isinstance(value, dict), place, "a table")
            _merge(current, value, place, warnings, grow=grow)
        elif isinstance(current, dict):
            _expect(isinstance(value, dict), place, "a table")
            _merge_dict(current, typing.get_args(hints[key])[1], value, place, warnings)
        else:
            checked = _checked(hints[key], value, place)
            if grow and isinstance(current, list):
                checked = [*current, *(item for item in checked if item not in current)]
            setattr(instance, key, checked)


def _merge_dict(current: dict[str, Any], item: Any, value: Mapping[str, Any], place: str, warnings: list[str]) -> None:
    """Put a table over a dictionary whose values are of the type `item`: dataclasses, plain values or raw tables."""
    for key, one in value.items():
        where = f"{place}: {key}"
        if dataclasses.is_dataclass(item):
            _expect(isinstance(one, dict), where, "a table")
            _merge(current.setdefault(key, _made(item)), one, where, warnings)
        elif typing.get_origin(item) is dict:
            _expect(isinstance(one, dict), where, "a table")
            _merge_tables(current.setdefault(key, {}), one)
        else:
            current[key] = _checked(item, one, where)


def _made(cls: Any) -> Any:
    return cls()


def _merge_tables(current: dict[str, Any], value: Mapping[str, Any]) -> None:
    for key, item in value.items():
        if isinstance(item, dict) and isinstance(current.get(key), dict):
            _merge_tables(current[key], item)
        else:
            current[key] = item


def _checked(hint: Any, value: Any, place: str) -> Any:
    origin = typing.get_origin(hint) or hint
    if origin is Any:
        return value
    if origin is list:
        _expect(isinstance(value, list), place, "a list")
        (item,) = typing.get_args(hint)
        return [_checked(item, entry, place) for entry in value]
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    right = isinstance(value, origin) and (origin is bool or not isinstance(value, bool))
    _expect(right, place, names.get(origin, str(hint)))
    return value


def _expect(condition: bool, place: str, wanted: str) -> None:
    if not condition:
        raise InvalidArgumentError(f"configuration {place}: must be {wanted}")


def _plain(value: Any) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(value) if not {"internal", "plugin"} & f.metadata.keys()]
    return {name: getattr(value, name) for name in names}


def _toml(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    tables: dict[str, Any] = {}
    scalars: dict[str, Any] = {}
    for key, value in table.items():
        plain = _plain(value) if dataclasses.is_dataclass(value) else value
        (tables if isinstance(plain, dict) else scalars)[key] = plain
    if path and (scalars or not tables):
        yield ""
        yield f"[{'.'.join(_key(part) for part in path)}]"
    for key, value in scalars.items():
        yield f"{_key(key)} = {_value(value)}"
    for key, value in tables.items():
        if value or not path:
            yield from _toml(value, (*path, key))


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _string(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    return str(value)


def _string(text: str) -> str:
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(escapes.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text) + '"'
