"""Go's regular expressions for filters."""

import re


class RegexpError(ValueError):
    """Go would not compile this."""


class Regexp:
    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern

    def search(self, text: str) -> bool:
        """Whether some part of `text` matches."""
        return self._pattern.search(text) is not None


def compile_regexp(pattern: str) -> Regexp:
    try:
        return Regexp(re.compile(pattern))
    except re.error as error:
        raise RegexpError(str(error)) from error
