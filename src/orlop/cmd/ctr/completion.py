"""`ctr completion`: the script that a shell sources."""

import click

from orlop.base.errdefs import InvalidArgumentError
from orlop.cmd.cli import GoCommand


@click.command(cls=GoCommand)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a shell's completion script.

    For bash: `ctr completion bash > /etc/bash_completion.d/ctr`.
    """
    from click.shell_completion import get_completion_class

    root = context.find_root()
    program = root.info_name or "ctr"
    cls = get_completion_class(shell)
    if cls is None:
        raise InvalidArgumentError(f"no completion for {shell}")
    variable = f"_{program}_COMPLETE".replace("-", "_").upper()
    click.echo(cls(root.command, {}, program, variable).source())
