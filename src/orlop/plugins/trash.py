"""The trash as a plug-in: shared by whatever keeps bytes below the daemon's root."""

from pathlib import Path
from typing import Final

from orlop.core.kinds import METADATA, TRASH
from orlop.core.metadata.trash import Trash
from orlop.core.plugin import Context, Registration


def _init(context: Context) -> Trash:
    trash = Trash(Path(context.daemon.root), context.get(METADATA))
    trash.__enter__()
    context.on_close(trash.aclose)
    context.exports["path"] = str(trash.directory)
    return trash


REGISTRATION: Final = Registration(kind=TRASH, id="trash", requires=(METADATA,), init=_init)
