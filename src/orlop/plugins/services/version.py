"""The Version service."""

from typing import Final

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.version.v1 import version_pb2
from orlop.base.rpc import Call, Service, bind
from orlop.core.kinds import GRPC
from orlop.core.plugin import Context, Registration
from orlop.core.version import VERSION, revision


class Version:
    """containerd.services.version.v1.Version."""

    def version(self, _call: Call, _request: Empty) -> version_pb2.VersionResponse:
        return version_pb2.VersionResponse(version=VERSION, revision=revision())


def _init(_context: Context) -> Service:
    return bind(version_pb2.DESCRIPTOR.services_by_name["Version"], Version())


REGISTRATION: Final = Registration(kind=GRPC, id="version", init=_init)
