"""`ctr fsck`: ours; containerd's ctr has no such command."""

import click

from orlop.base.errdefs import OrlopError
from orlop.cmd.cli import App, ExitCode, GoCommand, pass_app
from orlop.core.fsck import Finding, Unchecked

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
            click.echo(_json(one) if as_json else _line(one))
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


def _json(one: Finding | Unchecked) -> str:
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
        },
        ensure_ascii=False,
    )
