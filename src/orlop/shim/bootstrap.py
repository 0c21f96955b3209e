"""The program `containerd-shim-orlop-v1`: what a daemon calls before it speaks ttrpc with the supervisor.

    -namespace NS -address ADDR -id ID [-publish-binary PATH] [-debug] start    (in the bundle)
        find the supervisor of (ADDR, NS) or start it; print how to reach it
    … -bundle PATH delete
        after a supervisor has died: kill the container, undo its mounts, print a DeleteResponse
    … resume
        start again the supervisors of (ADDR, NS) that were killed with containers still to be removed; print how to
        reach each, a line for each; remove sockets on which nobody listens
    -v, -info
        version; RuntimeInfo as protobuf

`start` imports as little as it can, because a foreign daemon runs it for every container. What it prints must be alone
on stdout and stderr: containerd reads both as the answer.

Source: core/runtime/v2/README.md and pkg/shim/shim.go of containerd.
"""

import _socket  # the C module: `socket` and `signal` build enums of all their constants, 8 ms for each container
import fcntl
import os
import select
import sys
import time

from orlop.base import failpoints
from orlop.shim.paths import LOG_LIMIT, Place, state_directory
from orlop.shim.startup import Startup, parse

_START_LIMIT_S = 10.0
_FEATURES = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
_TASKS = "io.containerd.runtime.v2.task"
_STDIN_LIMIT = 4 << 20
_LISTENER_FD = 3
_LOCK_FD = 4
_BACKLOG = 512


class Arguments:
    """The command line, in Go's flag syntax: `-name value`, `-name=value`, with one dash or two."""

    def __init__(self, argv: list[str]) -> None:
        self.namespace = ""
        self.address = ""
        self.id = ""
        self.bundle = ""
        self.socket = ""
        self.publish_binary = ""
        self.shim_cgroup = ""  # ours, from `start` to the supervisor
        self.debug = False
        self.version = False
        self.info = False
        self.action = ""
        rest = list(argv)
        while rest and rest[0].startswith("-") and rest[0] != "-":
            word = rest.pop(0)
            if word == "--":
                break
            self._flag(word.lstrip("-"), rest)
        if rest:
            self.action = rest[0]

    def _flag(self, word: str, rest: list[str]) -> None:
        name, equals, value = word.partition("=")
        if name in ("debug", "v", "version", "info"):
            setattr(self, "version" if name == "v" else name, value.lower() not in ("false", "0", "f"))
            return
        attribute = name.replace("-", "_")
        if attribute not in ("namespace", "address", "id", "bundle", "socket", "publish_binary", "shim_cgroup"):
            raise ValueError(f"flag provided but not defined: -{name}")
        if not equals:
            if not rest:
                raise ValueError(f"flag needs an argument: -{name}")
            value = rest.pop(0)
        setattr(self, attribute, value)


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    try:
        arguments = Arguments(sys.argv[1:] if argv is None else argv)
        if arguments.version:
            return _print_version()
        if arguments.info:
            return _print_info()
        if not arguments.namespace:
            raise ValueError("shim namespace cannot be empty")
        _check_names(arguments)
        if arguments.action == "start":
            return _start(arguments)
        if arguments.action == "resume":
            return _resume(arguments)
        if arguments.action == "delete":
            from orlop.shim.deletion import delete

            return delete(arguments.namespace, arguments.address, arguments.id, arguments.bundle or os.getcwd())
        if arguments.action:
            raise ValueError(f"unknown command {arguments.action!r}; known: start, resume, delete")
        return _serve(arguments)
    except Exception as error:  # whatever it is, the daemon quotes these lines
        sys.stderr.write(f"containerd-shim-orlop-v1: {error}\n")
        return 1


def _check_names(arguments: Arguments) -> None:
    for what, name in (("namespace", arguments.namespace), ("id", arguments.id)):
        if name and (len(name) > 76 or "/" in name or name in (".", "..") or not name.isprintable()):
            raise ValueError(f"{what} {name[:100]!r} is not valid")


# ---- start


def _start(arguments: Arguments) -> int:
    bundle = arguments.bundle or os.getcwd()
    startup = parse(_read_stdin(), arguments.namespace, arguments.id)
    if startup.ttrpc_address:
        os.environ["TTRPC_ADDRESS"] = startup.ttrpc_address
    cgroup = startup.shim_cgroup or _recorded_cgroup(bundle)
    place = Place(state_directory(), arguments.address, arguments.namespace, cgroup)
    place.make_directory()
    _ensure(place, arguments, bundle, startup)
    with open(os.path.join(bundle, "address"), "w", encoding="utf-8") as file:
        file.write(place.url)
    failpoints.reach("shim.launch.noted")
    sys.stdout.write(_answer(place))
    sys.stdout.flush()
    return 0


