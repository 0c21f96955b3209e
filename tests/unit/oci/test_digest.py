"""Digests, verification while reading, ChainIDs, media types."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.base.errdefs import FailedPreconditionError, InvalidArgumentError, UnimplementedError
from orlop.oci import media_types as mt
from orlop.oci.chain import chain_id, chain_ids
from orlop.oci.digest import EMPTY_SHA256, Digest, Verifier, new_hash


def test_a_digest_is_a_text_with_parts():
    digest = Digest.of(b"")
    assert digest == EMPTY_SHA256 == f"sha256:{hashlib.sha256(b'').hexdigest()}"
    assert (digest.algorithm, digest.hex[:8]) == ("sha256", "e3b0c442")
    assert Digest.parse(str(digest)) == digest
    assert Digest.of(b"x", "sha512").matches(b"x")
    assert not Digest.of(b"x", "sha384").matches(b"y")
    assert Digest.of_hash(new_hash("sha256", [b"a", b"b"])) == Digest.of(b"ab")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "format"),
        ("sha256", "format"),
        ("sha256:", "format"),
        ("sha256:zz", "length"),
        ("md5:" + "a" * 32, "unsupported digest algorithm"),
        ("sha256:" + "A" * 64, "format"),
        ("sha256:" + "a" * 63, "length"),
        ("sha256:" + "a" * 63 + "\n", "format"),
        ("sha256:" + "a" * 64 + "\n", "length"),
        ("sha256:../" + "a" * 61, "format"),
        ("SHA256:" + "a" * 64, "format"),
        ("a" * 100_000, "format"),
    ],
)
def test_no_digest(text, reason):
    with pytest.raises(InvalidArgumentError, match=reason) as caught:
        Digest.parse(text)
    assert len(str(caught.value)) < 400


@given(st.text(max_size=80))
def test_what_parses_can_be_a_path(text):
    try:
        digest = Digest.parse(text)
    except InvalidArgumentError:
        return
    assert "/" not in digest


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([b"ab", b"cd"], "more than the expected 3 bytes"),
        ([b"ab"], "unexpected size 2"),
        ([b"abd"], "unexpected digest"),
    ],
)
def test_a_verifier_refuses(pieces, text):
    verifier = Verifier(Digest.of(b"abc"), size=3, what="layer")

    def feed():
        for piece in pieces:
            verifier.update(piece)
        verifier.finish()

    with pytest.raises(FailedPreconditionError, match=f"layer: .*{text}"):
        feed()


def test_a_verifier_accepts():
    verifier = Verifier(Digest.of(b"abc"), size=3)
    verifier.update(b"a")
    verifier.update(memoryview(b"bc"))
    verifier.finish()
    assert verifier.seen == 3


def test_chain_ids_are_those_of_the_spec():
    first, second, third = (Digest.of(text) for text in (b"1", b"2", b"3"))
    two = Digest.of(f"{first} {second}".encode())
    assert chain_ids([first, second, third]) == [first, two, Digest.of(f"{two} {third}".encode())]
    assert chain_id([first]) == first
    with pytest.raises(InvalidArgumentError):
        chain_id([])


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        (mt.OCI_LAYER, mt.Compression.NONE),
        (mt.OCI_LAYER_GZIP, mt.Compression.GZIP),
        (mt.OCI_LAYER_ZSTD, mt.Compression.ZSTD),
        (mt.OCI_LAYER_GZIP + "+encrypted", mt.Compression.GZIP),
        (mt.OCI_LAYER_NONDISTRIBUTABLE_GZIP, mt.Compression.GZIP),
        (mt.DOCKER_LAYER, mt.Compression.UNKNOWN),
        (mt.DOCKER_LAYER_FOREIGN, mt.Compression.UNKNOWN),
        (mt.DOCKER_LAYER_GZIP, mt.Compression.GZIP),
        (mt.DOCKER_LAYER_GZIP + "+encrypted", mt.Compression.NONE),
        (mt.DOCKER_LAYER_ZSTD, mt.Compression.ZSTD),
    ],
)
def test_compression_of_layers(media_type, compression):
    assert mt.is_layer(media_type)
    assert mt.layer_compression(media_type) is compression


def test_kinds():
    assert [kind for kind in (mt.OCI_MANIFEST, mt.DOCKER_MANIFEST, mt.OCI_INDEX) if mt.is_manifest(kind)] == [
        mt.OCI_MANIFEST,
        mt.DOCKER_MANIFEST,
    ]
    assert mt.is_index(mt.DOCKER_MANIFEST_LIST)
    assert mt.is_config(mt.DOCKER_CONFIG)
    assert not mt.is_config(mt.CHECKPOINT_CONFIG)
    assert mt.is_known_config(mt.CHECKPOINT_CONFIG)
    assert mt.is_nondistributable(mt.DOCKER_LAYER_FOREIGN_GZIP)
    assert not mt.is_nondistributable(mt.DOCKER_LAYER_GZIP)
    assert mt.is_layer(mt.EROFS_LAYER + "+zstd")
    assert mt.is_childless(mt.OCI_CONFIG)
    assert not mt.is_childless(mt.OCI_INDEX)
    with pytest.raises(UnimplementedError, match="unrecognised mediatype"):
        mt.layer_compression(mt.OCI_CONFIG)
