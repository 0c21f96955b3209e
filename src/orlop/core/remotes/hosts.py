"""Which servers to ask for a registry's repositories: the registry itself, and the mirrors of `hosts.toml`.

    <hosts_dir>/
      docker.io/hosts.toml              for docker.io
      registry.example_5000_/hosts.toml for registry.example:5000 (or `registry.example:5000/`)
      _default/hosts.toml               for all that have none
      registry.example/{ca.crt,client.cert,client.key}   Docker's layout, where there is no hosts.toml

The files are read anew for each reference, so that changing one needs no restart. A file that cannot be read is an
error that names it; containerd would go on without it, and so might ask a server that the file meant to replace.

Source: containerd's docs/hosts.md and core/remotes/docker/config/hosts.go.
"""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Flag, auto
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from orlop.base.errdefs import InvalidArgumentError, NotFoundError

DEFAULT_DIRECTORY: Final = "_default"
MAX_FILE_SIZE: Final = 1 << 20

_DOCKER_HUB: Final = "docker.io"
_DOCKER_HUB_SERVER: Final = "registry-1.docker.io"
_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS_OF: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Capability(Flag):
    """What a host may be asked. Only a trusted host may RESOLVE, turn a tag into a digest."""

    PULL = auto()
    RESOLVE = auto()
    PUSH = auto()
    REFERRERS = auto()


ALL_CAPABILITIES: Final = Capability.PULL | Capability.RESOLVE | Capability.PUSH | Capability.REFERRERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How a host's certificate is judged, and what we show of our own.

    Attributes:
        ca_files: PEM files of authorities, beside the system's.
        client_pairs: certificate and key files; the key is "" where the first file has both.
        skip_verify: None where nothing is said, which means to verify.
    """

    ca_files: tuple[str, ...] = ()
    client_pairs: tuple[tuple[str, str], ...] = ()
    skip_verify: bool | None = None

    @property
    def said(self) -> bool:
        """Whether anything is configured."""
        return bool(self.ca_files or self.client_pairs or self.skip_verify is not None)

    def over(self, default: "Tls") -> "Tls":
        """These settings, with those of `default` where nothing is said."""
        return Tls(
            ca_files=self.ca_files or default.ca_files,
            client_pairs=self.client_pairs or default.client_pairs,
            skip_verify=default.skip_verify if self.skip_verify is None else self.skip_verify,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One server that can be asked for the repositories of a registry.

    Attributes:
        namespace: the registry that references name, such as `docker.io`.
        address: host and port of the server.
        path: of the API's root: `/v2`.
        upstream: it stands for the registry itself (the `server` of hosts.toml), not for a mirror of it.
        try_https: plain HTTP is a guess (localhost); if the server turns out to want TLS, use it.
        headers: sent with each request to this server, and to no other.
    """

    namespace: str
    scheme: str
    address: str
    path: str = "/v2"
    capabilities: Capability = ALL_CAPABILITIES
    upstream: bool = True
    tls: Tls = field(default_factory=Tls)
    try_https: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    dial_timeout_s: float | None = None
    proxy: str | None = None

    @property
    def is_proxy(self) -> bool:
        """Whether this is another server than the registry that references name, and so must be told which."""
        return self.address != self.namespace and self.address != server_address(self.namespace)

    def __str__(self) -> str:
        return self.address


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOptions:
    """What a user says about all hosts.

    Attributes:
        hosts_dirs: directories to look for the registry's own in, the first that has one counts.
        plain_http: use HTTP where no scheme is configured.
        tls: for hosts that say nothing themselves.
        headers: sent with each request to each of them, before their own.
    """

    hosts_dirs: tuple[str, ...] = ()
    plain_http: bool = False
    tls: Tls = field(default_factory=Tls)
    headers: tuple[tuple[str, str], ...] = ()


def hosts_for(namespace: str, options: HostOptions) -> list[Host]:
    """The servers to ask for `namespace`, in order.

    Raises:
        InvalidArgumentError: a configuration file is wrong; the text names file and field. Or the name is no address.
    """
    directory = _find_directory(namespace, options.hosts_dirs)
    if directory is None:
        return [_checked(_with_defaults(namespace, options, Host(namespace=namespace, scheme="", address="")))]
    return [_checked(_with_defaults(namespace, options, host)) for host in _load_directory(namespace, directory)]


def server_address(namespace: str) -> str:
    """Where a registry really is: Docker Hub's API has another name than its images."""
    return _DOCKER_HUB_SERVER if namespace == _DOCKER_HUB else namespace


