"""What `ctr` and `dist` share: groups whose commands are imported when they are called, urfave's flags, errors.

Source of the spellings: containerd's cmd/ctr with urfave/cli, where a flag may have one dash or two (`-rm`, `--rm`), a
boolean may have a value (`--tty=false`), and the first word that is no flag ends them.
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from orlop.base.errdefs import OrlopError
from orlop.client.connect import DEFAULT_ADDRESS, DEFAULT_NAMESPACE

if TYPE_CHECKING:
    from orlop.client.connect import Transport
    from orlop.client.sync import Client

T = TypeVar("T")

# How long a daemon that has gone away is waited for, and how often it is looked for, in seconds.
_PATIENCE_S: Final = 120.0
_FIRST_PAUSE_S: Final = 0.05
_LAST_PAUSE_S: Final = 1.0

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


@dataclass(slots=True, kw_only=True)
class App:
    """What the global flags say, and the client made from them."""

    program: str
    address: str
    namespace: str
    debug: bool = False
    connect_timeout_s: float | None = None
    transport: "Transport | None" = None
    _client: "Client | None" = field(default=None, repr=False)

    @property
    def client(self) -> "Client":
        """The client; connected by its first call."""
        if self._client is None:
            self._client = self.client_of(self.namespace)
        return self._client

    def client_of(self, namespace: str) -> "Client":
        """Another client, of that namespace; the caller's to close."""
        from orlop.client.sync import Client

        return Client(self.address, namespace, connect_timeout_s=self.connect_timeout_s, transport=self.transport)

    def timed(self) -> None:
        """Note from now on how long the client's calls take."""
        self._client = self.client.timed()

    def close(self) -> None:
        """Close the connection if there is one."""
        if self._client is not None:
            self._client.close()

    def persist(self, call: "Callable[[], T]") -> "T":
        """Make a call that may be made again, over the daemon's going away and coming back.

        Raises:
            UnavailableError: it has been away for two minutes.
        """
        import time

        from orlop.base.errdefs import UnavailableError

        deadline: float | None = None
        pause = _FIRST_PAUSE_S
        while True:
            try:
                return call()
            except UnavailableError:
                deadline = deadline or time.monotonic() + _PATIENCE_S
                if time.monotonic() >= deadline:
                    raise
            self.client.close()  # the next call opens a new connection
            time.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE_S)

    def warn(self, text: str) -> None:
        """Say something on standard error that does not end the command."""
        click.echo(f"{self.program}: {text}", err=True)


pass_app = click.make_pass_decorator(App)


class GoCommand(click.Command):
    """A command with urfave's flags.

    Args:
        go_flags_end: whether the first word that is no flag ends the flags, so that the rest is someone else's command
            line.
    """

    def __init__(self, *args: Any, go_flags_end: bool = False, **settings: Any) -> None:
        # Any: click's own arguments, handed through.
        settings.setdefault("context_settings", CONTEXT_SETTINGS)
        super().__init__(*args, **settings)
        if go_flags_end:
            self.context_settings = {**self.context_settings, "allow_interspersed_args": False}
        self._ends = go_flags_end

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, go_flags(args, self.get_params(ctx), ends=self._ends))


