"""The local content store as a plug-in."""

from pathlib import Path
from typing import Final

from orlop.core.kinds import CHECK, CONTENT, METADATA, TRASH
from orlop.core.plugin import Context, Registration, SkipPlugin
from orlop.plugins.content.local.check import ContentCheck
from orlop.plugins.content.local.store import LocalStore


def _init(context: Context) -> LocalStore:
    db = context.get(METADATA)
    root = Path(context.daemon.root) / "content"
    store = LocalStore(root, db, context.get(TRASH), policy=db.content_sharing)
    context.on_close(store.aclose)
    context.exports["root"] = str(store.root)
    return store


def _check(context: Context) -> ContentCheck:
    store = context.all(CONTENT).get("content")
    if store is None:
        raise SkipPlugin("the bytes do not lie here")
    return ContentCheck(store)


REGISTRATIONS: Final = (
    Registration(kind=CONTENT, id="content", requires=(METADATA, TRASH), init=_init),
    Registration(kind=CHECK, id="content", requires=(CONTENT,), init=_check),
)