def is_localhost(address: str) -> bool:
    """Whether a host, with or without port, is this machine."""
    host = split_port(address)[0].strip("[]").lower()
    return host in {"localhost", "::1"} or re.fullmatch(r"127(\.[0-9]{1,3}){3}", host) is not None


def split_port(address: str) -> tuple[str, str]:
    """Host and port (empty without one) of `host:port` or `[v6]:port`."""
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::([0-9]*))?", address)
    return (match[1], match[2] or "") if match else (address, "")


def parse_duration(text: str) -> float:
    """Seconds of a duration in Go's syntax, such as `1m30s` or `500ms`.

    Raises:
        ValueError: it is none.
    """
    sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    parts = _DURATION_PART.findall(rest)
    if not parts or "".join(number + unit for number, unit in parts) != rest:
        raise ValueError(f'invalid duration "{text}"')
    return sign * sum(float(number) * _SECONDS_OF[unit] for number, unit in parts)


def web_address(url: str) -> SplitResult | None:
    """The parts of an http or https URL that names a host, or None if `url` is none, or has a user in it."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is no number or too large
    except ValueError:
        return None
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        return None
    return parts


def _checked(host: Host) -> Host:
    if web_address(f"{host.scheme}://{host.address}") is None:
        raise InvalidArgumentError(f'registry "{host.address}": not the address of a server')
    return host


def _with_defaults(namespace: str, options: HostOptions, host: Host) -> Host:
    """Fill in the server where the configuration names none, and the user's TLS settings and headers."""
    host = replace(host, headers=(*options.headers, *host.headers))
    if host.address:
        return replace(host, tls=host.tls.over(options.tls))
    tls = host.tls.over(options.tls)
    address = server_address(namespace)
    if namespace == _DOCKER_HUB:
        return replace(host, scheme="https", address=address, tls=tls, capabilities=ALL_CAPABILITIES)
    scheme, try_https = ("http" if options.plain_http else "https"), False
    if is_localhost(address) and not options.plain_http and split_port(address)[1] not in {"", "443"}:
        # What listens on a local port is mostly plain; a self-signed certificate on the own machine proves nothing.
        scheme, try_https = "http", split_port(address)[1] != "80"
        tls = replace(tls, skip_verify=True) if tls.skip_verify is None else tls
    return replace(host, scheme=scheme, address=address, tls=tls, try_https=try_https, capabilities=ALL_CAPABILITIES)


def _find_directory(namespace: str, roots: Sequence[str]) -> str | None:
    for root in roots:
        for name in _directory_names(namespace):
            path = os.path.join(root, name)
            if os.path.isdir(path):
                return path
    return None


def _directory_names(namespace: str) -> list[str]:
    if not namespace or namespace in {".", ".."} or "/" in namespace or "\0" in namespace:
        return [DEFAULT_DIRECTORY]  # no such directory is meant, and none but the default is looked at
    host, port = split_port(namespace)
    return ([f"{host}_{port}_"] if port else []) + [namespace, DEFAULT_DIRECTORY]


