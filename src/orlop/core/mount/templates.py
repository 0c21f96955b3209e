"""The transform `format/`: actions between `{{` and `}}` in a mount's source, target and options.

    {{ source 0 }}  {{ target 0 }}  {{ mount 0 }}   source, target and mount point of a mount before
    {{ overlay 0 2 }}                               mount points from the first to the last, either way, joined by `:`
    {{- … -}}                                       takes white space around it away

It is the part of Go's text/template in which snapshotters write; anything else of that language is refused.

Source: containerd's core/mount/manager/format.go.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from orlop.base.errdefs import InvalidArgumentError
from orlop.core.mount import Mount
from orlop.core.mount.activation import ActiveMount
from orlop.core.mount.options import join_layers

_SHOWN: Final = 200
_NUMBERS_OF: Final = {"source": 1, "target": 1, "mount": 1, "overlay": 2}


def format_mount(mount: Mount, active: Sequence[ActiveMount]) -> Mount:
    """The mount with all its actions done.

    Raises:
        InvalidArgumentError: an action is none, or points at a mount that is not before it.
    """
    return replace(
        mount,
        source=expand(mount.source, active),
        target=expand(mount.target, active),
        options=tuple(expand(option, active) for option in mount.options),
    )


def expand(text: str, active: Sequence[ActiveMount]) -> str:
    """One text with its actions done. Errors as `format_mount`."""
    before, opened, rest = text.partition("{{")
    done = []
    while opened:
        words, closed, rest = rest.partition("}}")
        if not closed:
            raise InvalidArgumentError(f"mount template {_shown(text)}: unclosed action")
        if words[:1] == "-" and words[1:2].isspace():
            words, before = words[1:], before.rstrip()
        if words[-1:] == "-" and words[-2:-1].isspace():
            words, rest = words[:-1], rest.lstrip()
        done += [before, _act(words.split(), active, text)]
        before, opened, rest = rest.partition("{{")
    return "".join([*done, before])


def _act(words: Sequence[str], active: Sequence[ActiveMount], text: str) -> str:
    name, *rest = words or [""]
    wanted = _NUMBERS_OF.get(name)
    if wanted is None:
        raise InvalidArgumentError(f"mount template {_shown(text)}: function {_shown(name)} not defined")
    if len(rest) != wanted or not all(re.fullmatch(r"[+-]?\d{1,9}", word, re.ASCII) for word in rest):
        raise InvalidArgumentError(f"mount template {_shown(text)}: {name} wants {wanted} whole number(s)")
    numbers = [int(word) for word in rest]
    if name == "overlay":
        return join_layers(_range(numbers[0], numbers[1], active))
    (index,) = numbers
    if not 0 <= index < len(active):
        raise InvalidArgumentError(f"index out of bounds: {index}, has {len(active)} active mounts")
    one = active[index]
    return {"source": one.mount.source, "target": one.mount.target, "mount": one.mount_point}[name]


def _range(start: int, end: int, active: Sequence[ActiveMount]) -> list[str]:
    if min(start, end) < 0 or max(start, end) >= len(active):
        raise InvalidArgumentError(f"invalid range: {start}-{end}, has {len(active)} active mounts")
    step = -1 if start > end else 1
    return [active[index].mount_point for index in range(start, end + step, step)]


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
