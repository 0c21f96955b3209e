"""Flags in urfave's spellings, lazy commands, errors and exit codes; no daemon."""

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from orlop.base.errdefs import FailedPreconditionError, NotFoundError
from orlop.cmd import cli
from orlop.cmd.cli import GoCommand, LazyGroup, go_flags
from orlop.cmd.ctr.app import ctr
from orlop.cmd.dist import dist


@click.command(cls=GoCommand, go_flags_end=True)
@click.option("--rm", is_flag=True)
@click.option("--tty", "-t", is_flag=True)
@click.option("--env", multiple=True)
@click.argument("words", nargs=-1)
def _example(rm: bool, tty: bool, env: tuple[str, ...], words: tuple[str, ...]) -> None:
    click.echo(f"{rm} {tty} {list(env)} {list(words)}")


@pytest.mark.parametrize(
    ("args", "result"),
    [
        (["-rm", "a"], ["--rm", "a"]),
        (["--rm=true", "a"], ["--rm", "a"]),
        (["--rm=false", "--tty", "a"], ["--tty", "a"]),
        (["-env", "A=b", "x"], ["--env", "A=b", "x"]),
        (["-env=A=b", "x"], ["--env=A=b", "x"]),
        (["--env", "-rm", "x", "-rm"], ["--env", "-rm", "x", "-rm"]),
        (["-t", "a", "-rm"], ["-t", "a", "-rm"]),
        (["--", "-rm"], ["--", "-rm"]),
    ],
)
def test_flags_have_one_dash_or_two(args: list[str], result: list[str]) -> None:
    assert go_flags(args, _example.params, ends=True) == result


def test_a_boolean_takes_only_boolean_values() -> None:
    with pytest.raises(click.UsageError, match="invalid boolean"):
        go_flags(["--rm=perhaps"], _example.params, ends=True)


def test_the_command_line_of_a_container_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(_example, "x", ["-rm", "a", "--tty", "-rm", "--env"]) == 0  # type: ignore[arg-type]
    assert capsys.readouterr().out == "True False [] ['a', '--tty', '-rm', '--env']\n"


def _commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))


@pytest.mark.parametrize("program", [ctr, dist], ids=lambda group: str(group.name))
def test_every_command_has_help(program: click.Group, capsys: pytest.CaptureFixture[str]) -> None:
    """Loads every module of the commands, too: a table that names one that is not there fails here."""
    paths = list(_commands(program))
    assert len(paths) > 15
    for path in paths:
        assert cli.status_of(program, str(program.name), [*path, "--help"]) == 0
        assert capsys.readouterr().out.startswith("Usage: ")


# Field map, A5: what ctr and dist had in 2017.
SEED = """
apply; containers list; containers delete; containers rm; containers del; containers label; containers info; c ls
content list; content ls; content ingest; content active; content get; content edit; content delete; content rm
content label; events; fetch; fetch-object; images list; images ls; images remove; images rm; images label
images import; images export; namespaces create; namespaces label; namespaces list; namespaces ls; namespaces remove
namespaces rm; pprof goroutines; pprof heap; pprof profile; pprof trace; pprof block; pprof threadcreate; pull; push
push-object; rootfs unpack; run; snapshot archive; snapshot list; snapshot ls; snapshot usage; snapshot remove
snapshot rm; snapshot prepare; snapshot mount; snapshot commit; snapshot tree; tasks attach; tasks checkpoint
tasks exec; tasks kill; tasks pause; tasks ps; tasks resume; tasks start; tasks delete; t ls; shim create; shim start
shim delete; shim state; shim exec; version
"""


@pytest.mark.parametrize("words", [part.strip() for part in SEED.replace("\n", ";").split(";") if part.strip()])
def test_commands_of_2017(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(ctr, "ctr", [*words.split(), "--help"]) == 0
    assert "Usage: ctr" in capsys.readouterr().out


def test_unknown_commands_and_flags_are_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(ctr, "ctr", ["nonsense"]) == 1
    assert "no help topic for 'nonsense'" in capsys.readouterr().err
    assert cli.status_of(ctr, "ctr", ["run", "--nonsense"]) == 1
    assert "--nonsense" in capsys.readouterr().err


def test_no_daemon_is_said_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(ctr, "ctr", ["--address", "/nowhere/x.sock", "version"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("ctr: connect to /nowhere/x.sock: no such file or directory: unavailable\n")
    assert "hint: is the daemon running?" in text


def test_errors_as_grpc_prints_them() -> None:
    error = FailedPreconditionError("namespace x must be empty")
    assert cli.grpc_text(error) == "rpc error: code = FailedPrecondition desc = namespace x must be empty"


def test_message_then_hint(capsys: pytest.CaptureFixture[str]) -> None:
    @click.group(cls=LazyGroup)
    def program() -> None: ...

    @program.command(cls=GoCommand)
    def fail() -> None:
        raise NotFoundError('image "x"', hint="pull it")

    assert cli.status_of(program, "p", ["fail"]) == 1
    assert capsys.readouterr().err == 'p: image "x": not found\n   hint: pull it\n'


def test_heavy_imports_wait() -> None:
    """`ctr version` stays quick: neither asyncio nor grpc nor an HTTP library nor rich is imported for a plain call."""
    code = (
        "import sys; from orlop.cmd.ctr.app import ctr; import orlop.cmd.ctr.server, orlop.client.sync; "
        "import orlop.client.client, orlop.client.ttrpc_channel, orlop.ttrpc.client; "
        "print([m for m in ('asyncio','grpc','aiohttp','rich','msgspec','ssl','http') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
