"""Namespaces, as `client.namespaces`: who else uses this daemon, and under which labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from orlop.api.services.namespaces.v1 import namespaces_pb2 as pb
from orlop.client.channel import Rpc
from orlop.client.session import Session

_SERVICE = "containerd.services.namespaces.v1.Namespaces"
GET = Rpc(_SERVICE, "Get", pb.GetNamespaceRequest, pb.GetNamespaceResponse)
LIST = Rpc(_SERVICE, "List", pb.ListNamespacesRequest, pb.ListNamespacesResponse)
CREATE = Rpc(_SERVICE, "Create", pb.CreateNamespaceRequest, pb.CreateNamespaceResponse)
UPDATE = Rpc(_SERVICE, "Update", pb.UpdateNamespaceRequest, pb.UpdateNamespaceResponse)
DELETE = Rpc(_SERVICE, "Delete", pb.DeleteNamespaceRequest, Empty)


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A namespace and its labels."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


class Namespaces:
    """The namespaces of the daemon."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def list(self) -> list[Namespace]:
        """All namespaces, by name."""
        response = await self._session.call(LIST, pb.ListNamespacesRequest())
        found = [Namespace(name=one.name, labels=dict(one.labels)) for one in response.namespaces]
        return sorted(found, key=lambda one: one.name)

    async def get(self, name: str) -> Namespace:
        """One namespace. Raises NotFoundError if there is none of that name."""
        response = await self._session.call(GET, pb.GetNamespaceRequest(name=name))
        return Namespace(name=response.namespace.name, labels=dict(response.namespace.labels))

    async def create(self, name: str, labels: Mapping[str, str] | None = None) -> Namespace:
        """Create a namespace. Raises AlreadyExistsError if there is one, InvalidArgumentError for a bad name."""
        request = pb.CreateNamespaceRequest(namespace=pb.Namespace(name=name, labels=dict(labels or {})))
        response = await self._session.call(CREATE, request)
        return Namespace(name=response.namespace.name, labels=dict(response.namespace.labels))

    async def label(self, name: str, labels: Mapping[str, str]) -> Namespace:
        """Set labels and keep the others; an empty value removes a label."""
        request = pb.UpdateNamespaceRequest(
            namespace=pb.Namespace(name=name, labels=dict(labels)),
            update_mask=FieldMask(paths=[f"labels.{key}" for key in labels]),
        )
        await self._session.call(UPDATE, request)
        return await self.get(name)  # containerd's answer has no labels

    async def delete(self, name: str) -> None:
        """Delete an empty namespace.

        Raises:
            FailedPreconditionError: something is left in it; the text names what.
            NotFoundError: there is none of that name.
        """
        await self._session.call(DELETE, pb.DeleteNamespaceRequest(name=name))
