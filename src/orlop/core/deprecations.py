"""Uses of what is on its way out, each with the time of the last one, for as long as the daemon lives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Deprecation:
    """One use: `id` is for programs, `message` for people."""

    id: str
    message: str
    last_occurrence: datetime


class Deprecations:
    """Args:
    messages: what can be warned of, by id.
    """

    def __init__(self, messages: Mapping[str, str]) -> None:
        self._messages = messages
        self._seen: dict[str, datetime] = {}

    def emit(self, name: str, at: datetime) -> None:
        """Note a use. Raises KeyError for what nobody has a message for."""
        self._messages[name]
        self._seen[name] = at

    def all(self) -> Sequence[Deprecation]:
        """What was used, by id."""
        return [
            Deprecation(id=name, message=self._messages[name], last_occurrence=at)
            for name, at in sorted(self._seen.items())
        ]
