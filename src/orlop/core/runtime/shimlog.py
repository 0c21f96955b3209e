"""The logs of foreign shims: each writes into the FIFO `log` of its bundle, and blocks if nobody reads."""

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import Final

log: Final = logging.getLogger(__name__)

CHUNK: Final = 64 << 10


class ShimLogs:
    """Reads the FIFOs on the event loop and puts each line into the daemon's log."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}

    def open(self, bundle: Path) -> None:
        """Make the FIFO of a bundle if it is not there, and read it from now on."""
        if bundle in self._descriptors:
            return
        path = bundle / "log"
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o700)
        # Open for both directions: the shim may come and go without an end of file, and its open never waits.
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._descriptors[bundle] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._read, descriptor, bundle)

    def forget(self, bundle: Path) -> None:
        """Stop reading; the FIFO goes with the bundle."""
        descriptor = self._descriptors.pop(bundle, None)
        if descriptor is not None:
            self._read(descriptor, bundle)
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)

    def close(self) -> None:
        """Stop reading all."""
        for bundle in list(self._descriptors):
            self.forget(bundle)

    def _read(self, descriptor: int, bundle: Path) -> None:
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return
        for line in data.decode(errors="replace").splitlines():
            log.info("shim: %s", line, extra={"namespace": bundle.parent.name, "id": bundle.name})
