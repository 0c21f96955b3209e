"""A layer's tar as an image of EROFS, made by the program mkfs.erofs of erofs-utils.

Source: ConvertTarErofs in containerd's internal/erofsutils, and its core/images/converter/erofs.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from typing import Final, Self

from orlop.base.errdefs import FailedPreconditionError, UnknownError
from orlop.core.diff.stream import Compression
from orlop.core.images.conversion import Recoder

PROGRAM: Final = "mkfs.erofs"
_PIECE: Final = 1 << 20
_SAID: Final = 4096
_CLUSTER: Final = "65536"  # bytes that are compressed together


class Maker:
    """Feed it a layer's blob, compressed or not; `finish`; and have the image in `pieces`, until it is left.

    Args:
        digest: of the layer; it decides the image's UUID.
        compressors: of the data in the image, as -z takes them; empty for none.
        extra: more arguments.

    Raises:
        FailedPreconditionError: the program is not here.
    """

    def __init__(self, digest: str, *, compressors: str = "", extra: Sequence[str] = ()) -> None:
        self._digest = digest
        self._arguments = ["--tar=f", "--aufs", "--quiet", "-Enoinline_data"]
        if compressors:
            self._arguments += [f"-z{compressors}", "-C", _CLUSTER]
        self._arguments += [*extra, "-U", str(uuid.uuid5(uuid.NAMESPACE_URL, f"erofs:blobs/{digest}"))]
        self._recoder = Recoder(Compression.NONE)
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        program = shutil.which(PROGRAM)
        if program is None:
            raise FailedPreconditionError(
                f"convert layer {self._digest} to EROFS: {PROGRAM} is not in PATH", hint="install erofs-utils 1.8"
            )
        with contextlib.ExitStack() as undo:
            directory = undo.enter_context(tempfile.TemporaryDirectory(prefix="orlop-erofs-"))
            self._image = os.path.join(directory, "layer.erofs")
            self._output = undo.enter_context(tempfile.TemporaryFile())
            command = [program, *self._arguments, self._image]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=self._output, stderr=self._output)
            undo.callback(self._end)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the blob. Raises UnknownError if the program ends early; DataLossError as Recoder."""
        self._write(self._recoder.feed(data))

    def finish(self) -> str:
        """Take the blob's end, wait for the image, and return the tar's DiffID.

        Raises:
            UnknownError: the program failed; quotes it.
            DataLossError: the blob is damaged.
        """
        self._write(self._recoder.finish())
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._process.wait():
            raise self._failure()
        return str(self._recoder.diff_id)

    def pieces(self) -> Iterator[bytes]:
        """The image's bytes."""
        with open(self._image, "rb") as image:
            while piece := image.read(_PIECE):
                yield piece

    def _write(self, pieces: Iterator[bytes]) -> None:
        assert self._process.stdin is not None
        try:
            for piece in pieces:
                self._process.stdin.write(piece)
        except BrokenPipeError:
            # After the archive's end some versions read no padding; the status tells.
            if self._process.wait():
                raise self._failure() from None
            for _ in pieces:
                pass

    def _failure(self) -> UnknownError:
        self._output.seek(0)
        said = self._output.read(_SAID).decode(errors="replace").strip()
        hint = "erofs-utils is too old; 1.8 reads tars" if "--tar" in said or "unrecognized" in said else None
        status = self._process.returncode
        return UnknownError(f"convert layer {self._digest} to EROFS: {PROGRAM} ended with {status}: {said}", hint=hint)

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # what is buffered goes nowhere
            self._process.stdin.close()
