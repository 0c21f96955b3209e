"""Image verifiers as executables in a directory: each is told of an image that is about to be pulled, all must agree.

    <bin_dir>/<program> -name NAME -digest DIGEST -stdin-media-type application/vnd.oci.descriptor.v1+json

with the descriptor as JSON on standard input. Exit status 0 allows; standard output is the reason. A program that
cannot be started, is killed or takes too long gives no verdict, and that blocks too. Without directory or programs
everything is allowed.

Source: containerd's pkg/imageverifier/bindir and docs/image-verification.md.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orlop.base import durations
from orlop.base.errdefs import UnknownError
from orlop.core.images.verifier import Judgement
from orlop.core.kinds import IMAGE_VERIFIER
from orlop.core.plugin import Context, Registration
from orlop.oci import media_types
from orlop.oci.image import Descriptor, encode

log: Final = logging.getLogger(__name__)

OUTPUT_LIMIT: Final = 32 << 10
"""Bytes of a program's output that are looked at."""


@dataclass(slots=True)
class Config:
    """The plug-in's section of the configuration; a negative `max_verifiers` is no limit."""

    bin_dir: str = "/opt/containerd/image-verifier/bin"
    max_verifiers: int = 10
    per_verifier_timeout: str = "10s"


class BinDir:
    """See `core.images.verifier.ImageVerifier`."""

    def __init__(self, directory: Path, *, most: int, timeout_s: float) -> None:
        self._directory = directory
        self._most = most
        self._timeout_s = timeout_s

    async def verify(self, name: str, target: Descriptor) -> Judgement:
        """See `core.images.verifier.ImageVerifier.verify`."""
        try:
            programs = sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return Judgement(ok=True, reason=f"image verifier directory {self._directory} does not exist")
        except OSError as error:
            raise UnknownError(f"failed to list directory contents: {self._directory}: {error.strerror}") from error
        if not programs:
            return Judgement(ok=True, reason=f"no image verifier binaries found in {self._directory}")
        if 0 <= self._most < len(programs):
            log.warning(
                "image verifiers are being skipped: directory %s has %d entries, at most %d are asked",
                self._directory,
                len(programs),
                self._most,
            )
            programs = programs[: self._most]
        reasons = []
        for program in programs:
            status, reason = await self._ask(program, name, target)
            if status:
                return Judgement(ok=False, reason=f"verifier {program} rejected image (exit code {status}): {reason}")
            reasons.append(f"{program} => {reason}")
        return Judgement(ok=True, reason=", ".join(reasons))

    async def _ask(self, program: str, name: str, target: Descriptor) -> tuple[int, str]:
        began = time.monotonic()

        def failed(why: str) -> UnknownError:
            return UnknownError(f"failed to call verifier {program} (runtime {time.monotonic() - began:.1f}s): {why}")

        try:
            process = await asyncio.create_subprocess_exec(
                str(self._directory / program),
                *("-name", name, "-digest", target.digest, "-stdin-media-type", media_types.OCI_DESCRIPTOR),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                process_group=0,
            )
        except OSError as error:
            raise failed(error.strerror or str(error)) from error
        try:
            async with asyncio.timeout(self._timeout_s):
                reason = await _talk(process, program, encode(target) + b"\n")
                status = await process.wait()
        except TimeoutError:
            raise failed(f"no verdict in {self._timeout_s:g}s") from None
        finally:
            # What it has started, too: nothing of a verifier outlives its verdict.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if status < 0:
            raise failed(f"killed by signal {-status}")
        return status, reason


async def _talk(process: asyncio.subprocess.Process, program: str, descriptor: bytes) -> str:
    """Give a verifier the descriptor, and take what it says."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    writing = _write(process.stdin, descriptor)
    _, (out, cut), (err, _) = await asyncio.gather(writing, _bounded(process.stdout), _bounded(process.stderr))
    for line in err.decode("utf-8", "replace").splitlines():
        log.debug("%s", line, extra={"image_verifier": program, "stream": "stderr"})
    return out.decode("utf-8", "replace").strip() + ("(stdout truncated)" if cut else "")


async def _write(stdin: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(OSError):  # a verifier need not read it
        stdin.write(data)
        await stdin.drain()
    stdin.close()
    with contextlib.suppress(OSError):
        await stdin.wait_closed()


async def _bounded(stream: asyncio.StreamReader) -> tuple[bytes, bool]:
    """The first bytes of a stream that is read to its end, and whether there were more."""
    kept, cut = bytearray(), False
    while data := await stream.read(OUTPUT_LIMIT):
        room = OUTPUT_LIMIT - len(kept)
        cut = cut or len(data) > room
        kept += data[:room]
    return bytes(kept), cut


def _init(context: Context) -> BinDir:
    config: Config = context.config
    timeout_s = durations.parse(config.per_verifier_timeout) / 1e9
    return BinDir(Path(config.bin_dir), most=config.max_verifiers, timeout_s=timeout_s)


REGISTRATION: Final = Registration(kind=IMAGE_VERIFIER, id="bindir", config=Config, init=_init)
