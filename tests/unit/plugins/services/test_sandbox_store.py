"""Records of sandboxes as clients see them. Expected texts: containerd's core/metadata/sandbox.go (2.x)."""

import asyncio

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from orlop.api.services.sandbox.v1 import sandbox_pb2 as api
from orlop.api.types import sandbox_pb2 as types
from orlop.base.errdefs import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from orlop.core.metadata import Database
from orlop.core.metadata.sandboxes import SandboxStore
from orlop.plugins.services.sandbox_store import Store
from orlop.testing.services import InProcess


@pytest.fixture
def run(tmp_path):
    def run(test):
        async def main():
            with Database(tmp_path / "meta.db") as db:
                await test(
                    InProcess.of(api.DESCRIPTOR.services_by_name["Store"], Store(db, SandboxStore(db)), namespace="ns"),
                )

        asyncio.run(main())

    return run


def sandbox(sandbox_id="pod", *, runtime="io.containerd.runc.v2", **fields):
    message = types.Sandbox(sandbox_id=sandbox_id, **fields)
    message.runtime.name = runtime
    return message


async def refused(cls, call, text):
    with pytest.raises(cls) as caught:
        await call
    assert str(caught.value) == text


async def make(store, *args, **fields):
    return (await store.unary("Create", api.StoreCreateRequest(sandbox=sandbox(*args, **fields)))).sandbox


def get(store, sandbox_id="pod"):
    return store.unary("Get", api.StoreGetRequest(sandbox_id=sandbox_id))


def update(store, message, *fields):
    return store.unary("Update", api.StoreUpdateRequest(sandbox=message, fields=fields))


def test_what_is_stored_comes_back(run):
    async def test(store):
        given = sandbox(
            spec=AnyMessage(type_url="spec", value=b"{}"),
            labels={"a": "1", "empty": ""},
            extensions={"x": AnyMessage(type_url="t", value=b"\0\xff")},
            sandboxer="shim",
        )
        given.runtime.options.type_url = "o"
        made = (await store.unary("Create", api.StoreCreateRequest(sandbox=given))).sandbox
        assert made.created_at == made.updated_at
        assert made.created_at.seconds > 0
        assert (await get(store)).sandbox == made
        given.created_at.CopyFrom(made.created_at)
        given.updated_at.CopyFrom(made.updated_at)
        del given.labels["empty"]
        assert made == given

    run(test)


def test_refusals_of_create(run):
    async def test(store):
        text = 'failed to validate sandbox: invalid sandbox ID: identifier "a/b" must match'
        with pytest.raises(InvalidArgumentError) as caught:
            await make(store, "a/b")
        assert str(caught.value).startswith(text)
        await make(store)
        await refused(
            AlreadyExistsError, make(store), 'write error: sandbox bucket "pod" already exists: already exists'
        )

    run(test)


def test_what_is_not_there(run):
    async def test(store):
        delete = api.StoreDeleteRequest(sandbox_id="pod")
        for call in (get(store), update(store, sandbox()), store.unary("Delete", delete)):
            await refused(NotFoundError, call, "no sandbox buckets: not found")
        await make(store, "other")
        await refused(NotFoundError, get(store), 'bucket "pod" not found: not found')
        await refused(NotFoundError, update(store, sandbox()), 'bucket "pod" not found: not found')
        await refused(NotFoundError, store.unary("Delete", delete), 'failed to delete sandbox "pod": not found')

    run(test)


def test_update_takes_what_the_paths_name(run):
    async def test(store):
        await make(store, labels={"a": "1", "b": "2"}, extensions={"x": AnyMessage(type_url="x")})
        changed = sandbox(runtime="other", labels={"a": "9", "c": "3"}, spec=AnyMessage(type_url="new"))
        answer = (await update(store, changed, "labels.a", "labels.b", "extensions.x")).sandbox
        assert dict(answer.labels) == {"a": "9"}
        assert dict(answer.extensions) == {"x": AnyMessage()}  # as in containerd, which removes none
        assert answer.runtime.name == "io.containerd.runc.v2"
        answer = (await update(store, changed, "runtime", "spec")).sandbox
        assert (answer.runtime.name, answer.spec.type_url) == ("other", "new")
        assert dict(answer.labels) == {"a": "9"}
        assert answer.updated_at.ToNanoseconds() > answer.created_at.ToNanoseconds()
        await refused(
            InvalidArgumentError,
            update(store, changed, "labels", "sandboxer"),
            'cannot update "sandboxer" field on sandbox "pod": invalid argument',
        )
        assert dict((await get(store)).sandbox.labels) == {"a": "9"}

    run(test)


def test_a_whole_update_keeps_the_runtime_and_the_sandboxer(run):
    async def test(store):
        await make(store, labels={"a": "1"}, sandboxer="shim")
        await refused(
            InvalidArgumentError,
            update(store, sandbox(runtime="other")),
            "sandbox.Runtime.Name field is immutable: invalid argument",
        )
        answer = (await update(store, sandbox(sandboxer="x", labels={"b": "2"}))).sandbox
        assert (answer.sandboxer, dict(answer.labels)) == ("shim", {"b": "2"})

    run(test)


def test_list_filters_and_namespaces(run):
    async def test(store):
        assert not (await store.unary("List", api.StoreListRequest())).list
        for name in ("b", "a"):
            await make(store, name, labels={"role": name})
        await make(store.using(namespace="elsewhere"), "c")

        async def listed(*filters):
            answer = await store.unary("List", api.StoreListRequest(filters=filters))
            return [one.sandbox_id for one in answer.list]

        assert await listed() == ["a", "b"]
        assert await listed("id==b") == ["b"]
        assert await listed("labels.role==a", "id==b") == ["a", "b"]
        assert await listed("runtime.name==io.containerd.runc.v2") == []  # containerd knows id and labels only
        with pytest.raises(InvalidArgumentError):
            await listed("id,,")
        await store.unary("Delete", api.StoreDeleteRequest(sandbox_id="a"))
        assert await listed() == ["b"]

    run(test)


def test_a_call_needs_a_namespace(run):
    async def test(store):
        await refused(
            FailedPreconditionError, get(store.using(namespace="")), "namespace is required: failed precondition"
        )

    run(test)