def _resume(arguments: Arguments) -> int:
    from orlop.shim.unfinished import forget_sockets, places

    bundle = f"{state_directory()}/{_TASKS}/{arguments.namespace}/-"  # none: beside those that there are
    for place in places(state_directory(), arguments.address, arguments.namespace):
        _ensure(place, arguments, bundle, Startup())
        sys.stdout.write(f"{_answer(place)}\n")
    forget_sockets(f"{state_directory()}/s")
    sys.stdout.flush()
    return 0


def _recorded_cgroup(bundle: str) -> str:
    """The cgroup of the supervisor that held this bundle's task before, if it is a successor that is to be started."""
    if not os.path.lexists(f"{bundle}/orlop/init.json"):
        return ""
    from orlop.shim import records

    record = records.read(records.path(bundle))
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return record.shim_cgroup if record is not None and record.boot == file.read().strip() else ""


def _ensure(place: Place, arguments: Arguments, bundle: str, startup: Startup) -> None:
    """Return when a supervisor listens. Whoever gets the lock starts it; the others wait for its socket."""
    deadline = time.monotonic() + _START_LIMIT_S
    while True:
        lock = os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if _answers(place.socket):
                    return
            else:
                _launch(place, arguments, bundle, lock, startup)
                return
        finally:
            os.close(lock)
        if time.monotonic() > deadline:
            raise TimeoutError(f"supervisor {place.socket} holds its lock but does not listen")
        select.select([], [], [], 0.005)


def _answers(path: str) -> bool:
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        probe.connect(path)
    except OSError:
        return False
    finally:
        probe.close()
    return True


def _launch(place: Place, arguments: Arguments, bundle: str, lock: int, startup: Startup) -> None:
    """Start the supervisor with its listening socket and the lock; connections wait in the backlog until it serves."""
    if os.path.lexists(place.socket):
        os.unlink(place.socket)  # left by one that was killed: we hold the lock
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    os.fchmod(listener.fileno(), 0o600)
    listener.bind(place.socket)
    listener.listen(_BACKLOG)
    try:
        failpoints.reach("shim.launch.bound")
        log = _open_log(place.log)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        pid = _spawn(place, arguments, bundle, _file_actions(null, log, listener.fileno(), lock))
    except OSError:
        os.unlink(place.socket)  # there is nobody behind it
        raise
    failpoints.reach("shim.launch.spawned")
    _adjust(pid)
    if place.cgroup:
        _join_cgroup(pid, place.cgroup, must=bool(startup.shim_cgroup))
    for fd in (null, log):
        os.close(fd)
    listener.close()


def _spawn(place: Place, arguments: Arguments, bundle: str, file_actions: list[tuple[int, ...]]) -> int:
    argv = [sys.executable, *_interpreter_options(), "-m", "orlop.cmd.shim", "-namespace", place.namespace]
    argv += ["-address", place.address, "-id", arguments.id, "-bundle", bundle]
    if place.cgroup:
        argv += ["-shim-cgroup", place.cgroup]
    if arguments.debug:
        argv.append("-debug")
    failpoints.reach("shim.launch.spawning")
    return os.posix_spawn(
        sys.executable,
        argv,
        {**os.environ, "ORLOP_STATE": place.state},
        file_actions=file_actions,
        setsid=True,
        setsigmask=(),
        setsigdef=[signum for signum in range(1, 65) if signum not in _NOT_TO_BE_SET],
    )


# SIGKILL and SIGSTOP cannot be set; 32 and 33 belong to the C library (see `_serve`).
_NOT_TO_BE_SET = (9, 19, 32, 33)


def _interpreter_options() -> list[str]:
    """Isolated; and without docstrings (1 MB in each supervisor), unless all would be compiled anew each time."""
    return ["-I", "-OO"] if os.access(os.path.dirname(os.__file__), os.W_OK) else ["-I"]


def _file_actions(null: int, log: int, listener: int, lock: int) -> list[tuple[int, ...]]:
    high = 64 + max(null, log, listener, lock)
    wanted = (null, log, log, listener, lock)
    actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, fd, high + at) for at, fd in enumerate(wanted)]
    actions += [(os.POSIX_SPAWN_DUP2, high + at, at) for at in range(len(wanted))]
    actions += [(os.POSIX_SPAWN_CLOSE, high + at) for at in range(len(wanted))]
    return actions


def _open_log(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    if os.fstat(fd).st_size > LOG_LIMIT:
        os.ftruncate(fd, 0)
    return fd


def _adjust(pid: int) -> None:
    """The kernel shall end the supervisor before the daemon that started us, if it must: one point above it."""
    try:
        with open(f"/proc/{os.getppid()}/oom_score_adj", encoding="ascii") as file:
            score = min(int(file.read()) + 1, 1000)
        with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(score))
    except (OSError, ValueError):
        pass  # not allowed to: it keeps what it has inherited


