"""`ctr content edit` and `prune`."""

import contextlib
import os
import subprocess
import tempfile
from datetime import timedelta

import click

from orlop.base.errdefs import FailedPreconditionError, InvalidArgumentError, NotFoundError
from orlop.cmd.cli import App, GoCommand, LazyGroup, pass_app

_CONTENT_MARK = "containerd.io/gc.ref.content."
_LAYER_MARK = f"{_CONTENT_MARK}l."


@click.command(cls=GoCommand)
@click.argument("digest")
@click.option("--validate", help="Check the result: json, or a media type.")
@click.option("--editor", envvar="EDITOR", help="Editor to use.  [env: EDITOR]")
@pass_app
def edit(app: App, digest: str, validate: str | None, editor: str | None) -> None:
    """Edit a blob and print the new digest; the old blob stays."""
    if not editor:
        raise InvalidArgumentError("no editor is known", hint="set EDITOR or give --editor")
    blob = app.client.content.read(digest)
    with tempfile.TemporaryDirectory(prefix="orlop-edit-") as directory:
        path = os.path.join(directory, "edit-" + digest.partition(":")[2][:12])
        with open(path, "wb") as file:
            file.write(blob)
        # The editor may be `vim -n`; a shell would also run what a digest or a path could never hold.
        done = subprocess.run([*editor.split(), path], check=False)
        if done.returncode:
            raise FailedPreconditionError(f"editor {editor!r} ended with status {done.returncode}")
        with open(path, "rb") as file:
            changed = file.read()
    if validate:
        _check(changed, validate)
    click.echo(app.client.content.write(f"edit-{os.getpid()}-{digest}", changed))


def _check(blob: bytes, form: str) -> None:
    from orlop.oci import media_types
    from orlop.oci.image import decode_image, decode_index, decode_manifest

    if media_types.is_manifest(form):
        decode_manifest(blob, what="the edited manifest")
    elif media_types.is_index(form):
        decode_index(blob, what="the edited index")
    elif media_types.is_config(form):
        decode_image(blob, what="the edited configuration")
    elif form in ("json", "application/json") or form.endswith("+json"):
        import json

        try:
            json.loads(blob)
        except ValueError as error:
            raise InvalidArgumentError(f"the edited blob is no JSON: {error}") from error
    else:
        raise InvalidArgumentError(f"unknown format {form!r} to validate")


@click.group(cls=LazyGroup)
def prune() -> None:
    """Let go of content that is kept only by labels."""


@prune.command(cls=GoCommand)
@click.option("--async", "later", is_flag=True, help="Do not wait until the content is gone.")
@click.option("--dry", is_flag=True, help="Only say what would be done.")
@pass_app
def references(app: App, later: bool, dry: bool) -> None:
    """Let go of layers whose image is unpacked: the labels on manifests that keep them are removed."""
    content = app.client.content
    for info in content.walk():
        marks = {name: "" for name in info.labels if _keeps_layer(name)}
        if dry:
            for name in marks:
                app.warn(f"{info.digest}: removing label {name}")
        elif marks:
            with contextlib.suppress(NotFoundError):  # deleted by someone meanwhile
                content.label(info.digest, marks)
    # The end of a lease lets the collector look.
    lease = app.client.leases.create("", expires_in=timedelta(hours=1))
    app.client.leases.delete(lease.id, synchronous=not later)


def _keeps_layer(name: str) -> bool:
    """Whether a manifest's label refers to a layer. Source: isLayerLabel in cmd/ctr/commands/content/prune.go."""
    if name.startswith(_LAYER_MARK):
        return True
    number = name.removeprefix(_CONTENT_MARK)
    # Old labels have a number only; the configuration's is 0.
    return number != name and number.isdecimal() and number != "0"
