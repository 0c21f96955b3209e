"""`ctr fsck`: ours; containerd's ctr has no such command."""

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from orlop.base import platforms
from orlop.base.errdefs import InvalidArgumentError, OrlopError
from orlop.client.connect import default_address
from orlop.cmd.cli import App, ExitCode, GoCommand, pass_app
from orlop.core.fsck import Finding, Unchecked

if TYPE_CHECKING:
    from orlop.client.holding import Holder

FOUND = 1
UNCHECKED = 2


@click.command(cls=GoCommand)
@click.option("--repair", is_flag=True, help="Mend what can be mended.")
@click.option("--quick", is_flag=True, help="Read no blob's bytes and unpack no layer.")
@click.option("--deep", is_flag=True, help="Read all blobs and compare all layers with theirs; the default.")
@click.option("--json", "as_json", is_flag=True, help="Print an object of JSON for each finding, a line each.")
@pass_app
def fsck(app: App, repair: bool, quick: bool, deep: bool, as_json: bool) -> None:
    """Compare what the daemon knows with what there is, while it goes on.

    The exit status is 0 if all is well or has been mended, 1 if something is left, 2 if something could not be checked.
    """
    if quick and deep:
        app.warn("--quick and --deep exclude each other")
        raise ExitCode(UNCHECKED)
    found: list[Finding | Unchecked] = []
    try:
        for one in app.client.fsck(repair=repair, quick=quick):
            found.append(one)
            commands = [] if isinstance(one, Unchecked) else _commands(app, one)
            click.echo(
                _json(one, commands) if as_json else "\n".join([_line(one), *(f"  {word}" for word in commands)])
            )
    except OrlopError as error:
        app.warn(str(error))
        raise ExitCode(UNCHECKED) from None
    left = sum(isinstance(one, Finding) and not one.mended for one in found)
    unchecked = sum(isinstance(one, Unchecked) for one in found)
    if not as_json:
        click.echo(_summary(len(found) - unchecked, left, unchecked))
    if unchecked:
        raise ExitCode(UNCHECKED)
    if left:
        raise ExitCode(FOUND)


def _commands(app: App, one: Finding) -> list[str]:
    """The commands that bring a blob again: pulls of the images that need it and whose repository is known to have it.

    The daemon has no credentials for registries; who pulls has.
    """
    if one.mended or not one.kind.startswith("blob-"):
        return []
    found = []
    for namespace in one.namespaces:
        with app.client_of(namespace) as client, contextlib.suppress(OrlopError):
            labels = client.content.info(one.object).labels
            found += [
                _pull(app, namespace, holder)
                for holder in client.images.holding(one.object)
                if _is_known(labels, holder.image)
            ]
    return found


def _is_known(labels: Mapping[str, str], image: str) -> bool:
    """Whether a blob's labels say that it is in an image's repository."""
    from orlop.core.remotes.pusher import source_label

    try:
        key, repository = source_label(image)
    except InvalidArgumentError:
        return False  # a name that no registry has
    return repository in labels.get(key, "").split(",")


def _pull(app: App, namespace: str, holder: "Holder") -> str:
    words = [app.program]
    if app.address != default_address():
        words += ["--address", app.address]
    words += ["--namespace", namespace, "images", "pull"]
    if holder.platform and not platforms.default_matcher()(platforms.parse(holder.platform)):
        words += ["--platform", holder.platform]
    return shlex.join([*words, holder.image])


def _summary(findings: int, left: int, unchecked: int) -> str:
    if not findings and not unchecked:
        return "all is well"
    words = f"{findings} found, {findings - left} mended, {left} left"
    return f"{words}, {unchecked} could not be checked" if unchecked else words


def _line(one: Finding | Unchecked) -> str:
    if isinstance(one, Unchecked):
        return f"unchecked {one.what}: {one.why}"
    whose = f" ({', '.join(one.namespaces)})" if one.namespaces else ""
    return f"{one.kind} {one.object}{whose}: {one.wrong}; {'mended' if one.mended else 'to mend'}: {one.mends}"


def _json(one: Finding | Unchecked, commands: Sequence[str]) -> str:
    import json

    if isinstance(one, Unchecked):
        return json.dumps({"unchecked": one.what, "why": one.why}, ensure_ascii=False)
    return json.dumps(
        {
            "kind": one.kind,
            "object": one.object,
            "namespaces": list(one.namespaces),
            "wrong": one.wrong,
            "mends": one.mends,
            "mended": one.mended,
            "commands": list(commands),
        },
        ensure_ascii=False,
    )
