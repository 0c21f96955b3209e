"""The daemon's check of itself."""

from collections.abc import AsyncIterator

from orlop.api.services.fsck.v1 import fsck_pb2 as pb
from orlop.client.channel import Rpc
from orlop.client.session import Session
from orlop.core.fsck import Finding, Unchecked

CHECK = Rpc("orlop.services.fsck.v1.Fsck", "Check", pb.CheckRequest, pb.CheckResponse)


async def fsck(session: Session, *, repair: bool, quick: bool) -> AsyncIterator[Finding | Unchecked]:
    """Yield what the daemon finds, as it finds it."""
    async for answer in session.receive(CHECK, pb.CheckRequest(repair=repair, quick=quick)):
        if answer.HasField("unchecked"):
            yield Unchecked(what=answer.unchecked.what, why=answer.unchecked.why)
        else:
            one = answer.finding
            yield Finding(
                kind=one.kind,
                object=one.object,
                namespaces=tuple(one.namespaces),
                wrong=one.wrong,
                mends=one.mends,
                mended=one.mended,
            )
