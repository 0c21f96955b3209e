"""Update masks: which fields of an object a request means to change, down to single labels.

A path names a field (`image`), a whole map (`labels`) or one key of a map (`labels.io.example/x`): whatever follows the
map's name and a dot is the key, dots included, as containerd's stores read it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from orlop.base.errdefs import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class Path:
    """One path of a mask: the field, and the key if it points into a map."""

    field: str
    key: str | None = None

    def __str__(self) -> str:
        return self.field if self.key is None else f"{self.field}.{self.key}"


def parse(paths: Iterable[str], *, fields: Collection[str], maps: Collection[str], what: str) -> list[Path]:
    """The paths of a mask, each checked to be one that `what` lets be changed.

    Args:
        fields: updatable fields, the maps among them by their own name.
        maps: fields of which single keys can be named too.
        what: the object, for the error: `container "web"`.

    Raises:
        InvalidArgumentError: `cannot update "x" field on <what>`.
    """
    return [_parse(path, fields=fields, maps=maps, what=what) for path in paths]


def _parse(path: str, *, fields: Collection[str], maps: Collection[str], what: str) -> Path:
    if path in fields:
        return Path(path)
    name, dot, key = path.partition(".")
    if dot and name in maps:
        return Path(name, key)
    raise InvalidArgumentError(f'cannot update "{path}" field on {what}')


def merge(current: Mapping[str, str], given: Mapping[str, str], key: str | None) -> dict[str, str]:
    """A map after an update: wholly `given`, or `current` with one key taken from `given`.

    A key that is missing in `given`, or empty there, is removed: labels with an empty value are not stored by
    containerd (WriteLabels in core/metadata/boltutil).
    """
    if key is None:
        return {name: value for name, value in given.items() if value}
    merged = {name: value for name, value in current.items() if name != key}
    value = given.get(key)
    if value:
        merged[key] = value
    return merged
