"""The table of what each role may call: every row is played, and every field that a row does not list."""

import asyncio
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message_factory import GetMessageClass

import orlop.api.services
from orlop.base.errdefs import PermissionDeniedError
from orlop.base.rpc import Call, Method, Peer, Service
from orlop.server import roles
from orlop.server.roles.table import TABLE
from orlop.server.roles.tenant import Role, Tenant

DOCUMENT = Path(__file__).parents[3] / "docs/roles.md"
HEALTH = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")


def contract():
    for module in pkgutil.walk_packages(orlop.api.services.__path__, f"{orlop.api.services.__name__}."):
        if module.name.endswith("_pb2"):
            for service in importlib.import_module(module.name).DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    yield f"/{service.full_name}/{method.name}", method


METHODS: dict[str, Any] = dict(contract())  # Any: protobuf's descriptors have no public type


def tenant(role):
    nothing: Any = None
    return Tenant(
        namespace="mine",
        role=role,
        runtimes=("io.containerd.runc.v2",),
        fifo_directory="/nowhere",
        containers=nothing,
        snapshots=nothing,
        shims=nothing,
        tasks=nothing,
    )


def bound(name, role, handler=lambda _call, _request: "answer", *, streams=False):
    method = Method(
        name=name, client_streaming=streams, server_streaming=False, decode=lambda data: data, handler=handler
    )
    (service,) = roles.bound([Service(name="s", methods={"m": method})], tenant(role))
    return service.methods["m"].handler


def call(**metadata):
    return Call(peer=Peer(door="test"), metadata={name.replace("_", "-"): value for name, value in metadata.items()})


