"""Progress of pulls and pushes on a terminal, as plain lines, or as JSON.

On a terminal it is the table that `dist pull` has shown since 2017: one row for each thing, then a row with the time,
the bytes that came and their speed. Plain lines are written once per change of a thing's status.
"""

import json
import sys
import time
from typing import TYPE_CHECKING, TextIO

from orlop.cmd.tabwriter import TabWriter
from orlop.cmd.units import binary
from orlop.core.transfer.progress import Progress, Status

if TYPE_CHECKING:
    from collections.abc import Callable

_BAR = 38
_REDRAW_S = 0.1
_MOVING = (Status.DOWNLOADING, Status.UPLOADING)


class Display:
    """Takes `Progress` by being called, and shows it; used as a context manager it ends with a summary.

    Args:
        mode: `tty`, `plain`, `json`, `none`, or `auto`: a table where `out` is a terminal, else plain lines.
        unpacking: whether steps of unpacking are shown as well.
    """

    def __init__(self, mode: str = "auto", *, out: TextIO | None = None, unpacking: bool = True) -> None:
        self._out = out or sys.stdout
        self._mode = mode if mode != "auto" else ("tty" if self._out.isatty() else "plain")
        self._unpacking = unpacking
        self._rows: dict[str, Progress] = {}
        self._first: dict[str, int] = {}  # the offset at which a thing's bytes began to move in this run
        self._bytes: dict[str, int] = {}
        self._began = time.monotonic()
        self._drawn = 0
        self._last = 0.0

    def __call__(self, step: Progress) -> None:
        if step.status in _MOVING:
            first = self._first.setdefault(step.ref, step.offset)
            self._bytes[step.ref] = max(step.offset - first, 0)
        if step.status in (Status.UNPACKING, Status.UNPACKED) and not self._unpacking:
            return
        before = self._rows.get(step.ref)
        self._rows[step.ref] = step
        changed = before is None or before.status is not step.status
        if self._mode == "json":
            self._json(step)
        elif self._mode == "plain" and changed and step.status not in (Status.WAITING, Status.COMMITTING):
            self._line(f"{step.ref}: {step.status}")
        elif self._mode == "tty" and (changed or time.monotonic() - self._last > _REDRAW_S):
            self._draw()

    def __enter__(self) -> "Callable[[Progress], None]":
        return self

    def __exit__(self, kind: object, *_exc: object) -> None:
        if self._mode == "tty":
            self._draw()
        elif self._mode == "plain" and kind is None:
            self._line(self._summary().replace("\t", "  "))
        elif self._mode == "json" and kind is None:
            value = {"elapsed_s": round(self._elapsed(), 3), "total_bytes": self._total()}
            self._line(json.dumps(value))

    def _elapsed(self) -> float:
        return max(time.monotonic() - self._began, 1e-3)

    def _total(self) -> int:
        return sum(self._bytes.values())

    def _summary(self) -> str:
        total = self._total()
        speed = f"({binary(total / self._elapsed())}/s)"
        return f"elapsed: {self._elapsed():.1f} s\ttotal: {binary(total):>7}\t{speed}"

    def _json(self, step: Progress) -> None:
        value = {"ref": step.ref, "status": step.status, "offset": step.offset, "total": step.total}
        self._line(json.dumps(value))

    def _line(self, text: str) -> None:
        self._out.write(f"{text}\n")
        self._out.flush()

    def _draw(self) -> None:
        table = TabWriter()
        for step in self._rows.values():
            moving = step.status in _MOVING and step.total > 0
            if step.status in (Status.WAITING, Status.RESOLVING):
                share = 0.0
            else:
                share = min(step.offset / step.total, 1.0) if moving else 1.0
            amount = f"{binary(step.offset)}/{binary(step.total)}" if moving else ""
            table.line(f"{step.ref}:\t{step.status}\t{_bar(share)}\t{amount}\t")
        table.line(f"{self._summary()}\t")
        text = str(table)
        back = f"\x1b[{self._drawn}A\x1b[J" if self._drawn else ""
        self._out.write(back + text)
        self._out.flush()
        self._drawn = text.count("\n")
        self._last = time.monotonic()


def _bar(share: float) -> str:
    full = int(share * _BAR)
    return f"|{'+' * full}{'-' * (_BAR - full)}|"
