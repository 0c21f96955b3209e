"""Layers compressed otherwise, and documents in other words."""

import gzip
import hashlib
import json
from collections.abc import Callable

import pytest
from backports import zstd
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from orlop.base.errdefs import DataLossError, InvalidArgumentError
from orlop.core.diff.stream import Compression, detect
from orlop.core.images import conversion
from orlop.oci import media_types

FORMS: dict[Compression, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    Compression.NONE: (bytes, bytes),
    Compression.GZIP: (lambda data: gzip.compress(data, mtime=0), gzip.decompress),
    Compression.ZSTD: (zstd.compress, zstd.decompress),
}


def recode(blob: bytes, compression: Compression, step: int = 1 << 16) -> tuple[bytes, conversion.Recoder]:
    recoder = conversion.Recoder(compression)
    out = bytearray()
    for start in range(0, len(blob), step):
        for piece in recoder.feed(blob[start : start + step]):
            out += piece
    for piece in recoder.finish():
        out += piece
    return bytes(out), recoder


@settings(deadline=None, max_examples=60)
@given(
    data=st.binary(max_size=5000),
    source=st.sampled_from(list(Compression)),
    target=st.sampled_from(list(Compression)),
    step=st.integers(min_value=1, max_value=997),
)
def test_the_tar_stays_the_same_in_any_pieces(data: bytes, source: Compression, target: Compression, step: int) -> None:
    blob = FORMS[source][0](data)
    assume(len(blob) < 4 or detect(blob) is source)  # a tar that begins like a gzip stream would be taken for one
    new, recoder = recode(blob, target, step)
    assert FORMS[target][1](new) == data
    assert recoder.diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert recoder.digest == f"sha256:{hashlib.sha256(new).hexdigest()}"
    assert recoder.size == len(new)


@pytest.mark.parametrize("step", [1, 7, 1 << 16])
def test_members_frames_and_padding(step: int) -> None:
    members = gzip.compress(b"one") + gzip.compress(b"two")
    assert recode(members, Compression.NONE, step)[0] == b"onetwo"
    assert recode(members + bytes(1000), Compression.NONE, step)[0] == b"onetwo"
    frames = zstd.compress(b"one") + zstd.compress(b"two")
    assert recode(frames, Compression.NONE, step)[0] == b"onetwo"


@pytest.mark.parametrize("step", [1, 1 << 16])
def test_damage_is_told(step: int) -> None:
    blob = gzip.compress(bytes(range(256)) * 20)
    with pytest.raises(DataLossError, match="too early"):
        recode(blob[:-1], Compression.ZSTD, step)
    with pytest.raises(DataLossError, match="damaged"):
        recode(blob[:20] + b"\xff" * 30 + blob[50:], Compression.NONE, step)
    with pytest.raises(DataLossError, match="padding"):
        recode(blob + bytes(10) + b"x", Compression.NONE, step)


def test_a_bomb_comes_in_bounded_pieces() -> None:
    bomb = gzip.compress(bytes(50 << 20))
    recoder = conversion.Recoder(Compression.NONE)
    assert max(len(piece) for piece in recoder.feed(bomb)) <= 1 << 20
    assert recoder.size == 50 << 20


def test_types_both_ways() -> None:
    for docker, oci in (
        (media_types.DOCKER_MANIFEST, media_types.OCI_MANIFEST),
        (media_types.DOCKER_MANIFEST_LIST, media_types.OCI_INDEX),
        (media_types.DOCKER_LAYER_FOREIGN_GZIP, media_types.OCI_LAYER_NONDISTRIBUTABLE_GZIP),
    ):
        assert conversion.oci_type(docker) == oci
        assert conversion.docker_type(oci) == docker
        assert conversion.oci_type(oci) == oci
    with pytest.raises(InvalidArgumentError, match="no counterpart"):
        conversion.docker_type(media_types.OCI_LAYER_NONDISTRIBUTABLE_ZSTD)
    assert conversion.layer_type(media_types.DOCKER_LAYER_GZIP, Compression.NONE) == media_types.DOCKER_LAYER
    assert conversion.layer_type(media_types.OCI_LAYER_ZSTD, Compression.GZIP) == media_types.OCI_LAYER_GZIP
    assert not conversion.is_tar_layer(media_types.OCI_LAYER_GZIP + "+encrypted")
    assert not conversion.is_tar_layer(media_types.EROFS_LAYER)


def test_documents_keep_what_we_do_not_know() -> None:
    blob = (
        b'{"x-ours":{"a":[1,2]},"layers":[],"mediaType":"m","config":{"size":1,"x":2,"digest":"d"},"schemaVersion":2}'
    )
    written = conversion.write_document(conversion.read_document(blob, "it"))
    assert json.loads(written) == json.loads(blob)
    assert written.startswith(b'{"schemaVersion":2,"mediaType":"m","config":{"digest":"d","size":1,"x":2},"layers":[]')
    assert conversion.write_document({"annotations": {"a": "<&>"}}) == b'{"annotations":{"a":"\\u003c\\u0026\\u003e"}}'
    for bad in (b"[]", b"{", b"\xff"):
        with pytest.raises(InvalidArgumentError):
            conversion.read_document(bad, "it")