def with_field(method, field):
    """A request of the method with one field set, to something that is not its default."""
    request = GetMessageClass(method.input_type)()
    value = getattr(request, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        if field.message_type.fields_by_name["value"].message_type is not None:
            value["key"].SetInParent()
        else:
            value["key"] = "value"
    elif field.message_type is not None:
        value.add() if field.is_repeated else value.SetInParent()
    elif field.is_repeated:
        value.append("x")
    else:
        setattr(request, field.name, {str: "x", bytes: b"x", bool: True}.get(type(value), 1))
    return request


async def outcome(handler, request, *, streams):
    if not streams:
        answer = handler(call(), request)
        return await answer if asyncio.iscoroutine(answer) else answer

    async def requests():
        yield request

    return [one async for one in handler(call(), requests())]


def test_every_method_of_the_contract_has_a_row_and_none_else():
    assert TABLE.keys() == METHODS.keys() | set(HEALTH)


def test_a_method_without_a_row_is_refused_to_all():
    for role in Role:
        with pytest.raises(PermissionDeniedError, match=f"role {role}: method /s.v1.S/New: this method is not allowed"):
            bound("/s.v1.S/New", role)(call(), b"")


@pytest.mark.parametrize("name", TABLE)
def test_a_row(name):
    """Who has no part in it is refused; who has may set the listed fields, and no other."""
    row, method = TABLE[name], METHODS.get(name)
    streams = method is not None and method.client_streaming
    for role in Role:
        # A client's stream is handed on as far as it passes.
        handler = bound(name, role, (lambda _call, given: given if streams else "answer"), streams=streams)
        if role not in row.roles:
            with pytest.raises(PermissionDeniedError, match=re.escape(f"role {role}: method {name}: ")):
                asyncio.run(outcome(handler, b"", streams=False))
            continue
        if method is None or row.fields is None:
            continue
        known = {field.name for field in method.input_type.fields}
        assert set(row.fields) <= known or role is Role.FULL
        for field in method.input_type.fields:
            request = with_field(method, field)
            if role is Role.FULL or field.name in row.fields:
                continue  # what is listed is tested where it works: in tests/integration/test_roles.py
            short = name.rpartition(".")[2]
            with pytest.raises(
                PermissionDeniedError, match=f"role {role}: {short}: {field.name}: this field is not allowed"
            ):
                asyncio.run(outcome(handler, request, streams=streams))


def test_readers_change_nothing():
    words = "Get List ListStream Info Read Status ListStatuses Stat Usage ListResources ListPids Metrics Wait Subscribe"
    words += " Plugins Server PluginInfo Version Check Watch"
    assert {name.rpartition("/")[2] for name, row in TABLE.items() if Role.READ in row.roles} == set(words.split())


@pytest.mark.parametrize("role", Role)
def test_the_namespace_is_the_sockets(role):
    seen = []
    handler = bound("/containerd.services.version.v1.Version/Version", role, lambda call, _request: seen.append(call))
    request = GetMessageClass(METHODS["/containerd.services.version.v1.Version/Version"].input_type)()
    for metadata in ({}, {"containerd_namespace": "mine"}, {"containerd_namespace": ""}):
        handler(call(**metadata), request)
    assert [(one.namespace, one.bound) for one in seen] == [("mine", "mine")] * 3
    for name in ("other", "Mine", "mine ", "default"):
        with pytest.raises(PermissionDeniedError, match="header containerd-namespace"):
            handler(call(containerd_namespace=name), request)


@pytest.mark.parametrize(
    ("kind", "fields", "field"),
    [
        ("OCIRegistry", {"resolver": {"host_dir": "/etc"}}, "source.resolver.host_dir"),
        ("OCIRegistry", {"resolver": {"default_scheme": "http"}}, "source.resolver.default_scheme"),
        ("OCIRegistry", {"resolver": {"http_debug": 1}}, "source.resolver.http_debug"),
        ("OCIRegistry", {"resolver": {"auth_stream": "a", "headers": {"a": "b"}}}, ""),
        ("ImageStore", {"name": "x"}, ""),
        ("ImageImportStream", {"stream": "x"}, ""),
        ("ImageExportStream", {"stream": "x"}, ""),
        ("ContainerPath", {"container_id": "x", "path": "/"}, "source: type"),
        ("Progress", {"name": "x"}, "source: type"),
    ],
)
def test_ends_of_transfers(kind, fields, field):
    from orlop.api.services.transfer.v1 import transfer_pb2
    from orlop.api.types.transfer import (
        container_pb2,
        imagestore_pb2,
        importexport_pb2,
        progress_pb2,
        registry_pb2,
    )

    modules = (container_pb2, imagestore_pb2, importexport_pb2, progress_pb2, registry_pb2)
    (cls,) = [getattr(module, kind) for module in modules if hasattr(module, kind)]
    request = transfer_pb2.TransferRequest()
    request.source.type_url = cls.DESCRIPTOR.full_name
    request.source.value = cls(**fields).SerializeToString()
    request.destination.type_url = imagestore_pb2.ImageStore.DESCRIPTOR.full_name
    handler = bound("/containerd.services.transfer.v1.Transfer/Transfer", Role.RUN)
    if not field:
        assert handler(call(), request) == "answer"
        return
    with pytest.raises(PermissionDeniedError, match=re.escape(f"role run: {field}")):
        handler(call(), request)


@pytest.mark.parametrize(
    ("label", "allowed"),
    [
        ("containerd.io/gc.root", True),
        ("containerd.io/gc.ref.content.0", True),
        ("maintainer", True),
        ("org.opencontainers.image.title", True),
        ("example.com/colour", True),
        ("io.containerd.image.config.stop-signal", True),
        ("containerd.io/restart.status", False),
        ("containerd.io/restart.loguri", False),
        ("containerd.io/future", False),
        ("sub.containerd.io/x", False),
        ("nerdctl/state-dir", False),
    ],
)
def test_labels_of_containers(label, allowed):
    from orlop.api.services.containers.v1 import containers_pb2

    request = containers_pb2.CreateContainerRequest(container={"id": "x", "labels": {label: "y"}})
    handler = bound("/containerd.services.containers.v1.Containers/Create", Role.RUN)
    if allowed:
        assert handler(call(), request) == "answer"
        return
    with pytest.raises(PermissionDeniedError, match=re.escape(f"role run: container.labels.{label}: ")):
        handler(call(), request)


@pytest.mark.parametrize(
    ("label", "allowed"),
    [
        ("containerd.io/gc.root", True),
        ("containerd.io/snapshot.ref", True),
        ("colour", True),
        ("containerd.io/snapshot/uidmapping", False),
        ("containerd.io/snapshot/gidmapping", False),
        ("containerd.io/snapshot/overlay.upperdir", False),
        ("containerd.io/snapshot/remote/stargz.reference", False),
    ],
)
def test_labels_of_snapshots(label, allowed):
    from orlop.api.services.snapshots.v1 import snapshots_pb2

    for method, request in (
        ("Prepare", snapshots_pb2.PrepareSnapshotRequest(key="x", labels={label: "y"})),
        ("View", snapshots_pb2.ViewSnapshotRequest(key="x", labels={label: "y"})),
        ("Commit", snapshots_pb2.CommitSnapshotRequest(key="x", labels={label: "y"})),
        ("Update", snapshots_pb2.UpdateSnapshotRequest(info={"name": "x", "labels": {label: "y"}})),
    ):
        handler = bound(
            f"/containerd.services.snapshots.v1.Snapshots/{method}",
            Role.RUN,
            lambda _call, _request: snapshots_pb2.PrepareSnapshotResponse(),
        )
        if allowed:
            asyncio.run(outcome(handler, request, streams=False))
            continue
        with pytest.raises(PermissionDeniedError, match=re.escape(f"labels.{label}: this label is not allowed")):
            handler(call(), request)


def test_the_page_has_the_tables_methods():
    """docs/roles.md lists what `run` may not call; it is made from the table by hand, so compare."""
    text = DOCUMENT.read_text()
    section = text.split("\n## What `run` may not call\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \|", section, re.MULTILINE)
    listed = {f"/{service}/{method}" for service, names in rows for method in re.findall(r"`(\w+)`", names)}
    assert listed == {name for name, row in TABLE.items() if Role.RUN not in row.roles}