class LazyGroup(click.Group):
    """A group that knows its commands by name, help text and module, and imports a module when its command is called.

    Args:
        lazy: name to (`module:attribute`, help).
        aliases: other names for the same.
        listing: the command that the bare group runs.
    """

    def __init__(
        self,
        *args: Any,
        lazy: Mapping[str, tuple[str, str]] | None = None,
        aliases: Mapping[str, str] | None = None,
        listing: str = "",
        **settings: Any,
    ) -> None:
        # Any: click's own arguments, handed through.
        settings.setdefault("context_settings", CONTEXT_SETTINGS)
        if listing:
            settings["invoke_without_command"] = True
        super().__init__(*args, **settings)
        self._lazy = dict(lazy or {})
        self._aliases = dict(aliases or {})
        self._listing = listing

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self._lazy, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = self._aliases.get(cmd_name, cmd_name)
        known = super().get_command(ctx, name)
        if known is not None or name not in self._lazy:
            return known
        module, _, attribute = self._lazy[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        self.add_command(command, name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        # A shell that completes asks what there is, and has no use for our words.
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            if self._listing:
                # What is no command is an argument of the bare group's listing, as a filter.
                return self._listing, self.get_command(ctx, self._listing), args
            ctx.fail(f"no help topic for {name!r}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        arguments = go_flags(args, self.get_params(ctx), ends=True)
        if self._listing and arguments and arguments[0].startswith("-") and not self._is_own(ctx, arguments[0]):
            arguments = [self._listing, *arguments]
        return super().parse_args(ctx, arguments)

    def invoke(self, ctx: click.Context) -> Any:
        if self._listing and not ctx._protected_args and not ctx.args:
            ctx._protected_args = [self._listing]
        return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        others: dict[str, list[str]] = {}
        for alias, name in self._aliases.items():
            others.setdefault(name, []).append(alias)
        rows = []
        for name in self.list_commands(ctx):
            if name in self._lazy:
                text = self._lazy[name][1]
            else:
                command = super().get_command(ctx, name)
                if command is None or command.hidden:
                    continue
                text = command.get_short_help_str(80)
            rows.append((", ".join([name, *others.get(name, [])]), text))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _is_own(self, ctx: click.Context, text: str) -> bool:
        name = text.partition("=")[0]
        return any(name in (*parameter.opts, *parameter.secondary_opts) for parameter in self.get_params(ctx))


def go_flags(args: Sequence[str], parameters: Sequence[click.Parameter], *, ends: bool) -> list[str]:
    """Arguments in click's spelling: `-rm` becomes `--rm`, `--tty=false` goes, `--tty=true` becomes `--tty`.

    Args:
        ends: leave everything from the first word that is no flag as it is.
    """
    flags: dict[str, bool] = {}  # spelling to whether it takes a value
    for parameter in parameters:
        if isinstance(parameter, click.Option):
            for spelling in parameter.opts:
                flags[spelling] = not parameter.is_flag
    result: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "--" or (ends and not (word.startswith("-") and len(word) > 1)):
            return [*result, word, *rest]
        if not word.startswith("-") or len(word) == 1:
            result.append(word)
            continue
        name, equals, value = word.partition("=")
        if name not in flags and not name.startswith("--") and f"-{name}" in flags and len(name) > 2:
            name = f"-{name}"
        if equals and flags.get(name) is False:
            if value.lower() in ("false", "f", "0"):
                continue
            if value.lower() not in ("true", "t", "1"):
                raise click.UsageError(f"invalid boolean value {value!r} for {name}")
            result.append(name)
            continue
        result.append(name + equals + value)
        if flags.get(name) and not equals and rest:
            result.append(rest.pop(0))
    return result


def global_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The global flags of `ctr` and `dist`."""
    for option in reversed(
        (
            click.option("--debug", is_flag=True, help="Show tracebacks, and what is done on the way."),
            click.option(
                "--address",
                "-a",
                envvar="CONTAINERD_ADDRESS",
                default=DEFAULT_ADDRESS,
                show_default=True,
                help="Address of the daemon's socket.  [env: CONTAINERD_ADDRESS]",
            ),
            click.option("--timeout", default="0s", help="Total time for the command, as 10s; 0 is no limit."),
            click.option("--connect-timeout", default="0s", help="Time for connecting to the daemon; 0 is 10s."),
            click.option(
                "--namespace",
                "-n",
                envvar="CONTAINERD_NAMESPACE",
                default=DEFAULT_NAMESPACE,
                show_default=True,
                help="Namespace of the command.  [env: CONTAINERD_NAMESPACE]",
            ),
            click.option(
                "--transport",
                type=click.Choice(["ttrpc", "grpc"]),
                help="Protocol to the daemon; found out by default.",
            ),
        )
    ):
        function = option(function)
    return function


def start(
    context: click.Context,
    *,
    debug: bool,
    address: str,
    timeout: str,
    connect_timeout: str,
    namespace: str,
    transport: "Transport | None",
) -> None:
    """Take the global flags."""
    from orlop.cmd.units import parse_duration

    app = App(
        program=context.find_root().info_name or "ctr",
        address=address or DEFAULT_ADDRESS,
        namespace=namespace or DEFAULT_NAMESPACE,
        debug=debug,
        connect_timeout_s=parse_duration(connect_timeout) or None,
        transport=transport,
    )
    context.obj = app
    context.call_on_close(app.close)
    total = parse_duration(timeout)
    if total:
        _limit(total)


def _limit(seconds: float) -> None:
    """Let the whole command end after so many seconds, whatever it waits for."""
    import signal

    from orlop.base.errdefs import DeadlineExceededError

    def late(_number: int, _frame: object) -> NoReturn:
        raise DeadlineExceededError(f"the command took longer than {seconds:g} s")

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)


class ExitCode(Exception):
    """Ends the program with a status and without a word."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def run(group: click.Group, program: str, args: Sequence[str] | None = None) -> NoReturn:
    """Run the program to its exit."""
    sys.exit(status_of(group, program, args))


def status_of(group: click.Group, program: str, args: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status: 0, 1 after an error, or that of the process it ran."""
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments
    try:
        group.main(args=arguments, prog_name=program, standalone_mode=False)
    except ExitCode as ended:
        return ended.code
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.UsageError as error:
        _fail(program, error.format_message(), f"see {_path(error, program)} --help")
        return 1
    except click.ClickException as error:
        _fail(program, error.format_message(), None)
        return 1
    except OrlopError as error:
        if debug:
            _traceback()
        _fail(program, str(error), error.hint)
        return 1
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        if debug:
            _traceback()
        where = f"{error.filename}: " if error.filename else ""
        _fail(program, f"{where}{(error.strerror or str(error)).lower()}", None)
        return 1
    except (KeyboardInterrupt, click.Abort):
        return 130
    return 0


def fail_each(app: App, errors: Sequence[str]) -> None:
    """End with the errors of several objects: all but the last as warnings. Nothing for none."""
    if not errors:
        return
    for text in errors[:-1]:
        app.warn(text)
    raise click.ClickException(errors[-1])


def grpc_text(error: OrlopError) -> str:
    """An error as grpc-go prints a status: `rpc error: code = NotFound desc = …`."""
    words = type(error).__name__.removesuffix("Error")
    return f"rpc error: code = {words} desc = {error.text or error.suffix}"


def print_json(value: object, *, indent: int = 4) -> None:
    """JSON as Go's encoder indents it."""
    import json

    click.echo(json.dumps(value, indent=indent, ensure_ascii=False))


def _path(error: click.UsageError, program: str) -> str:
    return error.ctx.command_path if error.ctx is not None else program


def _fail(program: str, text: str, hint: str | None) -> None:
    click.echo(f"{program}: {text}", err=True)
    if hint:
        click.echo(f"{' ' * len(program)}  hint: {hint}", err=True)


def _traceback() -> None:
    import traceback

    traceback.print_exc()
