"""Activations of mounts, as `client.mounts`: what mount(2) alone cannot perform, performed by the daemon."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from orlop.api.services.mounts.v1 import mounts_pb2 as pb
from orlop.api.types import mount_pb2
from orlop.client.channel import Rpc
from orlop.client.session import Session
from orlop.client.snapshots import from_mounts, to_mounts
from orlop.client.stamps import to_datetime
from orlop.core.mount import Mount

_SERVICE = "containerd.services.mounts.v1.Mounts"
ACTIVATE = Rpc(_SERVICE, "Activate", pb.ActivateRequest, pb.ActivateResponse)
DEACTIVATE = Rpc(_SERVICE, "Deactivate", pb.DeactivateRequest, Empty)
INFO = Rpc(_SERVICE, "Info", pb.InfoRequest, pb.InfoResponse)
UPDATE = Rpc(_SERVICE, "Update", pb.UpdateRequest, pb.UpdateResponse)
LIST = Rpc(_SERVICE, "List", pb.ListRequest, pb.ListMessage)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveMount:
    """A mount that the daemon has performed, and where."""

    mount: Mount
    mount_point: str
    mounted_at: datetime
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """What an activation came to: `active` was mounted, `system` is left to mount."""

    name: str
    active: Sequence[ActiveMount] = ()
    system: Sequence[Mount] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


class Mounts:
    """The activations of the namespace."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def activate(
        self, name: str, mounts: Sequence[Mount], *, labels: Mapping[str, str] | None = None, temporary: bool = False
    ) -> Activation:
        """Let the daemon perform what of these mounts the system cannot.

        The collector takes an activation that nothing holds: a lease that this client names, or a label
        `containerd.io/gc.bref.container` and its like.

        Args:
            temporary: perform all of them; what is left is a bind mount of the result.

        Raises:
            UnimplementedError: nothing of them needs this; mount them as they are.
            AlreadyExistsError: there is an activation of that name.
        """
        request = pb.ActivateRequest(
            name=name, mounts=to_mounts(mounts), labels=dict(labels or {}), temporary=temporary
        )
        return _activation((await self._session.call(ACTIVATE, request)).info)

    async def deactivate(self, name: str) -> None:
        """Undo an activation. Raises NotFoundError; FailedPreconditionError while somebody uses it."""
        await self._session.call(DEACTIVATE, pb.DeactivateRequest(name=name))

    async def get(self, name: str) -> Activation:
        """One activation. Raises NotFoundError."""
        return _activation((await self._session.call(INFO, pb.InfoRequest(name=name))).info)

    async def label(self, name: str, labels: Mapping[str, str]) -> Activation:
        """Set labels and keep the others; an empty value removes a label. containerd cannot do this."""
        request = pb.UpdateRequest(
            info=mount_pb2.ActivationInfo(name=name, labels=dict(labels)),
            update_mask=FieldMask(paths=[f"labels.{key}" for key in labels]),
        )
        return _activation((await self._session.call(UPDATE, request)).info)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Activation]:
        """Yield activations as the daemon lists them; containerd ignores the filters."""
        async for message in self._session.receive(LIST, pb.ListRequest(filters=list(filters))):
            yield _activation(message.info)

    async def list(self, filters: Sequence[str] = ()) -> list[Activation]:
        """All activations that match one of the filters, by name."""
        return sorted([one async for one in self.walk(filters)], key=lambda one: one.name)


def _activation(info: mount_pb2.ActivationInfo) -> Activation:
    return Activation(
        name=info.name,
        active=[
            ActiveMount(
                mount=from_mounts([one.mount])[0],
                mount_point=one.mount_point,
                mounted_at=to_datetime(one.mounted_at),
                data=dict(one.data),
            )
            for one in info.active
        ],
        system=from_mounts(info.system),
        labels=dict(info.labels),
    )
