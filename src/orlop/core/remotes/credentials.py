"""Who we are to a registry: from the command line, from Docker's and podman's files, from credential helpers.

A `Store` is asked with the host it is about to be used at. What it returns is sent to that host alone, or to the token
server that the host names. Secrets do not show in `repr`, logs or errors.

Sources: docker/cli's config.json, docker/docker-credential-helpers, containers-auth.json(5).
"""

import asyncio
import base64
import binascii
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from orlop.base.errdefs import InvalidArgumentError, UnauthenticatedError
from orlop.core.remotes.hosts import Host

MAX_FILE_SIZE: Final = 1 << 20
MAX_HELPER_OUTPUT: Final = 64 << 10
HELPER_TIMEOUT_S: Final = 60.0

_DOCKER_HUB_HOSTS: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_DOCKER_HUB_KEY: Final = "https://index.docker.io/v1/"
_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TOKEN_USER: Final = "<token>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a registry is shown. With `username` empty, `secret` is an identity (refresh) token.

    Attributes:
        bearer: a token to be sent as it is; then the other two are empty.
        source: where they come from, for people.
    """

    username: str = ""
    secret: str = field(default="", repr=False)
    bearer: str = field(default="", repr=False)
    source: str = ""


class Store(Protocol):
    """Gives credentials for a host, or None where it has none."""

    async def lookup(self, host: Host, repository: str) -> Credentials | None: ...


class Anonymous:
    """No credentials for anyone."""

    async def lookup(self, host: Host, repository: str) -> Credentials | None:
        return None


class Fixed:
    """What the user gave on the command line, for the registry that the reference names; its mirrors get nothing."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def lookup(self, host: Host, repository: str) -> Credentials | None:
        return self._credentials if host.upstream else None


class Chain:
    """The first of several stores that has something."""

    def __init__(self, stores: Iterable[Store]) -> None:
        self._stores = tuple(stores)

    async def lookup(self, host: Host, repository: str) -> Credentials | None:
        for store in self._stores:
            found = await store.lookup(host, repository)
            if found is not None:
                return found
        return None


def parse_user(text: str, *, refresh: str = "") -> Credentials:
    """Credentials of `--user name[:password]` and `--refresh token`; with a token the name does not count."""
    if refresh:
        return Credentials(secret=refresh, source="--refresh")
    username, _, secret = text.partition(":")
    return Credentials(username=username, secret=secret, source="--user")


class _Entry(msgspec.Struct, rename="lower"):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class _File(msgspec.Struct, rename="camel"):
    auths: dict[str, _Entry] = {}
    creds_store: str = ""
    cred_helpers: dict[str, str] = {}


