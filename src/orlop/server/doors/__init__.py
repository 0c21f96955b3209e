"""Doors: they turn what arrives on a socket into a `Call` and bytes, and the handler's answer into the protocol's.

Errors are translated to a status here and nowhere else; one that no handler meant is logged with its traceback, once.
"""

import logging
from typing import Final

from orlop.base.errdefs import InternalError, OrlopError, UnavailableError, to_status

log: Final = logging.getLogger(__name__)


def status_of(error: BaseException, method: str) -> tuple[int, str]:
    """Code and message for the peer; what no handler meant is logged here, with its traceback."""
    code, message = to_status(error)
    if code == InternalError.code and not isinstance(error, OrlopError):
        log.error("handler failed", exc_info=error, extra={"method": method})
    elif code in (InternalError.code, UnavailableError.code):
        log.warning("call failed", extra={"method": method, "error": message})
    else:
        log.debug("call refused", extra={"method": method, "error": message})
    return code, message
