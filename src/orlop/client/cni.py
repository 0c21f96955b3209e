"""Networks for containers by CNI: the host's plug-ins are run as its configuration says.

As with containerd's `ctr run --cni`, the first configuration in `/etc/cni/net.d`, by name, is the network. What was set
up is written down, in libcni's form, before the first plug-in runs:

    <cache>/results/<network>-<container id>-<interface>

so that it can be undone with the configuration that it was done with, also after a crash in between and after the
configuration has changed. Everything here blocks; it needs root, as the plug-ins do.

Source: the CNI specification 1.0; containerd/go-cni; libcni of containernetworking/cni.
"""

import base64
import contextlib
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from orlop.base.errdefs import InvalidArgumentError, NotFoundError, OrlopError, UnknownError

CONF_DIR: Final = "/etc/cni/net.d"
PLUGIN_DIRS: Final = ("/opt/cni/bin", "/usr/lib/cni")
CACHE_DIR: Final = "/var/lib/cni"

EXTENSION: Final = "ctr.cni-containerd.metadata"
"""Of a container whose network was set up: its record says that it has to be taken down."""
EXTENSION_TYPE: Final = "github.com/containerd/containerd/v2/cmd/ctr/commands/NetworkMetaData"

_SUFFIXES: Final = (".conf", ".conflist", ".json")
_MAX_CONF_BYTES: Final = 2 << 20
_PLUGIN_TIMEOUT_S: Final = 120.0
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_CACHE_KIND: Final = "cniCacheV1"
_PREVIOUS_ON_DEL: Final = (0, 4, 0)  # the version of the specification since which DEL is told ADD's result

Json = dict[str, Any]  # Any: the values of a JSON object


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """A network: plug-ins that are run one after the other.

    Attributes:
        version: of the specification that it is written for.
        source: the bytes of the file.
    """

    name: str
    version: str
    plugins: tuple[Json, ...]
    source: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """What one network has given to a container.

    Attributes:
        interface: its name inside.
        addresses: with their prefix length, such as `10.0.0.2/24`.
        result: of the last plug-in, as it came.
    """

    network: str
    interface: str
    addresses: tuple[str, ...] = ()
    result: Json = field(default_factory=dict)


def load(directory: str, *, limit: int = 1) -> list[NetworkConfig]:
    """Read the network configurations of a directory, in the order of their file names, `limit` of them.

    Raises:
        NotFoundError: there is none.
        InvalidArgumentError: one is not what it should be; the text names the file.
    """
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(_SUFFIXES))
    except FileNotFoundError:
        names = []
    if not names:
        raise NotFoundError(
            f"no network config found in {directory}", hint="put a .conflist file there, or set NETCONFPATH"
        )
    return [_read(os.path.join(directory, name)) for name in names[:limit]]


