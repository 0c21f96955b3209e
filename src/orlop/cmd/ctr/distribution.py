"""`ctr pull`, `push`, `fetch`, `fetch-object`, `push-object`: between registries and the content store."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from orlop.cmd.cli import App, GoCommand, pass_app
from orlop.cmd.ctr.images import snapshotter_option
from orlop.cmd.ctr.moving import Steps, local_option, moved, parse_platforms
from orlop.cmd.progress import Display
from orlop.cmd.units import parse_labels

if TYPE_CHECKING:
    from orlop.client.registry import RegistryOptions
    from orlop.core.transfer.ends import ImageStore, OCIRegistry


def registry_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What containerd's `ctr` takes wherever an image is named; the command gets each by its own name."""
    for option in reversed(
        (
            click.option("--skip-verify", "-k", is_flag=True, help="Do not verify certificates."),
            click.option("--plain-http", is_flag=True, help="Allow plain HTTP."),
            click.option("--user", "-u", default="", help="Name and password for the registry, as user[:password]."),
            click.option("--refresh", default="", help="Refresh token for the authorization server."),
            click.option("--hosts-dir", default="", help="Directory with hosts.toml files."),
            click.option("--tlscacert", default="", help="File with a root certificate."),
            click.option("--tlscert", default="", help="File with a client certificate."),
            click.option("--tlskey", default="", help="File with a client key."),
            click.option("--http-dump", is_flag=True, help="Show the transfer service's requests to registries."),
            click.option("--http-trace", is_flag=True, help="The same."),
        )
    ):
        function = option(function)
    return function


def registry_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """The flags about registries; the command gets them as `registry`."""

    def called(app: App, **flags: Any) -> Any:
        return function(app, registry=_registry(flags), **flags)

    called.__doc__ = function.__doc__
    called.__name__ = function.__name__
    called.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]  # click's own
    called = registry_options(
        click.option(
            "--progress",
            type=click.Choice(["auto", "tty", "plain", "json", "none"]),
            default="auto",
            show_default=True,
            help="How progress is shown; auto is tty on a terminal, else plain.",
        )(called)
    )
    return pass_app(called)


def _registry(flags: dict[str, Any]) -> "RegistryOptions":
    from orlop.client.registry import RegistryOptions

    dump, trace = flags.pop("http_dump"), flags.pop("http_trace")
    return RegistryOptions(
        show_traffic=dump or trace,
        plain_http=flags.pop("plain_http"),
        skip_verify=flags.pop("skip_verify"),
        user=flags.pop("user"),
        refresh=flags.pop("refresh"),
        hosts_dir=flags.pop("hosts_dir"),
        ca_file=flags.pop("tlscacert"),
        cert_file=flags.pop("tlscert"),
        key_file=flags.pop("tlskey"),
        ask_password=lambda: click.prompt("Password", hide_input=True, err=True, type=str),
    )


@click.command(cls=GoCommand)
@click.argument("ref")
@snapshotter_option
@click.option("--label", "labels", multiple=True, help="Label for the image.")
@click.option("--platform", "platform_", multiple=True, help="Pull for this platform.")
@click.option("--all-platforms", is_flag=True, help="Pull content of all platforms.")
@click.option("--all-metadata", is_flag=True, hidden=True, help="Of before 2.0; it is the default now.")
@click.option("--skip-metadata", is_flag=True, help="No manifests of other platforms: it may then not be pushed.")
@click.option("--no-unpack", is_flag=True, help="Do not unpack the image.")
@click.option("--sync-fs", is_flag=True, help="Accepted for containerd's sake: what is unpacked is synced in any case.")
@click.option("--print-chainid", is_flag=True, help="Print the image's chain id; implies --local.")
@click.option("--max-concurrent-downloads", type=int, default=0, help="Blobs at once; implies --local.")
@local_option
@registry_flags
def pull(
    app: App,
    registry: "RegistryOptions",
    progress: str,
    ref: str,
    snapshotter: str,
    labels: tuple[str, ...],
    platform_: tuple[str, ...],
    all_platforms: bool,
    all_metadata: bool,
    skip_metadata: bool,
    no_unpack: bool,
    sync_fs: bool,
    print_chainid: bool,
    max_concurrent_downloads: int,
    local: bool,
) -> None:
    """Pull an image: fetch its content, unpack it, give it its name."""
    from orlop.base.platforms import Platform
    from orlop.core.transfer.ends import ImageStore, UnpackConfiguration

    platforms = parse_platforms(platform_, everything=all_platforms)
    store = ImageStore(
        name=ref,
        labels=parse_labels(labels),
        platforms=platforms,
        all_metadata=not skip_metadata,
        unpacks=()
        if no_unpack
        else tuple(UnpackConfiguration(platform=one, snapshotter=snapshotter) for one in platforms or (Platform(),)),
    )
    local = local or registry.needs_client or print_chainid or max_concurrent_downloads > 0
    if not local:
        with Display(progress) as show:
            local = not moved(app, _end(registry, ref), store, Steps(show, ref))
    if local:
        _pull_here(
            app,
            registry,
            progress,
            store,
            platform_ or ("",),
            snapshotter=snapshotter,
            print_chainid=print_chainid,
            all_platforms=all_platforms,
            max_concurrent=max_concurrent_downloads,
        )


