"""The service that tells of plug-ins and of the daemon."""

import asyncio
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from orlop.api.services.introspection.v1 import introspection_pb2
from orlop.base.errdefs import OrlopError
from orlop.base.rpc import Call, Peer
from orlop.core.metadata import Database
from orlop.plugins.services.introspection import Introspection

CALL = Call(peer=Peer(door="test"))


def test_who_cannot_write_can_still_be_asked_about_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon whose disk failed at its start did not even tell which of its plug-ins had failed, and why."""

    def fail(_write: object) -> None:
        raise OrlopError("input/output error")

    with Database(tmp_path / "meta.db") as db:
        monkeypatch.setattr(db, "write_sync", fail)
        service = Introspection(list, db)
        assert not service.plugins(CALL, introspection_pb2.PluginsRequest()).plugins
        with pytest.raises(OrlopError, match="input/output"):
            asyncio.run(service.server(CALL, Empty()))