class AuthFile:
    """A `config.json` of Docker or an `auth.json` of podman: entries, and names of helper programs.

    The file is read at each look-up; one that is not there has nothing.
    """

    def __init__(self, path: str, *, helper_path: str | None = None) -> None:
        self._path = path
        self._helper_path = helper_path

    async def lookup(self, host: Host, repository: str) -> Credentials | None:
        """The credentials for `host`, for `repository` on it if there are such.

        Raises:
            InvalidArgumentError: the file is not as it should be.
            UnauthenticatedError: a helper that it names failed.
        """
        file = self._read()
        if file is None:
            return None
        helper = _helper_for(file, host.address)
        if helper:
            found = await run_helper(helper, _server_key(host.address), search_path=self._helper_path)
            if found is not None:
                return found
        return self._entry(file, host.address, repository)

    def _read(self) -> _File | None:
        try:
            with open(self._path, "rb") as file:
                data = file.read(MAX_FILE_SIZE + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InvalidArgumentError(f"credentials {self._path}: {error.strerror}") from error
        if len(data) > MAX_FILE_SIZE:
            raise InvalidArgumentError(f"credentials {self._path}: larger than {MAX_FILE_SIZE} bytes")
        try:
            return msgspec.json.decode(data, type=_File)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            # The error shows a path and types, never values; it is the only thing told of this file's content.
            raise InvalidArgumentError(f"credentials {self._path}: {error}") from None

    def _entry(self, file: _File, address: str, repository: str) -> Credentials | None:
        entries = {_entry_key(key): entry for key, entry in file.auths.items()}
        for key in _entry_candidates(address, repository):
            entry = entries.get(key)
            if entry is not None:
                found = self._credentials(entry, key)
                if found is not None:
                    return found
        return None

    def _credentials(self, entry: _Entry, key: str) -> Credentials | None:
        source = self._path
        if entry.registrytoken:
            return Credentials(bearer=entry.registrytoken, source=source)
        if entry.identitytoken:
            return Credentials(secret=entry.identitytoken, source=source)
        if entry.auth:
            username, secret = _decode_auth(entry.auth, f"credentials {self._path}: entry {key}")
            return Credentials(username=username, secret=secret, source=source)
        if entry.username and entry.password:
            return Credentials(username=entry.username, secret=entry.password, source=source)
        return None


def default_files(environment: Mapping[str, str]) -> list[AuthFile]:
    """The files that podman and docker of this user would read, podman's first, each only if it may count."""
    home = environment.get("HOME", "")
    paths: list[str] = []
    if environment.get("REGISTRY_AUTH_FILE"):
        paths.append(environment["REGISTRY_AUTH_FILE"])
    if environment.get("XDG_RUNTIME_DIR"):
        paths.append(os.path.join(environment["XDG_RUNTIME_DIR"], "containers", "auth.json"))
    paths.append(f"/run/containers/{os.getuid()}/auth.json")
    config_home = environment.get("XDG_CONFIG_HOME") or (os.path.join(home, ".config") if home else "")
    if config_home:
        paths.append(os.path.join(config_home, "containers", "auth.json"))
    docker = environment.get("DOCKER_CONFIG") or (os.path.join(home, ".docker") if home else "")
    if docker:
        paths.append(os.path.join(docker, "config.json"))
    return [AuthFile(path, helper_path=environment.get("PATH")) for path in dict.fromkeys(paths)]


async def run_helper(name: str, server: str, *, search_path: str | None = None) -> Credentials | None:
    """Ask `docker-credential-<name> get` for a server.

    Returns None if the helper says that it has none.

    Raises:
        InvalidArgumentError: `name` is no plain name of a program.
        UnauthenticatedError: the program is missing, fails, hangs, or answers what is no credential.
    """
    if not _HELPER_NAME.fullmatch(name):
        raise InvalidArgumentError(f"credential helper {name!r}: not the name of a program")
    program = f"docker-credential-{name}"
    status, out, err = await _run([program, "get"], server.encode(), search_path)
    said = (out + err).decode("utf-8", "replace").strip()
    if status != 0:
        if "credentials not found" in said:
            return None
        raise UnauthenticatedError(f"credential helper {program} for {server}: exit status {status}: {said[:300]}")
    return _parse_helper_answer(out, program, server)


class _HelperAnswer(msgspec.Struct):
    Username: str = ""
    Secret: str = ""


def _parse_helper_answer(out: bytes, program: str, server: str) -> Credentials | None:
    try:
        answer = msgspec.json.decode(out, type=_HelperAnswer)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise UnauthenticatedError(f"credential helper {program} for {server}: the answer is no JSON") from None
    if not answer.Secret:
        return None
    username = "" if answer.Username == _TOKEN_USER else answer.Username
    return Credentials(username=username, secret=answer.Secret, source=program)


async def _run(argv: Sequence[str], stdin: bytes, search_path: str | None) -> tuple[int, bytes, bytes]:
    environment = None if search_path is None else {**os.environ, "PATH": search_path}
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            limit=MAX_HELPER_OUTPUT,
        )
    except OSError as error:
        raise UnauthenticatedError(f"credential helper {argv[0]}: {error.strerror}") from error
    try:
        async with asyncio.timeout(HELPER_TIMEOUT_S):
            out, err = await process.communicate(stdin)
    except TimeoutError:
        raise UnauthenticatedError(f"credential helper {argv[0]}: no answer in {HELPER_TIMEOUT_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out[:MAX_HELPER_OUTPUT], err[:MAX_HELPER_OUTPUT]


def _helper_for(file: _File, address: str) -> str:
    for key in (address, _server_key(address), *(_DOCKER_HUB_HOSTS if address in _DOCKER_HUB_HOSTS else ())):
        if file.cred_helpers.get(key):
            return file.cred_helpers[key]
    return file.creds_store


def _server_key(address: str) -> str:
    """What Docker calls a server in its stores."""
    return _DOCKER_HUB_KEY if address in _DOCKER_HUB_HOSTS else address


def _entry_key(key: str) -> str:
    """An entry's key without scheme and API version: `https://index.docker.io/v1/` is docker.io."""
    bare = re.sub(r"^https?://", "", key).rstrip("/")
    bare = re.sub(r"/v[12]$", "", bare)
    host, slash, path = bare.partition("/")
    return ("docker.io" if host in _DOCKER_HUB_HOSTS else host) + slash + path


def _entry_candidates(address: str, repository: str) -> list[str]:
    """Keys from the repository up to the host, the narrowest first: podman can log in to a part of a registry."""
    host = "docker.io" if address in _DOCKER_HUB_HOSTS else address
    parts = repository.split("/") if repository else []
    return ["/".join([host, *parts[:length]]) for length in range(len(parts), -1, -1)]


def _decode_auth(auth: str, what: str) -> tuple[str, str]:
    try:
        decoded = base64.b64decode(auth, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise InvalidArgumentError(f"{what}: auth is not base64") from None
    username, colon, secret = decoded.partition(":")
    if not colon:
        raise InvalidArgumentError(f"{what}: auth has no colon")
    return username, secret.rstrip("\0")
