"""Verifiers: who says whether an image may be pulled, when its name has been resolved and nothing fetched yet.

Source: containerd's pkg/imageverifier and docs/image-verification.md.
"""

from dataclasses import dataclass
from typing import Protocol

from orlop.oci.image import Descriptor


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict, and why."""

    ok: bool
    reason: str


class ImageVerifier(Protocol):
    """One verifier; all of them must agree."""

    async def verify(self, name: str, target: Descriptor) -> Judgement:
        """Judge an image. Raises OrlopError if there is no verdict, which blocks the pull too."""
        ...
