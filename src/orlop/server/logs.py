"""Structured logs on standard error: one line each, as logfmt (`text`) or JSON, with the fields given as `extra`."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

from orlop.base.errdefs import InvalidArgumentError

LEVELS: Final = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}
_WORDS: Final = {logging.WARNING: "warning", logging.CRITICAL: "fatal"}
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def level(word: str) -> int:
    """The number of one of containerd's words for a level.

    Raises:
        InvalidArgumentError: no such word.
    """
    try:
        return LEVELS[word.lower()]
    except KeyError:
        raise InvalidArgumentError(f'log level "{word}": must be one of {", ".join(LEVELS)}') from None


def setup(word: str, form: str) -> None:
    """Send the log of this process to standard error; for the daemon, never for a host process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if form == "json" else Logfmt())
    logging.basicConfig(level=level(word), handlers=[handler], force=True)


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller gave as `extra`."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _base(record: logging.LogRecord) -> dict[str, Any]:
    return {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
        "level": _WORDS.get(record.levelno, record.levelname.lower()),
        "msg": record.getMessage(),
        "logger": record.name,
        **fields(record),
    }


class Json(logging.Formatter):
    """One JSON object a line; a traceback is in `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        table = _base(record)
        if record.exc_info:
            table["traceback"] = self.formatException(record.exc_info)
        return json.dumps(table, default=str)


class Logfmt(logging.Formatter):
    """`time="…" level=info msg="…" key=value`, then a traceback's lines."""

    def format(self, record: logging.LogRecord) -> str:
        line = " ".join(f"{key}={_quote(str(value))}" for key, value in _base(record).items())
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _quote(text: str) -> str:
    plain = text and all(c.isalnum() or c in "._-/:@+" for c in text)
    return text if plain else json.dumps(text, ensure_ascii=False)