def _pull_here(
    app: App,
    registry: "RegistryOptions",
    progress: str,
    store: "ImageStore",
    specifiers: tuple[str, ...],
    *,
    snapshotter: str,
    print_chainid: bool,
    all_platforms: bool,
    max_concurrent: int,
) -> None:
    from orlop.client.pull import PullOptions

    for platform in specifiers:
        options = PullOptions(
            platform=platform,
            all_platforms=all_platforms,
            all_metadata=store.all_metadata,
            labels=store.labels,
            max_concurrent=max_concurrent,
        )
        with Display(progress) as show:
            image = app.client.pull(
                store.name,
                registry=registry,
                options=options,
                snapshotter=snapshotter,
                unpack=bool(store.unpacks),
                progress=show,
            )
        if print_chainid:
            click.echo(f"image chain ID: {image.chain_id()}")


def _end(registry: "RegistryOptions", ref: str) -> "OCIRegistry":
    from orlop.client.transfer import FileSink
    from orlop.core.transfer.ends import HTTPDebug

    if not registry.show_traffic:
        return registry.end(ref)
    return registry.end(ref, http_debug=HTTPDebug.DEBUG, logs=FileSink(sys.stderr.buffer))


@click.command(cls=GoCommand)
@click.argument("ref", metavar="REMOTE")
@click.argument("source", default="", metavar="[LOCAL]")
@click.argument("media_type", default="", metavar="[TYPE]")
@click.option("--manifest", default="", help="Digest of a manifest to push; implies --local.")
@click.option("--manifest-type", default="application/vnd.oci.image.manifest.v1+json", show_default=True)
@click.option("--platform", default="", help="Push the content of this platform; implies --local.")
@click.option("--max-concurrent-uploaded-layers", type=int, default=0, help="Layers at once; implies --local.")
@click.option(
    "--allow-non-distributable-blobs", is_flag=True, help="Push layers that are not meant to be; implies --local."
)
@local_option
@registry_flags
def push(
    app: App,
    registry: "RegistryOptions",
    progress: str,
    ref: str,
    source: str,
    media_type: str,
    manifest: str,
    manifest_type: str,
    platform: str,
    max_concurrent_uploaded_layers: int,
    allow_non_distributable_blobs: bool,
    local: bool,
) -> None:
    """Push an image to a registry; LOCAL is its name here, the same by default, or a manifest's digest."""
    from orlop.core.transfer.ends import ImageStore

    if source.startswith(("sha256:", "sha384:", "sha512:")):
        manifest, source = source, ""
        manifest_type = media_type or manifest_type
    local = local or registry.needs_client or bool(manifest or platform)
    local = local or max_concurrent_uploaded_layers > 0 or allow_non_distributable_blobs
    with Display(progress) as show:
        if not local:
            local = not moved(app, ImageStore(name=source or ref), _end(registry, ref), Steps(show, ref))
        if local:
            app.client.push(
                ref,
                source or None,
                registry=registry,
                manifest=manifest,
                manifest_type=manifest_type,
                platform=platform,
                max_concurrent=max_concurrent_uploaded_layers,
                nondistributable=allow_non_distributable_blobs,
                progress=show,
            )


@click.command(cls=GoCommand)
@click.argument("remote")
@click.argument("object_", default="", metavar="[OBJECT]")
@click.option("--label", "labels", multiple=True, help="Label for the image.")
@click.option("--platform", default="", help="Fetch for this platform.")
@click.option("--all-platforms", is_flag=True, help="Fetch content of all platforms.")
@click.option("--all-metadata", is_flag=True, hidden=True, help="Of before 2.0; it is the default now.")
@click.option("--skip-metadata", is_flag=True, help="Fetch no manifests of other platforms.")
@click.option("--metadata-only", is_flag=True, help="Fetch no layers.")
@registry_flags
def fetch(
    app: App,
    registry: "RegistryOptions",
    progress: str,
    remote: str,
    object_: str,
    labels: tuple[str, ...],
    platform: str,
    all_platforms: bool,
    all_metadata: bool,
    skip_metadata: bool,
    metadata_only: bool,
) -> None:
    """Fetch all content of an image, and name it, without unpacking.

    REMOTE is a reference; with OBJECT, a tag or digest, it is the repository.
    """
    from orlop.client.pull import PullOptions

    options = PullOptions(
        platform=platform,
        all_platforms=all_platforms,
        all_metadata=not skip_metadata,
        metadata_only=metadata_only,
        labels=parse_labels(labels),
    )
    with Display(progress) as show:
        app.client.pull(_joined(remote, object_), registry=registry, options=options, unpack=False, progress=show)


@click.command(cls=GoCommand)
@click.argument("remote")
@click.argument("object_", default="", metavar="[OBJECT]")
@click.argument("hints", nargs=-1)
@registry_flags
def fetch_object(
    app: App, registry: "RegistryOptions", progress: str, remote: str, object_: str, hints: tuple[str, ...]
) -> None:
    """Write an object of a registry to standard output: a manifest by tag or digest, a blob by digest."""
    app.client.fetch_object(_joined(remote, object_), sys.stdout.buffer.write, registry=registry)
    sys.stdout.buffer.flush()


@click.command(cls=GoCommand)
@click.argument("remote")
@click.argument("object_", metavar="OBJECT")
@click.argument("media_type", metavar="TYPE")
@registry_flags
def push_object(
    app: App, registry: "RegistryOptions", progress: str, remote: str, object_: str, media_type: str
) -> None:
    """Push the blob OBJECT, a digest, to the repository REMOTE as one of media type TYPE."""
    with Display("none" if progress == "auto" else progress) as show:
        pushed = app.client.push_object(remote, object_, media_type, registry=registry, progress=show)
    click.echo(f"Pushed {pushed.digest} {pushed.media_type}")


def _joined(remote: str, object_: str) -> str:
    """A reference out of a repository and a tag or digest."""
    if not object_:
        return remote
    return f"{remote}@{object_}" if ":" in object_ else f"{remote}:{object_}"
