"""The daemon's configuration: a TOML file in containerd's shape, the command line over it, defaults below both.

    version = 3                  2 is read as well
    root, state                  directories; see ARCHITECTURE.md for what lies in them
    [grpc] address, uid, gid, max_recv_message_size, max_send_message_size
    [ttrpc] address, uid, gid    address empty: the gRPC address and `.ttrpc`
    [debug] level, format        level: trace … fatal; format: text or json
    [runtimes]                   ours: runtime name = path of the shim that serves it
    [plugins."type.id"]          the plug-in's own keys
    disabled_plugins, required_plugins, oom_score, imports
    entry_points                 ours: load plug-ins of other distributions (code in a root daemon)
    warm_cgroups                 ours: keep the kernel's cgroup lock warm while a container is about to start

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

T = TypeVar("T")

DEFAULT_PATH: Final = Path("/etc/orlop/config.toml")
DEFAULT_ADDRESS: Final = "/run/orlop/orlop.sock"
MESSAGE_LIMIT: Final = 16 << 20


@dataclass(kw_only=True)
class Grpc:
    """The gRPC door."""

    address: str = DEFAULT_ADDRESS
    uid: int = 0
    gid: int = 0
    max_recv_message_size: int = MESSAGE_LIMIT
    max_send_message_size: int = MESSAGE_LIMIT


@dataclass(kw_only=True)
class Ttrpc:
    """The ttrpc door."""

    address: str = ""
    uid: int = 0
    gid: int = 0


@dataclass(kw_only=True)
class Debug:
    """Logging."""

    level: str = "info"
    format: str = "text"


@dataclass(kw_only=True)
class Config:
    """The whole configuration; `plugins` holds raw tables until the plug-in's own class reads them."""

    version: int = 3
    root: str = "/var/lib/orlop"
    state: str = "/run/orlop"
    oom_score: int = 0
    disabled_plugins: list[str] = field(default_factory=list)
    required_plugins: list[str] = field(default_factory=list)
    entry_points: bool = True
    warm_cgroups: bool = True
    imports: list[str] = field(default_factory=list)
    grpc: Grpc = field(default_factory=Grpc)
    ttrpc: Ttrpc = field(default_factory=Ttrpc)
    debug: Debug = field(default_factory=Debug)
    runtimes: dict[str, str] = field(default_factory=dict)
    plugins: dict[str, dict[str, Any]] = field(default_factory=dict)
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
    _merge_file(config, path, seen=set())
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
    """The configuration as TOML; `sections` are the plug-ins' configurations by `type.id`."""
    lines = list(_toml(_plain(config), ()))
    for name, value in sorted(sections.items()):
        lines += _toml(_plain(value), ("plugins", name))
    return "\n".join(lines).strip() + "\n"


def _merge_file(config: Config, path: Path, seen: set[Path]) -> None:
    if path.resolve() in seen:
        return
    seen.add(path.resolve())
    with path.open("rb") as file:
        try:
            table = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            raise InvalidArgumentError(f"configuration {path}: {error}") from error
    if table.get("version", 3) not in (2, 3):
        raise InvalidArgumentError(f"configuration {path}: version {table['version']!r}: only 2 and 3 are known")
    _merge(config, table, str(path), config.warnings)
    for pattern in table.get("imports", []):
        absolute = pattern if pattern.startswith("/") else str(path.parent / pattern)
        for name in sorted(glob.glob(absolute)):
            _merge_file(config, Path(name), seen)


def _merge(instance: Any, table: Mapping[str, Any], where: str, warnings: list[str]) -> None:
    """Put `table` over a dataclass instance; Any because each plug-in has a class of its own."""
    hints = typing.get_type_hints(type(instance))
    known = {f.name: f for f in dataclasses.fields(instance) if not f.metadata.get("internal")}
    for key, value in table.items():
        place = f"{where}: {key}"
        if key not in known:
            warnings.append(f"{place}: unknown key, ignored")
            continue
        current = getattr(instance, key)
        if dataclasses.is_dataclass(current):
            _expect(isinstance(value, dict), place, "a table")
            _merge(current, value, place, warnings)
        elif isinstance(current, dict):
            _expect(isinstance(value, dict), place, "a table")
            _merge_tables(current, value)
        else:
            setattr(instance, key, _checked(hints[key], value, place))


def _merge_tables(current: dict[str, Any], value: Mapping[str, Any]) -> None:
    for key, item in value.items():
        if isinstance(item, dict) and isinstance(current.get(key), dict):
            _merge_tables(current[key], item)
        else:
            current[key] = item


def _checked(hint: Any, value: Any, place: str) -> Any:
    origin = typing.get_origin(hint) or hint
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
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if not f.metadata.get("internal")}


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
