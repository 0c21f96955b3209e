"""`WWW-Authenticate` headers, read.

Source: RFC 7235, section 4.1, and RFC 6750, section 3; distribution's token authentication.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

MAX_HEADER: Final = 8 << 10
"""Characters of a header that are read."""

_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_SCHEME: Final = re.compile(rf"[\s,]*({_TOKEN})(?=[\s,]|$)")
_PARAMETER: Final = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN[:-2]}/:,=]*))\s*(,\s*|$)')


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a server wants to see. `scheme` and the names of `parameters` are in lower case."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)

    @property
    def scopes(self) -> frozenset[str]:
        """The scopes that the server names."""
        return frozenset(self.parameters.get("scope", "").split())


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """All challenges of an answer, in order. What is not understood is passed over."""
    found: list[Challenge] = []
    for header in headers:
        found += _parse_header(header[:MAX_HEADER])
    return found


def _parse_header(text: str) -> list[Challenge]:
    found = []
    position = 0
    while match := _SCHEME.match(text, position):
        position = match.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(text, position):
            quoted, bare = parameter[2], parameter[3]
            parameters[parameter[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare
            position = parameter.end()
        found.append(Challenge(match[1].lower(), parameters))
    return found


def merge_scopes(*groups: Iterable[str]) -> tuple[str, ...]:
    """Scopes of several sources as one sorted list, actions on the same resource joined.

    `repository:a:pull` and `repository:a:push,pull` become `repository:a:pull,push`.
    """
    actions: dict[str, set[str]] = {}
    for group in groups:
        for scope in group:
            resource, colon, named = scope.rpartition(":")
            if colon:
                actions.setdefault(resource, set()).update(named.split(","))
    return tuple(sorted(f"{resource}:{','.join(sorted(named))}" for resource, named in actions.items()))
