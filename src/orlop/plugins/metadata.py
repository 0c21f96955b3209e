"""The metadata database as a plug-in. Its id is the one that containerd's tools look for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orlop.base.errdefs import InvalidArgumentError
from orlop.core.content import SharingPolicy
from orlop.core.kinds import EVENT, METADATA
from orlop.core.metadata import Database
from orlop.core.plugin import Context, Registration


@dataclass(slots=True)
class Config:
    """The plug-in's section of the configuration.

    Attributes:
        content_sharing_policy: a `SharingPolicy`: what a namespace must do to get what another one has brought.
    """

    content_sharing_policy: str = SharingPolicy.SHARED.value


def _init(context: Context) -> Database:
    database = Database(
        Path(context.daemon.root) / "meta.db",
        publisher=context.get(EVENT).publish,
        content_sharing=_policy(context.config.content_sharing_policy),
    )
    database.__enter__()
    context.on_close(database.__exit__)
    context.exports["path"] = str(database.path)
    context.exports["policy"] = database.content_sharing.value
    return database


def _policy(word: str) -> SharingPolicy:
    try:
        return SharingPolicy(word)
    except ValueError:
        raise InvalidArgumentError(
            f'content_sharing_policy "{word}" is none', hint=f"use one of {', '.join(SharingPolicy)}"
        ) from None


REGISTRATION: Final = Registration(kind=METADATA, id="bolt", requires=(EVENT,), config=Config, init=_init)
