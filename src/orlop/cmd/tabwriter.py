"""Columns as Go's text/tabwriter lays them out, so that our tables are containerd's tables, blank for blank.

A cell ends at a tab; what follows the last tab of a line is no cell of a column. A column is a run of adjacent lines
that all have a cell there, so widths are per block, not per table.

Source: text/tabwriter in Go's standard library, without its HTML filtering and alignment flags.
"""


class TabWriter:
    """Collects lines and lays them out.

    Args:
        minwidth: least width of a column, padding included.
        tabwidth: of a tab, when `padchar` is one; column widths are then rounded up to it.
        padding: added to a cell before its width counts.
    """

    def __init__(self, minwidth: int = 1, tabwidth: int = 8, padding: int = 1, padchar: str = " ") -> None:
        self._minwidth = minwidth
        self._tabwidth = tabwidth
        self._padding = padding
        self._padchar = padchar
        self._lines: list[list[str]] = []

    def line(self, text: str) -> None:
        """Add a line, without its line feed."""
        self._lines.append(text.split("\t"))

    def row(self, *cells: object) -> None:
        """Add a line whose cells all belong to columns, that is with a tab behind the last as well."""
        self._lines.append([*(str(cell) for cell in cells), ""])

    def __str__(self) -> str:
        out: list[str] = []
        self._format(0, len(self._lines), [], out)
        return "".join(out)

    def _format(self, start: int, end: int, widths: list[int], out: list[str]) -> None:
        column = len(widths)
        at = start
        while at < end:
            if column >= len(self._lines[at]) - 1:
                at += 1
                continue
            self._write(start, at, widths, out)
            start = at
            width = self._minwidth
            while at < end and column < len(self._lines[at]) - 1:
                width = max(width, len(self._lines[at][column]) + self._padding)
                at += 1
            self._format(start, at, [*widths, width], out)
            start = at
        self._write(start, end, widths, out)

    def _write(self, start: int, end: int, widths: list[int], out: list[str]) -> None:
        for cells in self._lines[start:end]:
            for position, cell in enumerate(cells):
                out.append(cell)
                if position < len(widths):
                    out.append(self._pad(len(cell), widths[position]))
            out.append("\n")

    def _pad(self, text: int, width: int) -> str:
        if self._padchar != "\t":
            return self._padchar * (width - text)
        rounded = -(-width // self._tabwidth) * self._tabwidth
        return "\t" * -(-(rounded - text) // self._tabwidth)
