"""The table of `ctr`'s commands."""

import click

from orlop.cmd.cli import CONTEXT_SETTINGS, LazyGroup, global_options, start

_HERE = "orlop.cmd.ctr"
COMMANDS = {
    "apply": (f"{_HERE}.layers:apply", "Apply a layer from standard input onto a directory."),
    "completion": (f"{_HERE}.completion:completion", "Print a shell's completion script."),
    "containers": (f"{_HERE}.containers:containers", "Manage containers."),
    "content": (f"{_HERE}.content:content", "Manage content."),
    "deprecations": (f"{_HERE}.deprecations:deprecations", "Show what the daemon warns of."),
    "events": (f"{_HERE}.events:events", "Display the daemon's events."),
    "fetch": (f"{_HERE}.distribution:fetch", "Fetch all content of an image, without naming or unpacking it."),
    "fetch-object": (f"{_HERE}.distribution:fetch_object", "Write an object of a registry to standard output."),
    "fsck": (f"{_HERE}.fsck:fsck", "Compare what the daemon knows with what there is, and mend it."),
    "images": (f"{_HERE}.images:images", "Manage images."),
    "info": (f"{_HERE}.server:info", "Print who the daemon is."),
    "install": (f"{_HERE}.install:install", "Install an image's programs on this host."),
    "leases": (f"{_HERE}.leases:leases", "Manage leases."),
    "namespaces": (f"{_HERE}.namespaces:namespaces", "Manage namespaces."),
    "oci": (f"{_HERE}.oci:oci", "OCI tools."),
    "plugins": (f"{_HERE}.plugins:plugins", "Show the daemon's plug-ins."),
    "pprof": (f"{_HERE}.pprof:pprof", "Profiles of the daemon, from its debug socket."),
    "pull": (f"{_HERE}.distribution:pull", "Pull an image from a registry."),
    "push": (f"{_HERE}.distribution:push", "Push an image to a registry."),
    "push-object": (f"{_HERE}.distribution:push_object", "Push a blob to a registry."),
    "rootfs": (f"{_HERE}.layers:rootfs", "Root file systems of images."),
    "run": (f"{_HERE}.run:run", "Run a container."),
    "sandboxes": (f"{_HERE}.sandboxes:sandboxes", "Manage sandboxes."),
    "shim": (f"{_HERE}.shim:shim", "Speak with a shim directly."),
    "snapshots": (f"{_HERE}.snapshots:snapshots", "Manage snapshots."),
    "tasks": (f"{_HERE}.tasks:tasks", "Manage tasks."),
    "version": (f"{_HERE}.server:version", "Print the client's and the daemon's version."),
}
ALIASES = {
    "c": "containers",
    "container": "containers",
    "event": "events",
    "i": "images",
    "image": "images",
    "namespace": "namespaces",
    "ns": "namespaces",
    "plugin": "plugins",
    "s": "sandboxes",
    "sandbox": "sandboxes",
    "sb": "sandboxes",
    "snapshot": "snapshots",
    "t": "tasks",
    "task": "tasks",
}


@click.group(cls=LazyGroup, lazy=COMMANDS, aliases=ALIASES, context_settings=CONTEXT_SETTINGS)
@global_options
@click.version_option(package_name="orlop", prog_name="ctr")
@click.pass_context
def ctr(context: click.Context, /, **flags: object) -> None:
    """Drive orlopd, or containerd, from the command line."""
    start(context, **flags)  # type: ignore[arg-type]  # click hands over what `global_options` declares
