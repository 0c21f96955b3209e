"""Snapshots that a loss of power may have taken are unpacked again, out of the content store, by the differs."""

from typing import Final

from orlop.core.diff import Applied, LayerBlob
from orlop.core.diff.choice import first_able
from orlop.core.kinds import CONTENT, DIFFER, METADATA, RECOVERY, SNAPSHOTS
from orlop.core.mount import Mount
from orlop.core.plugin import Context, Registration
from orlop.core.snapshots.recovery import Recovery


def _init(context: Context) -> Recovery:
    differs = list(context.all(DIFFER).values())

    async def apply(namespace: str, layer: LayerBlob, mounts: list[Mount]) -> Applied:
        return await first_able(differs, lambda differ: differ.apply(namespace, layer, mounts))

    recovery = Recovery(context.get(METADATA), context.get(SNAPSHOTS), apply)
    recovery.start()
    content = context.get(CONTENT)
    content.before_delete = recovery.let_go

    async def close() -> None:
        content.before_delete = None
        await recovery.close()

    context.on_close(close)
    return recovery


REGISTRATION: Final = Registration(
    kind=RECOVERY, id="snapshots", requires=(METADATA, CONTENT, SNAPSHOTS, DIFFER), init=_init
)
