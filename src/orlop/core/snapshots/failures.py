"""What the file system refused, as an error that names the snapshot and the step."""

import contextlib
import errno
from collections.abc import Iterator, Mapping
from typing import Final

from orlop.base import errdefs
from orlop.core.mount import disk

_CLASSES: Final[Mapping[int | None, type[errdefs.OrlopError]]] = {
    errno.EBUSY: errdefs.FailedPreconditionError,
    **dict.fromkeys(
        (errno.EMLINK, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
        errdefs.ResourceExhaustedError,
    ),
}


@contextlib.contextmanager
def in_words(what: str) -> Iterator[None]:
    """Say of an `OSError` what was being done to which snapshot."""
    try:
        yield
    except OSError as error:
        if error.errno in _CLASSES:
            raise _CLASSES[error.errno](f"{what}: {error}") from error
        raise disk.failure(what, error.filename, error) from error
