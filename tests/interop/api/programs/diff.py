"""Diff: what cannot be applied; layers that can are compared elsewhere, byte by byte."""

from typing import Any, Final

from tests.interop.api.steps import NONE, Program, Step, blob, call, digest

LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
EMPTY_TAR: Final = bytes(10240)


def _apply(media: str, data: bytes, **fields: Any) -> Step:
    return call(
        "Diff.Apply", diff={"media_type": media, "digest": digest(data), "size": len(data)}, note=media, **fields
    )


PROGRAMS: Final = [
    Program(
        "diff: what cannot be applied",
        [
            call("Diff.Apply", diff={"media_type": LAYER, "digest": NONE, "size": 1}),
            call("Diff.Apply", diff={"media_type": LAYER, "digest": "nonsense", "size": 1}),
            blob(EMPTY_TAR),
            _apply("text/plain", EMPTY_TAR),
        ],
    ),
]
