"""JSON from strangers: whatever is wrong with it is a ValueError."""

import pytest

from orlop.base import json_text


def test_what_is_right_is_read():
    assert json_text.loads(b'{"a": [1, null]}') == json_text.loads('{"a": [1, null]}') == {"a": [1, None]}


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, "[" * 100_000], ids=str)
def test_what_is_wrong_is_a_value_error(text):
    with pytest.raises(ValueError):
        json_text.loads(text)
