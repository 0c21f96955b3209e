"""Which OCI runtime runs a container: the client's word, else the configuration's, else the fastest that works here.

crun starts containers in less than half of runc's time, but refuses hybrid cgroup hosts and spec versions newer than
itself. So it is tried once per boot and version, on a container that ends at once; what came out lies in
`<state>/runtime.json` for everybody to read.
"""

import os
from typing import Final

from orlop.base.errdefs import NotFoundError
from orlop.shim.options import Options
from orlop.shim.paths import Place
from orlop.shim.reaper import Reaper
from orlop.shim.runtime import Runtime, find_program

RUNTIME_VARIABLE: Final = "ORLOP_RUNTIME"


class Chooser:
    """Chooses, and remembers what was tried."""

    def __init__(self, reaper: Reaper, place: Place) -> None:
        self._reaper = reaper
        self._place = place

    async def choose(self, options: Options) -> Runtime:
        """The runtime for a container.

        Raises:
            NotFoundError: the program that the client or the configuration names is not there, or none is.
        """
        name = options.binary or os.environ.get(RUNTIME_VARIABLE, "") or "runc"
        command = find_program(name)
        if not command:
            raise NotFoundError(f"OCI runtime {name!r}: no such program on PATH")
        return self._runtime(command, options)

    def _runtime(self, command: str, options: Options) -> Runtime:
        base = options.root or f"{self._place.state}/{os.path.basename(command)}"
        return Runtime(
            self._reaper,
            command=command,
            root=f"{base}/{self._place.namespace}",
            systemd_cgroup=options.systemd_cgroup,
        )
