"""Quotas of namespaces, as the transactions see them."""

import asyncio
import re

import pytest

from orlop.base.errdefs import AlreadyExistsError, InvalidArgumentError, ResourceExhaustedError
from orlop.core.containers import Container, Runtime
from orlop.core.metadata import Database, content
from orlop.core.metadata.containers import ContainerStore
from orlop.core.metadata.namespaces import NamespaceStore
from orlop.core.metadata.quotas import Quota, Quotas


@pytest.fixture
def db(tmp_path):
    quotas = Quotas(by_namespace={"small": Quota(containers=2, bytes=100), "*": Quota(containers=3)})
    with Database(tmp_path / "meta.db", quotas=quotas) as database:
        yield database


def container(name):
    return Container(id=name, runtime=Runtime(name="io.containerd.runc.v2"), spec=b"x")


def make(db, namespace, name):
    store = ContainerStore(db)
    return db.write_sync(lambda tx: store.create(tx, namespace, container(name)))


def label(db, namespace, **labels):
    labels = {f"orlop.dev/quota.{kind}": value for kind, value in labels.items()}
    db.write_sync(lambda tx: NamespaceStore(db).update(tx, namespace, labels, tuple(labels)))


def exceeded(namespace, kind, limit, used, asked):
    text = f'namespace "{namespace}": quota {kind}: limit {limit}, in use {used}, asked for {asked}'
    return pytest.raises(ResourceExhaustedError, match=re.escape(text))


def test_containers(db):
    for name in ("a", "b"):
        make(db, "small", name)
    with exceeded("small", "containers", 2, 2, 1):
        make(db, "small", "c")
    with pytest.raises(AlreadyExistsError):
        make(db, "small", "a")
    assert [one.id for one in ContainerStore(db).list("small")] == ["a", "b"]
    db.write_sync(lambda tx: ContainerStore(db).delete(tx, "small", "a"))
    make(db, "small", "c")
    for name in ("a", "b", "c"):
        make(db, "another", name)
    with exceeded("another", "containers", 3, 3, 1):
        make(db, "another", "d")


async def _at_once(db, store):
    writes = [
        db.write(lambda tx, name=f"c{number}": store.create(tx, "small", container(name))) for number in range(50)
    ]
    return await asyncio.gather(*writes, return_exceptions=True)


def test_many_at_once_do_not_share_the_last_place(db):
    outcomes = asyncio.run(_at_once(db, ContainerStore(db)))
    assert sum(isinstance(one, Container) for one in outcomes) == 2
    assert sum(isinstance(one, ResourceExhaustedError) for one in outcomes) == 48


def test_labels_go_over_the_configuration(db):
    label(db, "small", containers="1")
    make(db, "small", "a")
    with exceeded("small", "containers", 1, 1, 1):
        make(db, "small", "b")
    label(db, "small", containers="0")
    for name in ("b", "c", "d"):
        make(db, "small", name)
    label(db, "small", containers="")
    with exceeded("small", "containers", 2, 4, 1):
        make(db, "small", "e")


@pytest.mark.parametrize(
    ("kind", "value"), [("containers", "many"), ("bytes", "-1"), ("memory", "1.5"), ("memory", "²"), ("cpus", "1")]
)
def test_labels_that_are_no_quota_are_refused(db, kind, value):
    with pytest.raises(InvalidArgumentError, match=re.escape(f"orlop.dev/quota.{kind}")):
        label(db, "small", **{kind: value})


def test_bytes_of_content(db):
    def add(namespace, digest, size):
        return db.write_sync(lambda tx: content.insert(tx, namespace, digest, size, {}, owner_uid=None))

    one, two, three = (f"sha256:{letter * 64}" for letter in "abc")
    add("rich", one, 60)
    # What another has paid for counts in full all the same, for it may go and leave the bytes behind.
    add("small", one, 60)
    with exceeded("small", "bytes", 100, 60, 41):
        add("small", two, 41)
    add("small", two, 40)
    with exceeded("small", "bytes", 100, 100, 1):
        add("small", three, 1)
    db.write_sync(lambda tx: content.delete(tx, "small", two))
    add("small", three, 1)
