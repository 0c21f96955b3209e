"""Devices by name, such as `vendor.com/net=nic0`: the Container Device Interface.

A vendor's file says what a device of that name changes in a container: device nodes, mounts, environment, hooks. Files
are those called `.json` and `.yaml` in `/etc/cdi` and `/var/run/cdi`; of two that define the same device the latter
directory's counts, and two in one directory cancel each other out, whatever the latter says.

Source: SPEC.md, pkg/cdi/spec-dirs.go and cache.go of the Container Device Interface, version 1.0; sigs.k8s.io/yaml for
what YAML means.
"""

import json
import os
import stat
import types
from collections.abc import Sequence
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from msgspec import Struct, field
from msgspec.structs import fields

from orlop.base import yaml_text
from orlop.base.errdefs import InvalidArgumentError, NotFoundError, OrlopError
from orlop.oci.spec import Device, DeviceCgroup, Hook, Hooks, IntelRdt, Linux, Mount, Process, Resources, Spec, User
from orlop.oci.spec import decode_part as decode

DIRECTORIES: Final = ("/etc/cdi", "/var/run/cdi")
"""Ascending in rank."""
_HOOKS: Final = {
    "prestart": "prestart",
    "createRuntime": "create_runtime",
    "createContainer": "create_container",
    "startContainer": "start_container",
    "poststart": "poststart",
    "poststop": "poststop",
}


class _Node(Struct, kw_only=True, rename="camel"):
    path: str
    host_path: str = ""
    type: str = ""
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


class _Mount(Struct, kw_only=True, rename="camel"):
    host_path: str
    container_path: str
    options: list[str] = field(default_factory=list)
    type: str = ""


class _Hook(Struct, kw_only=True, rename="camel"):
    hook_name: str
    path: str
    args: list[str] = field(default_factory=list)
    env: list[str] = field(default_factory=list)
    timeout: int | None = None


class _Edits(Struct, kw_only=True, rename="camel"):
    env: list[str] = field(default_factory=list)
    device_nodes: list[_Node] = field(default_factory=list)
    mounts: list[_Mount] = field(default_factory=list)
    hooks: list[_Hook] = field(default_factory=list)
    additional_gids: list[int] = field(default_factory=list)
    intel_rdt: IntelRdt | None = None


class _Device(Struct, kw_only=True, rename="camel"):
    name: str
    container_edits: _Edits = field(default_factory=_Edits)


class _File(Struct, kw_only=True, rename="camel"):
    cdi_version: str
    kind: str
    devices: list[_Device] = field(default_factory=list)
    container_edits: _Edits = field(default_factory=_Edits)


def is_name(text: str) -> bool:
    """Whether a device is meant by name and not by its path."""
    kind, equals, name = text.partition("=")
    vendor, slash, sort = kind.partition("/")
    return bool(equals and slash and vendor and sort and name) and not text.startswith((".", "/")) and "/" not in sort


def inject(spec: Spec, names: Sequence[str], directories: Sequence[str] = DIRECTORIES) -> None:
    """Change a spec as the devices' files say. A file's own changes are made once, before those of its devices.

    Raises:
        NotFoundError: there is no such device, or it is defined twice; names all of them.
        InvalidArgumentError: a file of one of them asks for what cannot be; names it. Files that cannot be read at
            all are passed over.
    """
    known, unread = _devices(directories)
    missing = [name for name in names if known.get(name) is None]
    if missing:
        hint = f"passed over: {'; '.join(unread)}" if unread else None
        raise NotFoundError(f"CDI device injection failed: unresolvable CDI devices {', '.join(missing)}", hint=hint)
    done: set[str] = set()
    for name in names:
        found = known[name]
        assert found is not None
        path, file, device = found
        if path not in done:
            done.add(path)
            _edit(spec, file.container_edits, path)
        _edit(spec, device.container_edits, path)


_Known = dict[str, tuple[str, _File, _Device] | None]


def _devices(directories: Sequence[str]) -> tuple[_Known, list[str]]:
    """Devices by full name, None for one that is defined twice; and why files were passed over."""
    known: _Known = {}
    unread = []
    for directory in directories:
        here: _Known = {}
        try:
            entries = sorted(os.listdir(directory))
        except OSError:
            continue
        for entry in entries:
            path = os.path.join(directory, entry)
            if not entry.endswith((".json", ".yaml")):
                continue
            try:
                with open(path, "rb") as source:
                    file = _read(source.read(), path)
            except OSError as error:  # one vendor's broken file must not take another's devices away
                unread.append(f"{path}: {(error.strerror or '').lower()}")
                continue
            except OrlopError as error:
                unread.append(error.text)
                continue
            for device in file.devices:
                name = f"{file.kind}={device.name}"
                here[name] = None if name in here else (path, file, device)
        twice = {name for name, found in known.items() if found is None}
        known |= here
        known |= dict.fromkeys(twice)
    return known, unread