def _join_cgroup(pid: int, path: str, *, must: bool) -> None:
    """Move the supervisor into the cgroup that the client's options name, in every hierarchy that has it.

    Raises:
        ValueError, OSError: none has it, or it cannot be joined, and it must be. The supervisor is ended then.
    """
    from orlop.shim.cgroup import hierarchies

    unified, controllers = hierarchies()
    tops = {one.mount_point for one in (unified, *controllers.values()) if one is not None}
    directories = [top + os.path.normpath(f"/{path}") for top in sorted(tops)]
    try:
        there = [directory for directory in directories if os.path.isdir(directory)]
        if not there:
            raise ValueError(f"shim cgroup {path}: there is none")
        for directory in there:
            with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as file:
                file.write(str(pid))
    except (OSError, ValueError):
        if must:  # a successor is needed by tasks that run, whatever has become of the cgroup
            os.kill(pid, 9)
            raise


def _read_stdin() -> bytes:
    """What the daemon sends along: runtime options (1.6 on) or BootstrapParams (2.3 on); nothing from a terminal."""
    try:
        if os.isatty(0):
            return b""
        data = b""
        while len(data) < _STDIN_LIMIT:
            ready, _, _ = select.select([0], [], [], 1.0)
            chunk = os.read(0, 65536) if ready else b""
            if not chunk:
                break
            data += chunk
        return data
    except OSError:
        return b""


def _answer(place: Place) -> str:
    """The address alone is what every containerd understands; JSON with version 3 for those that say they do."""
    try:
        newest = int(os.environ.get("MAX_SHIM_VERSION", "2"))
    except ValueError:
        newest = 2
    if newest < 3:
        return place.url
    return f'{{"version":3,"address":"{place.url}","protocol":"ttrpc"}}'


# ---- serve


def _serve(arguments: Arguments) -> int:
    """Be the supervisor: socket at 3 and lock at 4, as `_launch` has put them."""
    import logging
    import socket

    _lighten()
    from orlop.linux.signals import reset_internal
    from orlop.shim.supervisor import serve

    logging.basicConfig(
        level=logging.DEBUG if arguments.debug else logging.INFO,
        format='time="%(asctime)s" level=%(levelname)s logger=%(name)s msg="%(message)s"',
    )
    reset_internal()
    for fd in (_LISTENER_FD, _LOCK_FD):
        os.set_inheritable(fd, False)
    os.umask(0o022)
    os.chdir("/")
    place = Place(state_directory(), arguments.address, arguments.namespace, arguments.shim_cgroup)
    with socket.socket(fileno=_LISTENER_FD) as listener:
        serve(
            place,
            listener,
            events_path=_events_path(arguments),
            tasks_directory=_tasks_directory(arguments.bundle),
        )
    return 0


def _tasks_directory(bundle: str) -> str:
    """Where the bundles of the namespace's tasks lie, also if this one is a sandbox's: beside those of sandboxes."""
    directory = os.path.dirname(bundle)
    parent, kind = os.path.split(os.path.dirname(directory))
    if not kind.startswith("io.containerd.sandbox.controller."):
        return directory
    return os.path.join(parent, _TASKS, os.path.basename(directory))


def _lighten() -> None:
    """Leave out what would be imported and never be used: 5 MB of each supervisor."""
    import types

    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]  # asyncio takes this for "no TLS here"
    try:
        import google._upb._message  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
    except ImportError:
        return
    if os.environ.get("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "upb") == "upb":
        # Protobuf in Python, which it imports even where it is done in C.
        name = "google.protobuf.internal.python_message"
        sys.modules.setdefault(name, types.ModuleType(name))


def _events_path(arguments: Arguments) -> str:
    """The daemon's ttrpc socket, for events."""
    address = os.environ.get("TTRPC_ADDRESS", "")
    if not address and arguments.address:
        address = f"{arguments.address}.ttrpc"
    return address.removeprefix("unix://")


# ---- version and info


def _print_version() -> int:
    import platform

    from orlop.version import __version__

    sys.stdout.write(
        f"containerd-shim-orlop-v1:\n  Version:  {__version__}\n  Python version: {platform.python_version()}\n\n"
    )
    return 0


def _print_info() -> int:
    from google.protobuf.any_pb2 import Any as AnyMessage

    from orlop.api.types import introspection_pb2
    from orlop.shim.options import parse as parse_options
    from orlop.version import __version__

    given = AnyMessage.FromString(_read_stdin())
    info = introspection_pb2.RuntimeInfo(name="io.containerd.orlop.v1")
    info.version.version = __version__
    if given.type_url:
        info.options.CopyFrom(given)
    document = _features(parse_options(given).binary)
    if document:
        info.features.type_url = _FEATURES
        info.features.value = document
    sys.stdout.buffer.write(info.SerializeToString())
    return 0


def _features(name: str) -> bytes:
    """What the OCI runtime says of itself; empty where it does not know the question, as crun before 1.8.6."""
    import subprocess

    from orlop.shim.runtime import find_program

    for candidate in [name] if name else ["runc", "crun"]:
        program = find_program(candidate)
        if program:
            done = subprocess.run([program, "features"], capture_output=True, stdin=subprocess.DEVNULL, check=False)
            return done.stdout.strip() if done.returncode == 0 else b""
    return b""