def _load_directory(namespace: str, directory: str) -> list[Host]:
    path = os.path.join(directory, "hosts.toml")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_SIZE + 1)
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise InvalidArgumentError(f"registry configuration {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_SIZE:
        raise InvalidArgumentError(f"registry configuration {path}: larger than {MAX_FILE_SIZE} bytes")
    if not data:
        return [Host(namespace=namespace, scheme="", address="", tls=_load_certificates(directory))]
    try:
        return parse_hosts(namespace, data.decode(), directory)
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(f"registry configuration {path}: {error}") from error


def _load_certificates(directory: str) -> Tls:
    """Docker's layout: `*.crt` are authorities, `*.cert` with `*.key` are our own certificates."""
    names = sorted(os.listdir(directory))
    authorities = tuple(os.path.join(directory, name) for name in names if name.endswith(".crt"))
    pairs = []
    for name in names:
        if name.endswith(".cert"):
            key = name.removesuffix(".cert") + ".key"
            pairs.append((os.path.join(directory, name), os.path.join(directory, key) if key in names else ""))
    return Tls(ca_files=authorities, client_pairs=tuple(pairs))


def parse_hosts(namespace: str, text: str, directory: str) -> list[Host]:
    """The hosts of a `hosts.toml`: those of its `host` tables in their order, then the server.

    Args:
        directory: where relative paths in the file start.

    Raises:
        ValueError, TypeError: what is wrong, without the file's name.
    """
    document = tomllib.loads(text)
    tables = document.get("host", {})
    if not isinstance(tables, dict):
        raise TypeError('"host" must be a table of hosts')
    mirrors = [_parse_host(namespace, url, _table(table, url), directory) for url, table in tables.items()]
    server = document.get("server", "")
    if not isinstance(server, str):
        raise TypeError('"server" must be a text')
    upstream = _parse_host(namespace, server, document, directory)
    return [*(replace(mirror, upstream=False) for mirror in mirrors), upstream]


def _table(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f'host "{name}" must be a table')
    return value


def _parse_host(namespace: str, url: str, table: Mapping[str, Any], directory: str) -> Host:
    # Any: a TOML table; each value is checked where it is read.
    scheme, address, path = _parse_server(url, override=bool(table.get("override_path", False)))
    return Host(
        namespace=namespace,
        scheme=scheme,
        address=address,
        path=path,
        capabilities=_parse_capabilities(table.get("capabilities", [])),
        tls=Tls(
            ca_files=tuple(_absolute(directory, path) for path in _texts("ca", table.get("ca", []))),
            client_pairs=_parse_client(table.get("client", []), directory),
            skip_verify=_parse_flag("skip_verify", table.get("skip_verify")),
        ),
        try_https=scheme == "http" and any(key in table for key in ("ca", "client", "skip_verify")),
        headers=_parse_headers(table.get("header", {})),
        dial_timeout_s=parse_duration(table["dial_timeout"]) if table.get("dial_timeout") else None,
        proxy=_parse_proxy(table.get("proxy")),
    )


def _parse_server(url: str, *, override: bool) -> tuple[str, str, str]:
    if not url:
        return "", "", "/v2"
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ValueError(f'"{url}" is no address of a server')
    return parts.scheme, _without_user(parts), _parse_path(parts.path, override=override)


def _without_user(parts: SplitResult) -> str:
    if "@" in parts.netloc:
        raise ValueError(f'server "{parts.hostname}": credentials do not belong into the address')
    return parts.netloc


def _parse_path(path: str, *, override: bool) -> str:
    clean = "/".join(part for part in path.split("/") if part not in {"", "."})
    if ".." in clean.split("/"):
        raise ValueError(f'path "{path}" climbs')
    clean = f"/{clean}" if clean else ""
    if override or clean.endswith("/v2"):
        return clean
    return f"{clean}/v2"


def _parse_capabilities(value: object) -> Capability:
    names = _texts("capabilities", value)
    if not names:
        return ALL_CAPABILITIES
    found = Capability(0)
    for name in names:
        try:
            found |= Capability[name.upper()]
        except KeyError:
            raise ValueError(f"unknown capability {name}") from None
    return found


def _parse_client(value: object, directory: str) -> tuple[tuple[str, str], ...]:
    if isinstance(value, str):
        return ((_absolute(directory, value), ""),)
    if not isinstance(value, list):
        raise TypeError('invalid type for "client"')
    pairs = []
    for item in value:
        if isinstance(item, str):
            pairs.append((_absolute(directory, item), ""))
        elif isinstance(item, list) and len(item) == 2 and all(isinstance(path, str) for path in item):
            pairs.append((_absolute(directory, item[0]), _absolute(directory, item[1]) if item[1] else ""))
        else:
            raise TypeError(f'invalid pair {item} for "client"')
    return tuple(pairs)


def _parse_headers(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise TypeError('"header" must be a table')
    return tuple((name, text) for name, texts in value.items() for text in _texts(f"header {name}", texts))


def _parse_flag(name: str, value: object) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f'"{name}" must be true or false')
    return value


def _parse_proxy(value: object) -> str | None:
    if value is None:
        return None
    parts = urlsplit(value) if isinstance(value, str) else None
    if parts is None or not parts.netloc or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError('"proxy" must be the address of a proxy, such as "http://proxy:8080"')
    if parts.scheme not in {"http", "https"}:
        raise ValueError(f'proxies of scheme "{parts.scheme}" are not supported')
    return str(value)


def _texts(name: str, value: object) -> list[str]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise TypeError(f'"{name}" must be a text or a list of texts')
    return items


def _absolute(directory: str, path: str) -> str:
    return os.path.join(directory, path)


def require(hosts: Sequence[Host], capability: Capability, what: str) -> list[Host]:
    """The hosts that can do something.

    Raises:
        NotFoundError: none can.
    """
    found = [host for host in hosts if capability in host.capabilities]
    if not found:
        raise NotFoundError(f"no {what} hosts")
    return found
