"""Where a supervisor's files lie. Imports next to nothing: `start` must be quick.

    <state>/s/                   0700
      <32 hex>                   the supervisor's socket, 0600
      <32 hex>.lock              held (flock) by who starts the supervisor, then by the supervisor while it lives
      <32 hex>.log               its log, started anew above LOG_LIMIT bytes
      <32 hex>.sandboxes/<id>    a sandbox, see `orlop.shim.sandboxes`
      <32 hex>.gone/<id>         a container whose Delete was answered before the OCI runtime had removed it
      <32 hex>.gone/.<id>.json   what the OCI runtime says of that; no container's id begins so
    <state>/<runtime>/<namespace>/   state of runc or crun, unless the client names another root
    <bundle>/orlop/              records of the task's processes, see `orlop.shim.records`

The hex digits are those of sha256(daemon address NUL namespace), with NUL and the cgroup where a client's options name
one for the shim: such a supervisor is another one. A path of a unix socket ends at 108 bytes.
"""

import os

STATE_VARIABLE = "ORLOP_STATE"
DEFAULT_STATE = "/run/orlop"
LOG_LIMIT = 1 << 20
_SOCKET_PATH_LIMIT = 107


class Place:
    """The files of the supervisor that serves `namespace` for the daemon at `address`, in `cgroup` if one is named.

    Raises:
        ValueError: the state directory's path is too long for a unix socket below it.
    """

    __slots__ = ("address", "cgroup", "directory", "namespace", "socket", "state")

    def __init__(self, state: str, address: str, namespace: str, cgroup: str = "") -> None:
        self.state = state
        self.address = address
        self.namespace = namespace
        self.cgroup = cgroup
        self.directory = f"{state}/s"
        self.socket = f"{self.directory}/{_digest(address, namespace, *filter(None, [cgroup]))}"
        if len(os.fsencode(self.socket)) > _SOCKET_PATH_LIMIT:
            raise ValueError(
                f"state directory {state!r} is too long: a socket's path ends at {_SOCKET_PATH_LIMIT} bytes"
            )

    @property
    def lock(self) -> str:
        return f"{self.socket}.lock"

    @property
    def log(self) -> str:
        return f"{self.socket}.log"

    @property
    def gone(self) -> str:
        return f"{self.socket}.gone"

    @property
    def sandboxes(self) -> str:
        return f"{self.socket}.sandboxes"

    @property
    def url(self) -> str:
        """The socket as shims print it."""
        return f"unix://{self.socket}"

    def make_directory(self) -> None:
        """Make the directory of sockets, 0700 below a 0711 state directory; an existing one must be ours.

        Raises:
            PermissionError: it belongs to somebody else or others may write into it.
        """
        os.makedirs(self.state, mode=0o711, exist_ok=True)
        try:
            os.mkdir(self.directory, 0o700)
        except FileExistsError:
            found = os.lstat(self.directory)
            if found.st_uid != os.geteuid() or found.st_mode & 0o170077 != 0o040000:
                wanted = f"must be a directory of uid {os.geteuid()} with mode 0700"
                raise PermissionError(f"directory of supervisors {self.directory}: {wanted}") from None


def state_directory() -> str:
    """The state directory: what the daemon says, else /run/orlop (as under a foreign containerd)."""
    return os.path.abspath(os.environ.get(STATE_VARIABLE) or DEFAULT_STATE)


def _digest(*parts: str) -> str:
    # hashlib would load OpenSSL: 3 MB of every supervisor. These two modules are its own fallback.
    try:
        from _sha2 import sha256  # type: ignore[import-not-found,unused-ignore]  # Python 3.12 on
    except ImportError:
        try:
            from _sha256 import sha256  # type: ignore[import-not-found,no-redef,unused-ignore]
        except ImportError:
            from hashlib import sha256
    digest: str = sha256(b"\0".join(map(os.fsencode, parts))).hexdigest()
    return digest[:32]
