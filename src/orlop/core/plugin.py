"""What a plug-in is: a registration value that the server's graph puts in order and starts.

    KIND                    what its instances are                         ids
    CONTENT                 core.content.Store                             content
    METADATA                core.metadata.Database                         bolt (the name that clients look for)
    SNAPSHOTTER             core.snapshots.Snapshotter                     overlayfs, native, …
    …

A kind is typed: `context.get(KIND, id)` and `context.all(KIND)` give instances of its Python type, so nobody casts.
To skip is not to fail: `init` raises `SkipPlugin` where this host cannot do what it needs; any other error marks
the plug-in as failed, and the daemon lives unless the configuration requires it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class SkipPlugin(Exception):
    """This host cannot do what the plug-in needs; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[T_co]):
    """A type of plug-in: containerd's name for it, such as `io.containerd.snapshotter.v1`."""

    name: str

    def __str__(self) -> str:
        return self.name


class Context(Protocol):
    """What the graph hands to `init`.

    Attributes:
        root: directory of this plug-in that survives a reboot; made on first use by the plug-in.
        state: directory of this plug-in that is gone after a boot.
        daemon: the daemon's own configuration (`orlop.server.config.Config`): root, state, addresses, runtimes.
        config: the plug-in's section of the configuration over its defaults, as an instance of `Registration.config`.
        exports: facts for introspection, such as `root`; filled by `init`.
        capabilities: words for introspection; filled by `init`.
        platforms: what the plug-in serves, as `os/arch[/variant]`; filled by `init`.
    """

    root: Path
    state: Path
    config: Any

    @property
    def daemon(self) -> Any: ...

    exports: dict[str, str]
    capabilities: list[str]
    platforms: list[str]

    def get(self, kind: Kind[T], plugin_id: str | None = None) -> T:
        """The instance of that kind and id, or the only one of the kind.

        Raises:
            NotFoundError: there is none, or it failed or was skipped; the text says which and why.
            FailedPreconditionError: no id is given, and there are several. Source: containerd's GetSingle.
        """
        ...

    def all(self, kind: Kind[T]) -> Mapping[str, T]:
        """Every working instance of that kind by id."""
        ...

    def plugins(self) -> "Sequence[Status]":
        """How every plug-in fares, in the order of their start; grows while the graph starts."""
        ...

    def on_close(self, callback: Callable[[], Any]) -> None:
        """Call (and await, if it returns an awaitable) `callback` when the daemon stops, last registered first."""
        ...

    def on_reload(self, callback: Callable[[Any], Any]) -> None:
        """Call (and await, if it returns an awaitable) `callback` with the plug-in's new section when it has changed.

        A plug-in that does not ask for this keeps its section until the daemon is started anew. What `callback` raises
        refuses the change.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """One plug-in, built in or from an entry point.

    Attributes:
        kind: what its instance is.
        id: unique within the kind.
        requires: kinds that are started before this one, all their instances.
        config: a class whose call without arguments gives the default configuration (a dataclass), or None.
        init: makes the instance; may be async. Raises `SkipPlugin` to skip.
        origin: distribution and version that it came from, empty for built-in ones.
    """

    kind: Kind[Any]
    id: str
    init: Callable[[Any], Any]
    requires: Sequence[Kind[Any]] = ()
    config: type[Any] | None = None
    origin: str = ""

    @property
    def uri(self) -> str:
        """`type.id`, as configuration and `required_plugins` name it."""
        return f"{self.kind}.{self.id}"


@dataclass(slots=True, kw_only=True)
class Status:
    """How a plug-in fares: `ok`, `skipped` or `failed`, and why."""

    registration: Registration
    state: str
    reason: str = ""
    error: BaseException | None = None
    exports: dict[str, str] = field(default_factory=dict)
    capabilities: list[str] = field(default_factory=list)
    platforms: list[str] = field(default_factory=list)
