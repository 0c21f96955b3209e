"""`ctr pprof`: what a daemon does at this moment, over HTTP on its debug socket, which its configuration turns on.

containerd answers in the formats of Go, orlopd in text; pages that Python has no counterpart for it does not know.
"""

import http.client
import socket
import sys
from collections.abc import Callable
from typing import Final

import click

from orlop.base.errdefs import UnavailableError, UnknownError
from orlop.cmd.cli import GoCommand, LazyGroup
from orlop.cmd.units import parse_duration

SocketOf = Callable[[], str]

# Command to page, default of --debug, help.
_KINDS: Final = {
    "block": ("block", 0, "What blocks."),
    "goroutines": ("goroutine", 2, "Stacks of all threads and tasks."),
    "heap": ("heap", 0, "The heap."),
    "threadcreate": ("threadcreate", 0, "What makes threads."),
}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _write(path: str, what: str, timeout_s: float = 30.0) -> None:
    connection = _UnixConnection(path, timeout_s)
    try:
        connection.request("GET", f"/debug/pprof/{what}")
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise UnknownError(f"{path} answers {answer.status} {answer.reason} for {what}")
        while chunk := answer.read(65536):
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise UnavailableError(f"debug socket {path}: {(error.strerror or str(error)).lower()}") from error
    finally:
        connection.close()


def _debug(default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    text = "Format of containerd's answer: 0 for binary, more for text; orlopd's is text always."
    return click.option("--debug", type=click.IntRange(min=0), default=default, show_default=True, help=text)


def _seconds(default: int, text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A number, or a duration as Go writes it."""

    def parsed(_context: click.Context, _option: click.Parameter, given: str) -> float:
        return float(given) if given.isdecimal() else parse_duration(given)

    return click.option("--seconds", "-s", default=str(default), show_default=True, help=text, callback=parsed)


def _command(group: click.Group, name: str, what: str, default: int, text: str) -> None:
    @group.command(name, cls=GoCommand, help=text)
    @_debug(default)
    @click.pass_obj
    def profile_of(socket_of: SocketOf, debug: int) -> None:
        _write(socket_of(), f"{what}?debug={debug}")


def add_profiles(group: click.Group) -> None:
    """Give a group the commands that ask for profiles; its object is a function that says which socket to ask."""
    for name, (what, default, text) in _KINDS.items():
        _command(group, name, what, default, text)

    @group.command(cls=GoCommand)
    @_seconds(30, "How long to sample.")
    @_debug(0)
    @click.pass_obj
    def profile(socket_of: SocketOf, seconds: float, debug: int) -> None:
        """The CPU."""
        _write(socket_of(), f"profile?debug={debug}&seconds={seconds:g}", seconds + 30.0)

    @group.command(cls=GoCommand)
    @_seconds(5, "How long to trace.")
    @_debug(0)
    @click.pass_obj
    def trace(socket_of: SocketOf, seconds: float, debug: int) -> None:
        """An execution trace."""
        _write(socket_of(), f"trace?debug={debug}&seconds={seconds:g}", seconds + 30.0)


@click.group(cls=LazyGroup)
@click.option(
    "--debug-socket", "-d", default="/run/containerd/debug.sock", show_default=True, help="The daemon's debug socket."
)
@click.pass_context
def pprof(context: click.Context, debug_socket: str) -> None:
    """Profiles of the daemon, from its debug socket, on standard output."""
    context.obj = lambda: debug_socket


add_profiles(pprof)
