"""Traces of calls for OpenTelemetry: a span each, joined to the caller's trace, sent by OTLP over HTTP.

On where the environment names an endpoint (`OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) and
the libraries are there (`pip install orlop[tracing]`); all else is set by OpenTelemetry's own variables, such as
`OTEL_SERVICE_NAME` and `OTEL_TRACES_SAMPLER`. Source: plugins/tracing of containerd, which reads the same variables.

Calls that start and end processes get spans of their phases too, those of the supervisor among them. They are asked for
when the call has been answered, and only where the trace is sampled.
"""

import asyncio
import dataclasses
import inspect
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Final

from orlop.base.errdefs import NotFoundError, to_status
from orlop.base.phases import Phase, arranged, clock
from orlop.base.rpc import NAMESPACE_HEADER, Call, Method, Service
from orlop.core.kinds import RUNTIME, TRACING
from orlop.core.plugin import Context, Registration, SkipPlugin

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SERVICE_NAME: Final = "orlopd"
_TASKS: Final = "/containerd.services.tasks.v1.Tasks"
PHASED: Final = frozenset(f"{_TASKS}/{name}" for name in ("Create", "Start", "Exec", "Delete", "DeleteProcess"))
UNFINISHED: Final = 256
"""Calls whose phases may be waited for at once; those of more are not told."""

PhasesOf = Callable[[str, str, str], Awaitable[list[Phase]]]
"""The phases of a process by namespace, container and exec id. Raises NotFoundError."""


class Tracing:
    """Wraps services. Any, throughout: OpenTelemetry is an extra, and its types are not for everybody's checker."""

    def __init__(self, provider: Any, phases_of: PhasesOf | None) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("orlop")
        self._propagator = TraceContextTextMapPropagator()
        self._phases_of = phases_of
        self._unfinished: set[asyncio.Task[None]] = set()

    def traced(self, services: Iterable[Service]) -> list[Service]:
        """The same services, with a span around each call."""
        return [
            dataclasses.replace(
                service, methods={name: self._tracing(method) for name, method in service.methods.items()}
            )
            for service in services
        ]

    async def close(self) -> None:
        """Send what is left, within the exporter's own limits of time."""
        await asyncio.gather(*self._unfinished, return_exceptions=True)
        await asyncio.to_thread(self._provider.shutdown)

    def _tracing(self, method: Method) -> Method:
        handler = method.handler

        def handle(call: Call, request: Any) -> Any:
            span = self._start(method, call)
            try:
                answer = handler(call, request)
            except BaseException as error:
                _end(span, error)
                raise
            if method.server_streaming:
                return _stream(answer, span)
            if inspect.isawaitable(answer):
                later = _later(answer, span)
                phased = method.name in PHASED and self._phases_of is not None and span.is_recording()
                return self._phased(later, span, call, request) if phased else later
            _end(span)
            return answer

        return dataclasses.replace(method, handler=handle)

    async def _phased(self, answer: Awaitable[Any], span: Any, call: Call, request: Any) -> Any:
        since_ns = clock()
        try:
            return await answer
        finally:
            if len(self._unfinished) < UNFINISHED:
                key = (call.metadata.get(NAMESPACE_HEADER, ""), request.container_id, getattr(request, "exec_id", ""))
                task = asyncio.get_running_loop().create_task(self._tell_phases(span, key, since_ns, clock()))
                self._unfinished.add(task)
                task.add_done_callback(self._unfinished.discard)

    async def _tell_phases(self, span: Any, key: tuple[str, str, str], since_ns: int, until_ns: int) -> None:
        """Spans below `span` for what was noted of a process within those times."""
        from opentelemetry.trace import set_span_in_context

        if self._phases_of is None:
            return
        try:
            phases = await self._phases_of(*key)
        except NotFoundError:
            return  # too many have come since
        to_wall_ns = time.time_ns() - clock()
        within = [one for one in phases if one.start_ns >= since_ns and one.end_ns <= until_ns]
        contexts = [set_span_in_context(span)]
        for depth, phase in arranged(within):
            del contexts[depth + 1 :]
            below = self._tracer.start_span(
                phase.name,
                context=contexts[-1],
                attributes={"orlop.process": phase.process, "process.pid": phase.pid},
                start_time=phase.start_ns + to_wall_ns,
            )
            below.end(end_time=phase.end_ns + to_wall_ns)
            contexts.append(set_span_in_context(below))

    def _start(self, method: Method, call: Call) -> Any:
        from opentelemetry.trace import SpanKind

        service, _, name = method.name.strip("/").partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        namespace = call.metadata.get(NAMESPACE_HEADER)
        if namespace:
            attributes["containerd.namespace"] = namespace
        context = self._propagator.extract(call.metadata)
        return self._tracer.start_span(
            method.name.strip("/"), context=context, kind=SpanKind.SERVER, attributes=attributes
        )


async def _later(answer: Awaitable[Any], span: Any) -> Any:
    try:
        value = await answer
    except BaseException as error:
        _end(span, error)
        raise
    _end(span)
    return value


async def _stream(answers: Any, span: Any) -> AsyncIterator[Any]:
    try:
        async for answer in answers:
            yield answer
    except BaseException as error:
        _end(span, error)
        raise
    else:
        _end(span)
    finally:
        await answers.aclose()


def _end(span: Any, error: BaseException | None = None) -> None:
    from opentelemetry.trace import StatusCode

    code, message = to_status(error) if error is not None else (0, "")
    span.set_attribute("rpc.grpc.status_code", code)
    if error is not None:
        span.set_status(StatusCode.ERROR, message)
    span.end()


def _init(context: Context) -> Tracing:
    if not any(os.environ.get(name) for name in ENDPOINTS) or os.environ.get("OTEL_SDK_DISABLED") == "true":
        raise SkipPlugin(f"no endpoint for traces: {ENDPOINTS[0]} is not set")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SkipPlugin(f"{error}: install orlop[tracing]") from error
    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", SERVICE_NAME)})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    manager = next(iter(context.all(RUNTIME).values()), None)
    tracing = Tracing(provider, manager.phases if manager is not None else None)
    context.on_close(tracing.close)
    return tracing


REGISTRATION: Final = Registration(kind=TRACING, id="otlp", requires=(RUNTIME,), init=_init)
