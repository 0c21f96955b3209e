"""The metadata database as a plug-in. Its id is the one that containerd's tools look for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orlop.base.errdefs import InvalidArgumentError
from orlop.core.content import SharingPolicy
from orlop.core.kinds import EVENT, METADATA
from orlop.core.metadata import Database, runs
from orlop.core.metadata.quotas import KINDS, Quota, Quotas
from orlop.core.plugin import Context, Registration


@dataclass(slots=True)
class Config:
    """The plug-in's section of the configuration.

    Attributes:
        content_sharing_policy: a `SharingPolicy`: what a namespace must do to get what another one has brought.
        quotas: ours: limits by namespace, `*` for those that are not named.
    """

    content_sharing_policy: str = SharingPolicy.SHARED.value
    quotas: dict[str, Quota] = field(default_factory=dict)


def _init(context: Context) -> Database:
    database = Database(
        Path(context.daemon.root) / "meta.db",
        publisher=context.get(EVENT).publish,
        content_sharing=_policy(context.config.content_sharing_policy),
        quotas=Quotas(by_namespace=_quotas(context.config.quotas)),
    )
    database.__enter__()

    def close() -> None:
        runs.end(database)
        database.__exit__()

    context.on_close(close)
    database.unclean = runs.begin(database)
    context.exports["path"] = str(database.path)
    context.exports["policy"] = database.content_sharing.value
    return database


def _quotas(given: Mapping[str, Quota]) -> Mapping[str, Quota]:
    for namespace, quota in given.items():
        for kind in KINDS:
            if getattr(quota, kind) < 0:
                raise InvalidArgumentError(f"quotas.{namespace}: {kind}: must not be negative")
    return given


def _policy(word: str) -> SharingPolicy:
    try:
        return SharingPolicy(word)
    except ValueError:
        raise InvalidArgumentError(
            f'content_sharing_policy "{word}" is none', hint=f"use one of {', '.join(SharingPolicy)}"
        ) from None


REGISTRATION: Final = Registration(kind=METADATA, id="bolt", requires=(EVENT,), config=Config, init=_init)
