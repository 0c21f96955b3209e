"""JSON from strangers, where it is read without a schema."""

import json
from typing import Any


def loads(data: bytes | str) -> Any:
    """As `json.loads`; a document that nests too deep is a ValueError too, as everything else that is wrong with one.

    Any: what was in it.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it nests too deep") from None