def _read(data: bytes, path: str) -> _File:
    """A file in its own spelling. Raises InvalidArgumentError."""
    if path.endswith(".json"):
        return decode(data, _File, what=path)
    try:
        value = _textual(yaml_text.loads(data), _File)
    except ValueError as error:
        raise InvalidArgumentError(f"{path}: {error}") from error
    return decode(json.dumps(value).encode(), _File, what=path)


def _textual(value: Any, kind: Any) -> Any:
    """YAML's value with a text wherever `kind` wants one: `cdiVersion: 0.6` and `name: 0` are written so."""
    # Any: what YAML has, and types as the typing module describes them.
    if kind is str and isinstance(value, (bool, int, float)):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if get_origin(kind) in (Union, types.UnionType):
        [kind] = [one for one in get_args(kind) if one is not type(None)]
    if get_origin(kind) is list and isinstance(value, list):
        [item] = get_args(kind)
        return [_textual(one, item) for one in value]
    if isinstance(kind, type) and issubclass(kind, Struct) and isinstance(value, dict):
        wanted = get_type_hints(kind)
        named = {one.encode_name: wanted[one.name] for one in fields(kind)}
        return {name: _textual(one, named[name]) if name in named else one for name, one in value.items()}
    return value


def _edit(spec: Spec, edits: _Edits, path: str) -> None:
    process = spec.process = spec.process or Process()
    linux = spec.linux = spec.linux or Linux()
    for entry in edits.env:
        name = entry.partition("=")[0]
        process.env = [one for one in process.env if one.partition("=")[0] != name] + [entry]
    for node in edits.device_nodes:
        device = _node(node, process.user or User(), path)
        linux.devices = [one for one in linux.devices if one.path != device.path] + [device]
        if device.type in ("b", "c"):
            resources = linux.resources = linux.resources or Resources()
            rule = DeviceCgroup(allow=True, type=device.type, major=device.major, minor=device.minor)
            rule.access = node.permissions or "rwm"
            resources.devices.append(rule)
    for mount in edits.mounts:
        made = Mount(
            destination=mount.container_path, source=mount.host_path, type=mount.type, options=list(mount.options)
        )
        spec.mounts = [one for one in spec.mounts if one.destination != made.destination] + [made]
    if edits.mounts:
        spec.mounts.sort(key=lambda one: os.path.normpath(one.destination).count("/"))  # a parent before its children
    for hook in edits.hooks:
        if hook.hook_name not in _HOOKS:
            raise InvalidArgumentError(f"{path}: invalid hook name {hook.hook_name!r}")
        spec.hooks = spec.hooks or Hooks()
        wanted = Hook(path=hook.path, args=list(hook.args), env=list(hook.env), timeout=hook.timeout)
        getattr(spec.hooks, _HOOKS[hook.hook_name]).append(wanted)
    if edits.additional_gids:
        user = process.user = process.user or User()
        user.additional_gids += [gid for gid in edits.additional_gids if gid and gid not in user.additional_gids]
    if edits.intel_rdt is not None:
        linux.intel_rdt = edits.intel_rdt


def _node(node: _Node, user: User, path: str) -> Device:
    """The device; what its file leaves open is taken from the host's node, and its owner from the process."""
    kind, major, minor = node.type, node.major, node.minor
    if not kind or (not major and kind != "p"):
        source = node.host_path or node.path
        try:
            status = os.stat(source)
        except OSError as error:
            raise InvalidArgumentError(f"{path}: device {source}: {(error.strerror or '').lower()}") from error
        there = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else ""
        there = there or ("p" if stat.S_ISFIFO(status.st_mode) else "")
        if not there or (kind and kind != there):
            raise InvalidArgumentError(f"{path}: {source} is no device node of type {kind or 'b, c or p'}")
        kind = there
        if kind != "p":
            major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    return Device(
        path=node.path,
        type=kind,
        major=major,
        minor=minor,
        file_mode=node.file_mode,
        uid=node.uid if node.uid is not None else user.uid or None,
        gid=node.gid if node.gid is not None else user.gid or None,
    )
