"""Sockets bound to one namespace and a role.

A socket that the configuration binds has a server object of its own; the services it serves are the daemon's, each of
whose methods is wrapped here. The namespace of a call is the socket's, whatever its header says; another's is refused.
What a role may call, with which fields, is one table (`roles.table`): what is not in it is refused.

    read    looks at what there is
    run     makes and runs containers that get nothing of the host
    full    all that can be done in a namespace; as strong as root's socket for who means harm, see docs/roles.md
"""

import dataclasses
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from orlop.base.errdefs import PermissionDeniedError
from orlop.base.rpc import NAMESPACE_HEADER, Call, Method, Service
from orlop.server.roles.table import TABLE, Row
from orlop.server.roles.tenant import Role, Tenant


def bound(services: Iterable[Service], tenant: Tenant) -> list[Service]:
    """The same services for who connects to the tenant's socket."""
    return [
        dataclasses.replace(service, methods={name: _bound(method, tenant) for name, method in service.methods.items()})
        for service in services
    ]


def _bound(method: Method, tenant: Tenant) -> Method:
    row = TABLE.get(method.name)
    if row is None or tenant.role not in row.roles:
        return _refused(method, tenant)
    judge = _judge(method, row, tenant)
    handler, after = method.handler, row.after if tenant.role is Role.RUN else None

    def handle(call: Call, request: Any) -> Any:
        call = _rebound(call, tenant)
        if method.client_streaming:
            return handler(call, _judged(request, judge, call))
        pending = judge(call, request)
        if pending is None and after is None:
            return handler(call, request)
        if method.server_streaming:
            return handler(call, request)
        return _later(pending, handler, after, tenant, call, request)

    return dataclasses.replace(method, handler=handle)


def _refused(method: Method, tenant: Tenant) -> Method:
    def refuse(_call: Call, _request: Any) -> Any:
        raise PermissionDeniedError(f"role {tenant.role}: method {method.name}: this method is not allowed")

    return dataclasses.replace(method, decode=lambda _payload: None, handler=refuse)


def _rebound(call: Call, tenant: Tenant) -> Call:
    """The call in the socket's namespace, which it need not name.

    Raises:
        PermissionDeniedError: it names another.
    """
    named = call.metadata.get(NAMESPACE_HEADER, "")
    if named not in ("", tenant.namespace):
        raise PermissionDeniedError(f"role {tenant.role}: header {NAMESPACE_HEADER}: this socket has another namespace")
    metadata = {**call.metadata, NAMESPACE_HEADER: tenant.namespace}
    return dataclasses.replace(call, metadata=metadata, bound=tenant.namespace)


def _judge(method: Method, row: Row, tenant: Tenant) -> Callable[[Call, Any], Awaitable[None] | None]:
    """What judges a request: its fields by the table, then the row's own check."""
    checks = [row.always] if row.always is not None else []
    if tenant.role is Role.RUN and row.check is not None:
        checks.append(row.check)
    limited = row.fields is not None and tenant.role is not Role.FULL
    short = method.name.rpartition(".")[2]
    # A check that waits is the last one, so that nothing comes between what it saw and the handler.
    assert len(checks) < 2

    def judge(call: Call, request: Any) -> Awaitable[None] | None:
        if limited:
            assert row.fields is not None
            for descriptor, _value in request.ListFields():
                if descriptor.name not in row.fields:
                    raise PermissionDeniedError(
                        f"role {tenant.role}: {short}: {descriptor.name}: this field is not allowed"
                    )
        return checks[0](tenant, call, request) if checks else None

    return judge


async def _judged(
    requests: AsyncIterator[Any], judge: Callable[[Call, Any], Awaitable[None] | None], call: Call
) -> AsyncIterator[Any]:
    async for request in requests:
        pending = judge(call, request)
        if pending is not None:
            await pending
        yield request


async def _later(
    pending: Awaitable[None] | None,
    handler: Callable[[Call, Any], Any],
    after: Callable[[Tenant, Any, Any], None] | None,
    tenant: Tenant,
    call: Call,
    request: Any,
) -> Any:
    if pending is not None:
        await pending
    # No await between the check's last look and the handler's first: both see the same records.
    answer = handler(call, request)
    if inspect.isawaitable(answer):
        answer = await answer
    if after is not None:
        after(tenant, request, answer)
    return answer
