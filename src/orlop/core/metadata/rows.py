"""What all tables share: how maps of texts, extensions and keys are stored.

Maps are JSON objects whose keys are sorted, so that equal maps are equal texts. As in containerd's boltutil, a key with
an empty value is not stored.
"""

import base64
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


def encode_extensions(extensions: Mapping[str, bytes]) -> str:
    """Clients' own data by name, serialised `google.protobuf.Any`s, as a column's value."""
    if not extensions:
        return "{}"
    return msgspec.json.encode({key: base64.b64encode(value).decode() for key, value in extensions.items()}).decode()


def decode_extensions(text: str) -> dict[str, bytes]:
    """What `encode_extensions` stored."""
    return {key: base64.b64decode(value) for key, value in decode_map(text).items()}


def merge_extensions(current: Mapping[str, bytes], given: Mapping[str, bytes], key: str | None) -> dict[str, bytes]:
    """Extensions after an update with all that is `given`, or with one key of it.

    What is given is added or takes the place of what is there; nothing is removed, as in containerd, whose
    WriteExtensions (core/metadata/boltutil) only writes. A key that is named and not given becomes an empty `Any`.
    """
    return {**current, **(given if key is None else {key: given.get(key, b"")})}


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
