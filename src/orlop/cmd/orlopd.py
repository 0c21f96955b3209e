"""`orlopd`: the daemon. Takes containerd's command line, so that units and scripts only change the program's name."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from orlop.base import stacks
from orlop.base.errdefs import OrlopError, UnavailableError
from orlop.core.version import PACKAGE, VERSION, revision
from orlop.linux import cgroups, malloc, prctl
from orlop.linux.signals import reset_internal
from orlop.server import config as configuration
from orlop.server import logs
from orlop.server.config import Config
from orlop.server.daemon import Daemon
from orlop.server.orphans import reap_orphans

log: Final = logging.getLogger("orlop.cmd.orlopd")

# Files of the daemon are for root alone unless their code says otherwise: the umask is set, not inherited.
UMASK: Final = 0o022
# Seconds for which a thread may hold the interpreter while another wants it; callers would feel the default of 5 ms.
SWITCH_INTERVAL_S: Final = 0.001


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the script `orlopd`."""
    arguments = _parser().parse_args(_with_double_dashes(list(sys.argv[1:] if argv is None else argv)))
    try:
        if arguments.version:
            print(f"orlopd {PACKAGE} {VERSION} {revision()}")
        elif arguments.command is None:
            run(_configure(arguments), lambda: _configure(arguments))
        else:
            arguments.command(arguments)
    except OrlopError as error:
        print(f"orlopd: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"orlopd: {error}", file=sys.stderr)
        sys.exit(1)


def run(config: Config, again: Callable[[], Config]) -> None:
    """Be the daemon until SIGTERM or SIGINT; `again` reads the configuration anew, for SIGHUP."""
    logs.setup(config.debug.level, config.debug.format)
    os.umask(UMASK)
    reset_internal()  # shims, and what they start, inherit what is ignored here
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    malloc.keep_freed()
    prctl.set_child_subreaper()
    if config.oom_score:
        _set_oom_score(config.oom_score)
    if config.cgroup.path:
        _join_cgroup(config.cgroup.path)
    asyncio.run(_serve(config, again))


async def _serve(config: Config, again: Callable[[], Config]) -> None:
    stop, hangup = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    loop.add_signal_handler(signal.SIGUSR1, _dump_stacks)
    log.info("starting", extra={"version": VERSION, "revision": revision(), "root": config.root})
    async with Daemon(config) as daemon:
        beside = [
            asyncio.create_task(reap_orphans(), name="orphans"),
            asyncio.create_task(_reload_at(hangup, daemon, again), name="reload"),
        ]
        try:
            await daemon.serve(stop)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
    log.info("stopped")


async def _reload_at(hangup: asyncio.Event, daemon: Daemon, again: Callable[[], Config]) -> None:
    """Reload at each SIGHUP; a file that cannot be read changes nothing."""
    while True:
        await hangup.wait()
        hangup.clear()
        try:
            config = await asyncio.to_thread(again)
            await daemon.reload(config)
        except (OrlopError, OSError) as error:
            log.error("configuration is not reloaded", extra={"error": str(error)})
            continue
        logs.setup(daemon.config.debug.level, daemon.config.debug.format)
        if daemon.config.oom_score:
            _set_oom_score(daemon.config.oom_score)


def _dump_stacks() -> None:
    print(stacks.text(), file=sys.stderr, end="", flush=True)


def _join_cgroup(path: str) -> None:
    """Move this process into the configured cgroup.

    Raises:
        UnavailableError: no hierarchy takes it.
    """
    try:
        joined = cgroups.join(path)
    except OSError as error:
        raise UnavailableError(f"cgroup {path}: {error}") from error
    log.info("in a cgroup of its own", extra={"path": path, "hierarchies": len(joined)})


def _set_oom_score(score: int) -> None:
    """Set this process's oom_score_adj; where lowering is forbidden, as low as allowed. As containerd's oom_score."""
    path = Path("/proc/self/oom_score_adj")
    try:
        path.write_text(str(score))
    except PermissionError:
        log.warning("oom score cannot be lowered here, left as it is", extra={"wanted": score, "is": path.read_text()})


def _configure(arguments: argparse.Namespace) -> Config:
    path = Path(arguments.config) if arguments.config else configuration.DEFAULT_PATH
    if arguments.config or path.exists():
        try:
            config = configuration.load(path)
        except OSError as error:
            raise OSError(f"configuration {path}: {error.strerror}") from error
    else:
        config = configuration.defaults()
    if arguments.root:
        config.root = arguments.root
    if arguments.state:
        config.state = arguments.state
    if arguments.address:
        config.grpc.address = arguments.address
    if arguments.log_level:
        logs.level(arguments.log_level)
        config.debug.level = arguments.log_level
    return config


def _config_default(_arguments: argparse.Namespace) -> None:
    print(configuration.dump(Config(), _sections(Config())), end="")


def _config_dump(arguments: argparse.Namespace) -> None:
    config = _configure(arguments)
    print(configuration.dump(config, _sections(config)), end="")
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _config_migrate(arguments: argparse.Namespace) -> None:
    """What is in force, without what plug-ins add by default: a file to put in place of the old one."""
    config = _configure(arguments)
    print(configuration.dump(config), end="")
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _sections(config: Config) -> dict[str, object]:
    """Each plug-in's configuration over its defaults."""
    from orlop.server import builtins

    return {
        registration.uri: configuration.section(
            registration.config, config.plugins.get(registration.uri, {}), registration.uri, config.warnings
        )
        for registration in builtins.registrations(with_entry_points=config.entry_points)
        if registration.config is not None
    }


def _publish(arguments: argparse.Namespace) -> None:
    """Publish the event on standard input, an encoded Any, as foreign shims ask their daemon's program to."""
    from orlop import ttrpc
    from orlop.api.services.events.v1 import events_pb2
    from orlop.base.errdefs import from_status
    from orlop.ttrpc.client import Client

    request = events_pb2.PublishRequest(topic=arguments.topic)
    request.event.ParseFromString(sys.stdin.buffer.read())
    address = os.environ.get("TTRPC_ADDRESS") or f"{arguments.address or configuration.DEFAULT_ADDRESS}.ttrpc"
    try:
        with Client.connect(address, timeout_s=10) as client:
            client.call(
                "containerd.services.events.v1.Events",
                "Publish",
                request.SerializeToString(),
                metadata={"containerd-namespace": arguments.namespace},
                timeout_s=10,
            )
    except ttrpc.TtrpcError as error:
        raise from_status(error.code, error.message) from error


def _oci_hook(arguments: argparse.Namespace) -> None:
    from orlop.cmd import oci_hook

    words = arguments.arguments
    oci_hook.run(words[1:] if words[:1] == ["--"] else words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orlopd",
        description="The orlop daemon: serves containerd's API; pulls images, runs containers and supervises them.",
    )
    parser.add_argument("--config", "-c", help=f"configuration file (default {configuration.DEFAULT_PATH})")
    parser.add_argument("--log-level", "-l", help="trace, debug, info, warn, error, fatal or panic")
    parser.add_argument("--address", "-a", help="address of the gRPC socket; the ttrpc socket is beside it")
    parser.add_argument("--root", help="directory of what survives a reboot")
    parser.add_argument("--state", help="directory of what does not")
    parser.add_argument("--version", "-v", action="store_true", help="print the version and end")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands")
    config = commands.add_parser("config", help="information on the configuration")
    kinds = config.add_subparsers(title="commands", required=True)
    kinds.add_parser("default", help="print the defaults").set_defaults(command=_config_default)
    kinds.add_parser("dump", help="print what is in force").set_defaults(command=_config_dump)
    kinds.add_parser("migrate", help="print the file in the newest version").set_defaults(command=_config_migrate)
    publish = commands.add_parser("publish", help="publish an event read from standard input (for shims)")
    publish.add_argument("--namespace", required=True)
    publish.add_argument("--topic", required=True)
    publish.set_defaults(command=_publish)
    hook = commands.add_parser("oci-hook", help="run a program from an OCI hook, with facts in its arguments")
    hook.add_argument("arguments", nargs=argparse.REMAINDER, metavar="-- PROGRAM [ARG...]")
    hook.set_defaults(command=_oci_hook)
    return parser


def _with_double_dashes(argv: list[str]) -> list[str]:
    """Go's flags may be written with one dash: `-root DIR` is `--root DIR`."""
    mine = argv.index("oci-hook") if "oci-hook" in argv else len(argv)  # what follows is another program's
    own = [f"-{word}" if len(word) > 2 and word[0] == "-" and word[1].isalpha() else word for word in argv[:mine]]
    return own + argv[mine:]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
