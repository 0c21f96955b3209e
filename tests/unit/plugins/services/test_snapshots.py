"""The Snapshots service: what it reads from requests and writes into answers."""

from pathlib import Path
from typing import Any

import pytest

from orlop.api.services.snapshots.v1 import snapshots_pb2 as pb
from orlop.base import errdefs
from orlop.base.rpc import LEASE_HEADER, NAMESPACE_HEADER, Call, Peer, bind
from orlop.plugins.services.snapshots import Snapshots
from orlop.testing.fake_snapshotter import FakeSnapshotter
from orlop.testing.snapshots import NAME, Bench


def _call(namespace: str = "testsuite", **metadata: str) -> Call:
    return Call(peer=Peer(door="test", uid=17), metadata={NAMESPACE_HEADER: namespace, **metadata})


def _collect(bench: Bench, stream: Any) -> list[pb.ListSnapshotsResponse]:
    async def collect() -> list[pb.ListSnapshotsResponse]:
        return [message async for message in stream]

    return bench.run(collect())


def test_a_life_over_the_service(tmp_path: Path) -> None:
    with Bench(tmp_path, lambda _root: FakeSnapshotter()) as bench:
        service = Snapshots(bench.stores)
        answer = bench.run(
            service.prepare(_call(), pb.PrepareSnapshotRequest(snapshotter=NAME, key="a", labels={"x": "1"}))
        )
        mounted = bench.run(service.mounts(_call(), pb.MountsRequest(snapshotter=NAME, key="a")))
        assert list(answer.mounts) == list(mounted.mounts)
        assert (answer.mounts[0].type, list(answer.mounts[0].options)) == ("fake", ["ACTIVE"])
        bench.run(service.commit(_call(), pb.CommitSnapshotRequest(snapshotter=NAME, key="a", name="c")))
        bench.run(service.view(_call(), pb.ViewSnapshotRequest(snapshotter=NAME, key="v", parent="c")))
        info = service.stat(_call(), pb.StatSnapshotRequest(snapshotter=NAME, key="v")).info
        assert (info.name, info.parent, info.kind, dict(info.labels)) == ("v", "c", pb.VIEW, {})
        assert info.created_at.ToNanoseconds() == bench.stat("v").created_at
        request = pb.UpdateSnapshotRequest(snapshotter=NAME, info=pb.Info(name="v", labels={"a": "1", "b": "2"}))
        request.update_mask.paths.append("labels.a")
        assert dict(bench.run(service.update(_call(), request)).info.labels) == {"a": "1"}
        usage = bench.run(service.usage(_call(), pb.UsageRequest(snapshotter=NAME, key="c")))
        assert (usage.size, usage.inodes) == (bench.number("c"), 0)
        bench.run(service.remove(_call(), pb.RemoveSnapshotRequest(snapshotter=NAME, key="v")))
        bench.run(service.cleanup(_call(), pb.CleanupRequest(snapshotter=NAME)))
        assert bench.names() == ["c"]
        row = bench.db.one("SELECT owner_uid FROM snapshots")
        assert row is not None
        assert row["owner_uid"] == 17


def test_lists_come_in_chunks(tmp_path: Path) -> None:
    with Bench(tmp_path, lambda _root: FakeSnapshotter()) as bench:
        service = Snapshots(bench.stores)
        for index in range(205):
            bench.prepare(f"n{index:03}")
        chunks = _collect(bench, service.list(_call(), pb.ListSnapshotsRequest(snapshotter=NAME)))
        assert [len(chunk.info) for chunk in chunks] == [100, 100, 5]
        filtered = pb.ListSnapshotsRequest(snapshotter=NAME, filters=["name~=00", "name==n204"])
        assert len(_collect(bench, service.list(_call(), filtered))[0].info) == 13
        assert _collect(bench, service.list(_call("other"), pb.ListSnapshotsRequest(snapshotter=NAME))) == []


def test_refusals(tmp_path: Path) -> None:
    with Bench(tmp_path, lambda _root: FakeSnapshotter()) as bench:
        service = Snapshots(bench.stores)
        stat = pb.StatSnapshotRequest(snapshotter=NAME, key="a")
        with pytest.raises(errdefs.FailedPreconditionError, match="namespace is required"):
            service.stat(Call(peer=Peer(door="test")), stat)
        with pytest.raises(errdefs.InvalidArgumentError):
            service.stat(_call("a/b"), stat)
        with pytest.raises(errdefs.InvalidArgumentError, match="snapshotter not loaded"):
            service.stat(_call(), pb.StatSnapshotRequest(snapshotter="zfs", key="a"))
        with pytest.raises(errdefs.NotFoundError):
            service.stat(_call(), stat)
        leased = _call(**{LEASE_HEADER: "nowhere"})
        with pytest.raises(errdefs.NotFoundError, match="lease"):
            bench.run(service.prepare(leased, pb.PrepareSnapshotRequest(snapshotter=NAME, key="a")))
        with pytest.raises(errdefs.InvalidArgumentError):
            _collect(bench, service.list(_call(), pb.ListSnapshotsRequest(snapshotter=NAME, filters=["name="])))


def test_every_method_is_there() -> None:
    service = bind(pb.DESCRIPTOR.services_by_name["Snapshots"], Snapshots.__new__(Snapshots))
    assert all(hasattr(method.handler, "__self__") for method in service.methods.values())
