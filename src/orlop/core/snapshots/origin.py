"""Where the files of a snapshot came from: the layer that an unpacker filled it with."""

import json
from dataclasses import asdict, dataclass
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A layer in the content store of the snapshot's namespace.

    Attributes:
        media_type, digest, size_bytes: of the blob.
        diff_id: digest of what is in it, uncompressed.
    """

    media_type: str
    digest: str
    size_bytes: int
    diff_id: str

    def encode(self) -> str:
        """As the row has it."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Self:
        return cls(**json.loads(text))
