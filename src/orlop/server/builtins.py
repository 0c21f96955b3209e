"""The one list of built-in plug-ins, and those that other distributions add through entry points."""

import importlib
import logging
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from orlop.core.kinds import SERVICE
from orlop.core.plugin import Registration
from orlop.server.config import Config

log: Final = logging.getLogger(__name__)

GROUP: Final = "orlop.plugins"

# Modules with a `REGISTRATION` or `REGISTRATIONS`; named, not imported, so that naming them costs nothing.
MODULES: Final = (
    "orlop.plugins.services.events",
    "orlop.plugins.metadata",
    "orlop.plugins.trash",
    "orlop.plugins.mounts.loop",
    "orlop.plugins.mounts.erofs",
    "orlop.plugins.mounts.manager",
    "orlop.plugins.runtime",
    "orlop.plugins.services.version",
    "orlop.plugins.services.health",
    "orlop.plugins.services.introspection",
    "orlop.plugins.services.tasks",
    "orlop.plugins.services.timings",
    "orlop.plugins.snapshots.overlayfs",
    "orlop.plugins.snapshots.native",
    "orlop.plugins.snapshots.btrfs",
    "orlop.plugins.snapshots.erofs",
    "orlop.plugins.services.snapshots",
    "orlop.plugins.content.local.plugin",
    "orlop.plugins.gc.scheduler",
    "orlop.plugins.diff.walking",
    "orlop.plugins.recovery",
    "orlop.plugins.services.diff",
    "orlop.plugins.services.namespaces",
    "orlop.plugins.services.content",
    "orlop.plugins.services.images",
    "orlop.plugins.services.containers",
    "orlop.plugins.services.leases",
    "orlop.plugins.monitor",
    "orlop.plugins.tracing",
    "orlop.plugins.warnings",
    "orlop.plugins.streaming",
    "orlop.plugins.services.streaming",
    "orlop.plugins.imageverifier",
    "orlop.plugins.transfer.local",
    "orlop.plugins.services.transfer",
    "orlop.plugins.restart",
    "orlop.plugins.services.mounts",
    "orlop.plugins.services.sandbox_store",
    "orlop.plugins.services.sandbox_controllers",
    "orlop.plugins.services.fsck",
)


def registrations(*, with_entry_points: bool) -> list[Registration]:
    """Every built-in plug-in, then those of entry points where the configuration wants them."""
    found: list[Registration] = []
    for name in MODULES:
        module = importlib.import_module(name)
        single = getattr(module, "REGISTRATION", None)
        found += [single] if single is not None else module.REGISTRATIONS
    if with_entry_points:
        for point in entry_points(group=GROUP):
            found += foreign(point)
    return found


def configured(config: Config) -> list[Registration]:
    """All plug-ins that the configuration asks for: those here, and those behind sockets.

    Raises:
        InvalidArgumentError: one behind a socket is of a type that there is none of.
    """
    found = registrations(with_entry_points=config.entry_points)
    if config.proxy_plugins:
        from orlop.plugins import proxy

        for name, one in config.proxy_plugins.items():
            found += proxy.registrations(name, one, config.root)
    return found


def foreign(point: EntryPoint) -> Sequence[Registration]:
    """The registrations that an entry point names; one that cannot be imported becomes a plug-in that fails."""
    origin = f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
    try:
        value = point.load()
        values = [value] if isinstance(value, Registration) else list(value)
        return [_from(registration, origin) for registration in values]
    except Exception as error:
        # Foreign code may raise anything on import; the daemon lives and shows it.
        log.exception("entry point cannot be loaded", extra={"entry_point": point.value, "origin": origin})
        return [_broken(point, origin, error)]


def _from(registration: Registration, origin: str) -> Registration:
    if not isinstance(registration, Registration):
        raise TypeError(f"{registration!r} is no Registration")
    return Registration(
        kind=registration.kind,
        id=registration.id,
        init=registration.init,
        requires=registration.requires,
        config=registration.config,
        origin=origin,
    )


def _broken(point: EntryPoint, origin: str, error: Exception) -> Registration:
    def fail(_context: object) -> None:
        raise ImportError(f"entry point {point.name} = {point.value} of {origin}: {error}") from error

    return Registration(kind=SERVICE, id=point.name, init=fail, origin=origin)
