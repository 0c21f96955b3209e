"""The metadata database as a plug-in. Its id is the one that containerd's tools look for."""

from pathlib import Path
from typing import Final

from orlop.core.kinds import EVENT, METADATA
from orlop.core.metadata import Database
from orlop.core.plugin import Context, Registration


def _init(context: Context) -> Database:
    database = Database(Path(context.daemon.root) / "meta.db", publisher=context.get(EVENT).publish)
    database.__enter__()
    context.on_close(database.__exit__)
    context.exports["path"] = str(database.path)
    return database


REGISTRATION: Final = Registration(kind=METADATA, id="bolt", requires=(EVENT,), init=_init)
