"""Tenants out of the configuration: what a `[sockets.NAME]` says is checked, and its directory for FIFOs made."""

import os
from pathlib import Path
from typing import Final

from orlop.base import namespaces
from orlop.base.errdefs import InvalidArgumentError, OrlopError, UnavailableError
from orlop.core.kinds import METADATA, RUNTIME, SHIM, SNAPSHOTS
from orlop.core.metadata.containers import ContainerStore
from orlop.server.config import BoundSocket, Config
from orlop.server.graph import Graph
from orlop.server.roles.tenant import Role, Tenant

# Its group makes directories there, and each owner removes his own only.
FIFO_MODE: Final = 0o1770


def tenant(name: str, socket: BoundSocket, config: Config, graph: Graph) -> Tenant:
    """Who connects to the socket.

    Raises:
        InvalidArgumentError: a value cannot be; the text names the key.
        UnavailableError: its directory for FIFOs cannot be made.
    """
    where = f"sockets.{name}"
    if socket.role not in set(Role):
        raise InvalidArgumentError(f'{where}: role "{socket.role}": must be one of {", ".join(Role)}')
    try:
        namespaces.validate(socket.namespace)
    except OrlopError as error:
        raise InvalidArgumentError(f"{where}: namespace: {error.text}") from error
    if not 0 <= socket.mode <= 0o777:
        raise InvalidArgumentError(f"{where}: mode {socket.mode:#o}: must be that of a file")
    directory = socket.fifo_directory or f"{config.state}/fifo/{name}"
    if not os.path.isabs(directory) or os.path.normpath(directory) != directory or directory == "/":
        raise InvalidArgumentError(f'{where}: fifo_directory "{directory}": must be a plain absolute path')
    if socket.role != Role.READ:
        _make(Path(directory), socket)
    return Tenant(
        namespace=socket.namespace,
        role=Role(socket.role),
        runtimes=tuple(socket.runtimes),
        fifo_directory=directory,
        containers=ContainerStore(graph.get(METADATA)),
        snapshots=graph.get(SNAPSHOTS),
        shims=graph.get(SHIM),
        tasks=graph.get(RUNTIME),
    )


def _make(directory: Path, socket: BoundSocket) -> None:
    try:
        directory.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        os.chown(directory, socket.uid, socket.gid)
        directory.chmod(FIFO_MODE)
    except OSError as error:
        raise UnavailableError(f"directory {directory}: {error.strerror}") from error