class Cni:
    """The networks that this host offers to containers.

    Args:
        conf_dir: `NETCONFPATH`, else `/etc/cni/net.d`.
        plugin_dirs: `CNI_PATH`, else `/opt/cni/bin` and `/usr/lib/cni`.
        cache_dir: `CNI_CACHE_DIR`, else `/var/lib/cni`.
    """

    def __init__(self, conf_dir: str = "", plugin_dirs: Sequence[str] = (), cache_dir: str = "") -> None:
        self._conf_dir = conf_dir or os.environ.get("NETCONFPATH") or CONF_DIR
        path = os.environ.get("CNI_PATH", "")
        self._plugin_dirs = tuple(plugin_dirs) or tuple(one for one in path.split(os.pathsep) if one) or PLUGIN_DIRS
        self._cache = os.path.join(cache_dir or os.environ.get("CNI_CACHE_DIR") or CACHE_DIR, "results")

    def setup(self, container_id: str, netns: str) -> list[Attachment]:
        """Connect a container: every plug-in of every network is run with ADD.

        If one fails, what the others have done is undone.

        Args:
            container_id: unique on this host; containerd's ctr takes `<namespace>-<id>`.
            netns: path of its Linux network namespace.

        Raises:
            NotFoundError: no configuration, or a plug-in that it names is not there.
            UnknownError: a plug-in has failed; its words are quoted.
        """
        _validate(container_id, "container id")
        networks = load(self._conf_dir)
        for plugin in (plugin for network in networks for plugin in network.plugins):
            self._find(plugin["type"])  # before anything is done
        found = []
        for number, network in enumerate(networks):
            interface = f"eth{number}"
            self._write(network, container_id, interface, netns, None)
            try:
                result = self._add(network, container_id, interface, netns)
                self._write(network, container_id, interface, netns, result)
            except BaseException as error:
                try:
                    self.remove(container_id, netns)
                except OrlopError as second:
                    error.add_note(f"and taking the network down again failed: {second}")
                raise
            found.append(_attachment(network, interface, result))
        return found

    def remove(self, container_id: str, netns: str = "") -> None:
        """Disconnect a container: the plug-ins are run with DEL, the last first. It is no error if nothing is left.

        Args:
            netns: its Linux network namespace; empty when that has gone, which plug-ins must bear.

        Raises:
            UnknownError: a plug-in has failed; the record stays, so that it can be tried again.
        """
        _validate(container_id, "container id")
        for path, entry in self._entries(container_id):
            network = _recorded(path, entry)
            self._delete(network, container_id, entry.get("ifName") or "eth0", netns, entry.get("result"))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def attachments(self, container_id: str) -> list[Attachment]:
        """What a container is connected to, by the records."""
        found = []
        for path, entry in self._entries(container_id):
            network = _recorded(path, entry)
            found.append(_attachment(network, entry.get("ifName") or "", entry.get("result") or {}))
        return found

    # ---- plug-ins

    def _add(self, network: NetworkConfig, container_id: str, interface: str, netns: str) -> Json:
        result: Json = {}
        for plugin in network.plugins:
            conf = {**plugin, "name": network.name, "cniVersion": network.version}
            if result:
                conf["prevResult"] = result
            result = self._run("ADD", plugin, conf, container_id, interface, netns)
        return result

    def _delete(
        self, network: NetworkConfig, container_id: str, interface: str, netns: str, result: Json | None
    ) -> None:
        first: OrlopError | None = None
        for plugin in reversed(network.plugins):
            conf = {**plugin, "name": network.name, "cniVersion": network.version}
            if result and _version(network.version) >= _PREVIOUS_ON_DEL:
                conf["prevResult"] = result
            try:
                self._run("DEL", plugin, conf, container_id, interface, netns)
            except OrlopError as error:
                # Not all plug-ins bear that the namespace, or what they have made, has gone; go-cni passes over these.
                gone = "not found" in error.text or (not netns and "no such file or directory" in error.text)
                if not (isinstance(error, UnknownError) and gone):
                    first = first or error  # the others may still succeed
        if first is not None:
            raise first

    def _run(self, command: str, plugin: Json, conf: Json, container_id: str, interface: str, netns: str) -> Json:
        kind = plugin["type"]
        environment = {
            **os.environ,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container_id,
            "CNI_NETNS": netns,
            "CNI_IFNAME": interface,
            "CNI_ARGS": "",
            "CNI_PATH": os.pathsep.join(self._plugin_dirs),
        }
        what = f"CNI plugin {kind} for container {container_id}: {command}"
        try:
            done = subprocess.run(
                [self._find(kind)],
                input=json.dumps(conf).encode(),
                capture_output=True,
                env=environment,
                check=False,
                timeout=_PLUGIN_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UnknownError(f"{what}: {error}") from error
        if done.returncode:
            raise UnknownError(f"{what}: {_reason(done.stdout, done.stderr)}")
        return _object(done.stdout, f"{what}: its result") if command == "ADD" else {}

    def _find(self, kind: str) -> str:
        for directory in self._plugin_dirs:
            path = os.path.join(directory, kind)
            if os.access(path, os.X_OK) and os.path.isfile(path):
                return path
        raise NotFoundError(
            f"CNI plugin {kind} in {', '.join(self._plugin_dirs)}",
            hint="install containernetworking-plugins, or set CNI_PATH",
        )

    # ---- records

    def _entries(self, container_id: str) -> list[tuple[str, Json]]:
        with contextlib.suppress(FileNotFoundError):
            names = sorted(name for name in os.listdir(self._cache) if f"-{container_id}-" in name)
            read = [(path, _entry(path)) for path in (os.path.join(self._cache, name) for name in names)]
            # The name alone does not tell: of container ids, one may be a part of another with a network's name.
            return [(path, entry) for path, entry in read if entry.get("containerId") == container_id]
        return []

    def _write(
        self, network: NetworkConfig, container_id: str, interface: str, netns: str, result: Json | None
    ) -> None:
        entry: Json = {
            "kind": _CACHE_KIND,
            "containerId": container_id,
            "config": base64.b64encode(network.source).decode("ascii"),
            "ifName": interface,
            "networkName": network.name,
            "netns": netns,
        }
        if result is not None:
            entry["result"] = result
        os.makedirs(self._cache, mode=0o700, exist_ok=True)
        path = os.path.join(self._cache, f"{network.name}-{container_id}-{interface}")
        beside = f"{path}.{os.getpid()}"
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(entry, file)
        os.replace(beside, path)


def full_id(namespace: str, container_id: str) -> str:
    """How containerd's ctr calls a container towards plug-ins."""
    return f"{namespace}-{container_id}" if namespace else container_id


def extension_value() -> bytes:
    """The value of a container's extension `EXTENSION`."""
    return b'{"EnableCni":true}'


def is_connected(extensions: Mapping[str, Any]) -> bool:
    """Whether a container's extensions say that it has a network of CNI's."""
    # Any: protobuf's Any, of whose two fields one is read.
    packed = extensions.get(EXTENSION)
    if packed is None:
        return False
    try:
        return bool(json.loads(packed.value).get("EnableCni"))
    except (ValueError, AttributeError):
        return False


def _read(path: str) -> NetworkConfig:
    with open(path, "rb") as file:
        source = file.read(_MAX_CONF_BYTES + 1)
    if len(source) > _MAX_CONF_BYTES:
        raise InvalidArgumentError(f"CNI config in {path} exceeded max size of {_MAX_CONF_BYTES}")
    return _parse(source, f"CNI config in {path}")


def _parse(source: bytes, what: str) -> NetworkConfig:
    document = _object(source, what, InvalidArgumentError)
    plugins = document.get("plugins", [document] if "type" in document else [])
    if not isinstance(plugins, list) or not plugins:
        raise InvalidArgumentError(f"{what}: no plugin is named")
    for plugin in plugins:
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        if not isinstance(kind, str) or not kind or "/" in kind or kind in (".", ".."):
            raise InvalidArgumentError(f"{what}: a plugin has no type")
    name = document.get("name")
    _validate(name if isinstance(name, str) else "", f"{what}: network name")
    version = document.get("cniVersion") or "0.1.0"
    return NetworkConfig(name=document["name"], version=str(version), plugins=tuple(plugins), source=source)


def _recorded(path: str, entry: Json) -> NetworkConfig:
    """The configuration that a record was made with."""
    try:
        source = base64.b64decode(entry.get("config") or "")
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"network config in {path} is not base64: {error}") from error
    return _parse(source, f"network config in {path}")


