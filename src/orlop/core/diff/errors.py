"""What can be wrong with a layer, before it becomes one of the errors that cross an API."""


class ArchiveError(ValueError):
    """The archive itself is at fault, whoever reads it and wherever.

    Args:
        reason: in lower case, without the entry.
        entry: name of the entry it was met at, as it stands in the archive.
    """

    def __init__(self, reason: str, entry: bytes | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.entry = entry

    def __str__(self) -> str:
        return self.reason if self.entry is None else f"entry {shown(self.entry)}: {self.reason}"


class LimitError(ArchiveError):
    """The archive is larger than the limits that its reader was given."""


class UnsuitableError(Exception):
    """An index cannot show this layer rightly, or not here; it must be extracted. The text says why."""


class EntryError(Exception):
    """A failure with the entry or path that it was met at; what failed is its cause."""

    def __init__(self, entry: bytes | None) -> None:
        super().__init__(entry)
        self.entry = entry


def shown(name: bytes) -> str:
    """A name for an error text: quoted, with what is not printable escaped, and cut when it is very long."""
    text = name.decode("utf-8", "backslashreplace")
    if len(text) > 200:
        text = f"{text[:120]}…{text[-60:]}"
    return (
        '"'
        + "".join(c if c.isprintable() and c not in '"\\' else c.encode("unicode_escape").decode() for c in text)
        + '"'
    )
