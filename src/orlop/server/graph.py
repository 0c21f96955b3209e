"""The plug-in graph: puts registrations in order, starts them, keeps their status and stops them in reverse."""

import contextlib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self, TypeVar

from orlop.base.errdefs import FailedPreconditionError, InvalidArgumentError, NotFoundError
from orlop.core.plugin import Kind, Registration, SkipPlugin, Status
from orlop.server import config as configuration

T = TypeVar("T")

log: Final = logging.getLogger(__name__)


class InitContext:
    """What `Registration.init` gets: see `orlop.core.plugin.Context`."""

    def __init__(self, graph: "Graph", registration: Registration, config: Any) -> None:
        self._graph = graph
        self._registration = registration
        self.root = Path(graph.config.root) / registration.uri
        self.state = Path(graph.config.state) / registration.uri
        self.config = config
        self.exports: dict[str, str] = {}
        self.capabilities: list[str] = []
        self.platforms: list[str] = []

    @property
    def daemon(self) -> configuration.Config:
        """The daemon's configuration, for what concerns more than one plug-in."""
        return self._graph.config

    def get(self, kind: Kind[T], plugin_id: str | None = None) -> T:
        return self._graph.get(kind, plugin_id)

    def all(self, kind: Kind[T]) -> Mapping[str, T]:
        return self._graph.all(kind)

    def plugins(self) -> Sequence[Status]:
        return self._graph.status

    def on_close(self, callback: Callable[[], Any]) -> None:
        self._graph.on_close(callback)

    def on_reload(self, callback: Callable[[Any], Any]) -> None:
        self._graph.reloaders[self._registration.uri] = callback


class Graph:
    """An async context manager: entering starts every plug-in, leaving stops them in reverse.

    Raises on entering:
        FailedPreconditionError: a plug-in that the configuration requires was skipped or failed.
        InvalidArgumentError: the registrations have a duplicate or a circle.
    """

    def __init__(self, config: configuration.Config, registrations: Sequence[Registration]) -> None:
        self.config = config
        self.status: list[Status] = []
        self.sections: dict[str, Any] = {}
        self.reloaders: dict[str, Callable[[Any], Any]] = {}
        self._registrations = ordered(registrations)
        self._instances: dict[str, dict[str, Any]] = {}
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            self._stack = stack
            for registration in self._registrations:
                await self._start(registration)
            self._require()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._stack.aclose()

    def get(self, kind: Kind[T], plugin_id: str | None = None) -> T:
        """The instance of that kind and id; without an id the only one. See `Context.get`."""
        instances = self._instances.get(kind.name, {})
        if plugin_id is None and len(instances) > 1:
            raise FailedPreconditionError(
                f"multiple plugins registered for {kind.name}: {', '.join(sorted(instances))}",
                hint="disable all but one of them by disabled_plugins",
            )
        if plugin_id is None and instances:
            instance: T = next(iter(instances.values()))
            return instance
        if plugin_id in instances:
            found: T = instances[plugin_id]
            return found
        raise NotFoundError(self._absence(kind.name, plugin_id))

    def all(self, kind: Kind[T]) -> Mapping[str, T]:
        """Every working instance of that kind by id, in the order of their start."""
        return MappingProxyType(self._instances.get(kind.name, {}))

    def on_close(self, callback: Callable[[], Any]) -> None:
        """Call `callback` when the graph is left."""

        async def close() -> None:
            answer = callback()
            if inspect.isawaitable(answer):
                await answer

        self._stack.push_async_callback(close)

    async def _start(self, registration: Registration) -> None:
        status = Status(registration=registration, state="ok")
        self.status.append(status)
        if registration.uri in self.config.disabled_plugins or registration.kind.name in self.config.disabled_plugins:
            status.state, status.reason = "skipped", "disabled in the configuration"
            return
        try:
            context = InitContext(self, registration, self._section(registration))
            instance = registration.init(context)
            if inspect.isawaitable(instance):
                instance = await instance
        except SkipPlugin as skip:
            status.state, status.reason, status.error = "skipped", str(skip), skip
            log.info("plug-in skipped", extra={"plugin": registration.uri, "reason": str(skip)})
            return
        except Exception as error:
            # Whatever a plug-in raises must not take the daemon along; `ctr plugins ls` and the log show it.
            status.state, status.reason, status.error = "failed", f"{error}", error
            log.exception("plug-in failed", extra={"plugin": registration.uri})
            return
        status.exports, status.capabilities, status.platforms = context.exports, context.capabilities, context.platforms
        self._instances.setdefault(registration.kind.name, {})[registration.id] = instance

    def _section(self, registration: Registration) -> Any:
        table = self.config.plugins.get(registration.uri, {})
        if registration.config is None:
            return None
        where = f'plugins."{registration.uri}"'
        value = configuration.section(registration.config, table, where, self.config.warnings)
        self.sections[registration.uri] = value
        return value

    def _require(self) -> None:
        states = {status.registration.uri: status for status in self.status}
        for uri in self.config.required_plugins:
            status = states.get(uri)
            if status is None:
                raise FailedPreconditionError(f"required plug-in {uri}: there is none of that name")
            if status.state != "ok":
                raise FailedPreconditionError(f"required plug-in {uri}: {status.state}: {status.reason}")

    def _absence(self, kind: str, plugin_id: str | None) -> str:
        for status in self.status:
            if status.registration.kind.name == kind and plugin_id in (None, status.registration.id):
                return f"plug-in {status.registration.uri}: {status.state}: {status.reason}"
        return f"plug-in {kind}.{plugin_id or '*'}"


def ordered(registrations: Sequence[Registration]) -> list[Registration]:
    """Registrations with each after all those of the kinds it requires, else in the given order.

    Raises:
        InvalidArgumentError: two have the same kind and id, or kinds require each other in a circle.
    """
    by_kind: dict[str, list[Registration]] = {}
    seen = set()
    for registration in registrations:
        if registration.uri in seen:
            raise InvalidArgumentError(f"plug-in {registration.uri} is registered twice")
        seen.add(registration.uri)
        by_kind.setdefault(registration.kind.name, []).append(registration)
    result: list[Registration] = []
    done: set[str] = set()
    path: list[str] = []

    def place(registration: Registration) -> None:
        if registration.uri in done:
            return
        if registration.uri in path:
            raise InvalidArgumentError(f"plug-ins require each other: {' -> '.join([*path, registration.uri])}")
        path.append(registration.uri)
        for kind in registration.requires:
            for other in by_kind.get(kind.name, []):
                place(other)
        path.pop()
        done.add(registration.uri)
        result.append(registration)

    for registration in registrations:
        place(registration)
    return result