def _entry(path: str) -> Json:
    try:
        with open(path, "rb") as file:
            entry = json.loads(file.read(_MAX_CONF_BYTES))
    except (OSError, ValueError):
        return {}  # removed meanwhile, or not of libcni
    return entry if isinstance(entry, dict) and entry.get("kind") == _CACHE_KIND else {}


def _object(data: bytes, what: str, error_class: type[OrlopError] = UnknownError) -> Json:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise error_class(f"{what} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise error_class(f"{what} is no JSON object")
    return value


def _reason(stdout: bytes, stderr: bytes) -> str:
    """What a plug-in says of its failure: the error object of the specification, else its standard error."""
    try:
        said = json.loads(stdout)
        text = "; ".join(str(said[key]) for key in ("msg", "details") if said.get(key))
    except (ValueError, AttributeError, TypeError):
        text = ""
    return text or stderr.decode("utf-8", "replace").strip() or "it failed without a word"


def _attachment(network: NetworkConfig, interface: str, result: Json) -> Attachment:
    ips = result.get("ips")
    addresses = [one.get("address") for one in ips if isinstance(one, dict)] if isinstance(ips, list) else []
    if not addresses:  # versions before 0.3.0
        addresses = [result[key].get("ip") for key in ("ip4", "ip6") if isinstance(result.get(key), dict)]
    return Attachment(
        network=network.name,
        interface=interface,
        addresses=tuple(one for one in addresses if isinstance(one, str)),
        result=result,
    )


def _validate(text: str, what: str) -> None:
    if not _NAME.fullmatch(text):
        raise InvalidArgumentError(f"{what} {text!r} must match {_NAME.pattern}")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else 0 for part in text.split("."))
