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

_ACTION: Final = re.compile(
    r"(?P<before>\s*(?=\{\{-\s))?\{\{(?:-\s)?(?P<words>.*?)(?:\s-)?\}\}(?P<after>(?<=\s-\}\})\s*)?"
)
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
    if "{{" not in text:
        return text
    done, at = [], 0
    for found in _ACTION.finditer(text):
        done += [text[at : found.start()], _act(found["words"].split(), active, text)]
        at = found.end()
    rest = text[at:]
    if "{{" in rest:
        raise InvalidArgumentError(f"mount template {text!r}: unclosed action")
    return "".join([*done, rest])


def _act(words: Sequence[str], active: Sequence[ActiveMount], text: str) -> str:
    name, *rest = words or [""]
    wanted = _NUMBERS_OF.get(name)
    if wanted is None:
        raise InvalidArgumentError(f"mount template {text!r}: function {name!r} not defined")
    if len(rest) != wanted or not all(re.fullmatch(r"[+-]?\d{1,9}", word, re.ASCII) for word in rest):
        raise InvalidArgumentError(f"mount template {text!r}: {name} wants {wanted} whole number(s)")
    numbers = [int(word) for word in rest]
    if name == "overlay":
        return ":".join(_range(numbers[0], numbers[1], active))
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
