"""The local content store as a plug-in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orlop.base.errdefs import InvalidArgumentError
from orlop.core.kinds import CONTENT, METADATA, TRASH
from orlop.core.plugin import Context, Registration
from orlop.plugins.content.local.store import LocalStore, SharingPolicy


@dataclass(slots=True)
class Config:
    """The plug-in's section of the configuration.

    Attributes:
        content_sharing_policy: `shared`, where naming a digest gives a namespace a right to a blob that another one
            brought, or `isolated`, where it must send the bytes, unless the other one is labelled
            `containerd.io/namespace.shareable=true`. containerd has this word in its metadata plug-in.
    """

    content_sharing_policy: str = SharingPolicy.SHARED.value


def _init(context: Context) -> LocalStore:
    try:
        policy = SharingPolicy(context.config.content_sharing_policy)
    except ValueError:
        raise InvalidArgumentError(
            f'content_sharing_policy "{context.config.content_sharing_policy}" is none',
            hint=f"use one of {', '.join(SharingPolicy)}",
        ) from None
    store = LocalStore(Path(context.daemon.root) / "content", context.get(METADATA), context.get(TRASH), policy=policy)
    context.on_close(store.aclose)
    context.exports["root"] = str(store.root)
    context.exports["content_sharing_policy"] = policy.value
    return store


REGISTRATION: Final = Registration(kind=CONTENT, id="content", requires=(METADATA, TRASH), config=Config, init=_init)
