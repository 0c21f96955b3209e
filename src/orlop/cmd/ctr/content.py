"""`ctr content`."""

import sys

import click

from orlop.base.errdefs import NotFoundError, OrlopError
from orlop.cmd.cli import App, GoCommand, LazyGroup, fail_each, pass_app
from orlop.cmd.tabwriter import TabWriter
from orlop.cmd.units import ago, decimal, parse_labels
from orlop.cmd.units import labels as label_text

_HERE = "orlop.cmd.ctr"


@click.group(
    cls=LazyGroup,
    listing="list",
    aliases={
        "ls": "list",
        "del": "delete",
        "remove": "delete",
        "rm": "delete",
    },
    lazy={
        "edit": (f"{_HERE}.editing:edit", "Edit a blob and print the new digest."),
        "fetch": (f"{_HERE}.distribution:fetch", "Fetch all content of an image."),
        "fetch-blob": (f"{_HERE}.blobs:fetch_blob", "Write blobs of a registry to standard output."),
        "fetch-object": (f"{_HERE}.distribution:fetch_object", "Write an object of a registry to standard output."),
        "push-object": (f"{_HERE}.distribution:push_object", "Push a blob to a registry."),
        "prune": (f"{_HERE}.editing:prune", "Let go of content that only other content refers to."),
    },
)
def content() -> None:
    """Manage content."""


@content.command("list", cls=GoCommand)
@click.argument("filters", nargs=-1)
@click.option("--quiet", "-q", is_flag=True, help="Print only the digests.")
@pass_app
def list_(app: App, filters: tuple[str, ...], quiet: bool) -> None:
    """List all blobs of the namespace."""
    table = TabWriter(1, 8, 1, "\t")
    table.line("DIGEST\tSIZE\tAGE\tLABELS")
    for info in app.client.content.walk(filters):
        if quiet:
            click.echo(info.digest)
            continue
        text = label_text(info.labels) or "-"
        table.line(f"{info.digest}\t{decimal(info.size_bytes)}\t{ago(info.created_at)}\t{text}")
    if not quiet:
        click.echo(str(table), nl=False)


@content.command(cls=GoCommand)
@click.argument("digests", nargs=-1, required=True, metavar="DIGEST...")
@pass_app
def get(app: App, digests: tuple[str, ...]) -> None:
    """Write blobs to standard output."""
    for digest in map(_digest, digests):
        for chunk in app.client.content.chunks(digest):
            sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


@content.command(cls=GoCommand)
@click.argument("digests", nargs=-1, required=True, metavar="DIGEST...")
@pass_app
def delete(app: App, digests: tuple[str, ...]) -> None:
    """Delete blobs from the namespace."""
    errors = []
    for digest in digests:
        try:
            app.client.content.delete(_digest(digest))
        except NotFoundError:
            continue  # as containerd's: what is not there is not told
        except OrlopError as error:
            errors.append(f"failed to delete {digest!r}: {error}")
            continue
        click.echo(digest)
    fail_each(app, errors)


@content.command(cls=GoCommand)
@click.argument("key")
@click.option("--expected-size", type=int, default=0, help="Size that the content must have, in bytes.")
@click.option("--expected-digest", default="", help="Digest that the content must have.")
@pass_app
def ingest(app: App, key: str, expected_size: int, expected_digest: str) -> None:
    """Take standard input into the content store, under a key until it is whole."""
    from orlop.base.errdefs import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError
    from orlop.core.transfer import CHUNK_BYTES
    from orlop.oci.digest import Digest, new_hash

    if not key:
        raise InvalidArgumentError("must specify a transaction key")
    if expected_digest:
        Digest.parse(expected_digest)
    state = new_hash()
    total = 0
    try:
        with app.client.content.writer(key, size=expected_size, expected=expected_digest) as writer:
            left = writer.offset
            while chunk := sys.stdin.buffer.read(CHUNK_BYTES):
                state.update(chunk)
                total += len(chunk)
                # What an earlier attempt has brought is not sent again; its bytes must be the same ones.
                skipped = min(left, len(chunk))
                left -= skipped
                if skipped < len(chunk):
                    writer.write(chunk[skipped:])
            if expected_size and total < expected_size:
                raise FailedPreconditionError(
                    f"ingest {key}: standard input has {total} bytes instead of the {expected_size} that were expected"
                )
            digest = expected_digest or f"sha256:{state.hexdigest()}"
            writer.commit(size=expected_size, expected=digest)
    except AlreadyExistsError:
        return  # as good as ingested


@content.command(cls=GoCommand)
@click.argument("pattern", default="")
@click.option("--timeout", "-t", default="0s", hidden=True, help="Of 2017; the global flag serves.")
@click.option("--root", hidden=True, help="Of 2017; the daemon knows where its content is.")
@pass_app
def active(app: App, pattern: str, timeout: str, root: str | None) -> None:
    """Show transfers under way."""
    found = app.client.content.ingests([f"ref~={pattern}"] if pattern else [])
    table = TabWriter(1, 8, 1, "\t")
    table.line("REF\tSIZE\tAGE\t")
    for one in found:
        table.line(f"{one.ref}\t{decimal(one.offset)}\t{ago(one.started_at)}\t")
    click.echo(str(table), nl=False)


@content.command(cls=GoCommand)
@click.argument("digest")
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE...]")
@pass_app
def label(app: App, digest: str, labels: tuple[str, ...]) -> None:
    """Set labels; an empty value removes one. Without any, show them."""
    content = app.client.content
    name = _digest(digest)
    info = content.label(name, parse_labels(labels)) if labels else content.info(name)
    click.echo(label_text(info.labels))


def _digest(text: str) -> str:
    """A digest of the command line. Raises InvalidArgumentError."""
    from orlop.oci.digest import Digest

    return Digest.parse(text)
