"""What all tables share: how maps of texts and keys are stored.

Maps are JSON objects whose keys are sorted, so that equal maps are equal texts. As in containerd's boltutil, a key with
an empty value is not stored.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from orlop.base.errdefs import InvalidArgumentError

MAX_KEY_SIZE: Final = 32768
"""Longest name of an image, lease or ingest in bytes: what bbolt, containerd's database, takes as a key."""

PAGE_SIZE: Final = 100
"""Rows that are read at once where a list may be long: about a millisecond's worth."""

_MAP: Final = msgspec.json.Decoder(dict[str, str])
_ENCODER: Final = msgspec.json.Encoder(order="deterministic")


def encode_map(values: Mapping[str, str]) -> str:
    """A map of texts as a column's value; keys with an empty value are left out."""
    if not values:
        return "{}"
    return _ENCODER.encode({key: value for key, value in values.items() if value}).decode()


def decode_map(text: str) -> dict[str, str]:
    """The map that `encode_map` stored."""
    return {} if text == "{}" else _MAP.decode(text)


def check_key(key: str, what: str) -> str:
    """Return `key` if it can be a key.

    Raises:
        InvalidArgumentError: it is empty or too long; `what` names the object and field.
    """
    if not key:
        raise InvalidArgumentError(f"{what} must not be empty")
    if len(key) > MAX_KEY_SIZE or len(key.encode()) > MAX_KEY_SIZE:
        raise InvalidArgumentError(f"{what} is longer than {MAX_KEY_SIZE} bytes")
    return key
