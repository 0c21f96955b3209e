"""Our supervisor and containerd's own shims under the suite for shims."""

from pathlib import Path

import pytest

from orlop.core.runtime import binaries
from orlop.testing.runtimes import ShimContract
from tools import containerd17, daemons
from tools.peers import PeerError

pytestmark = pytest.mark.root


class _Contract(ShimContract):
    def busybox(self) -> Path:
        return daemons.program("busybox")


class TestSupervisor(_Contract):
    def program(self) -> Path:
        return binaries.supervisor_path()


@pytest.mark.interop
class TestRunc(_Contract):
    """Debian's containerd-shim-runc-v2."""

    def program(self) -> Path:
        return daemons.program("containerd-shim-runc-v2")


@pytest.mark.interop
class TestLaterRunc(_Contract):
    """That of Debian 13."""

    def program(self) -> Path:
        try:
            return containerd17.program("containerd-shim-runc-v2")
        except PeerError as error:
            pytest.skip(str(error))
