"""The image-spec's documents: read tolerantly, bounded, and written compactly."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.base.errdefs import InvalidArgumentError
from orlop.base.platforms import Platform as BasePlatform
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import (
    MAX_MANIFEST_SIZE,
    Descriptor,
    Image,
    Index,
    Manifest,
    Platform,
    RootFS,
    decode_image,
    decode_index,
    decode_manifest,
    decode_shape,
    encode,
)

DIGEST = Digest.of(b"")
DESCRIPTOR = {"mediaType": "x", "digest": DIGEST, "size": 3}


def as_json(document):
    return json.dumps(document).encode()


def test_a_manifest_is_read_and_written():
    given_: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "artifactType": "a/b",
        "config": DESCRIPTOR,
    }
    given_ |= {"layers": [DESCRIPTOR | {"annotations": {"a": "b"}, "urls": ["http://x"], "data": "aGk="}]}
    given_ |= {"subject": DESCRIPTOR, "annotations": {"c": "d"}}
    manifest = decode_manifest(as_json(given_))
    assert manifest.layers[0].data == b"hi"
    assert manifest.subject == Descriptor(media_type="x", digest=DIGEST, size=3)
    assert json.loads(encode(manifest)) == given_


def test_an_index_is_read_and_written():
    platform = {"architecture": "arm", "os": "linux", "os.version": "1", "os.features": ["f"], "variant": "v7"}
    given_ = {"schemaVersion": 2, "manifests": [DESCRIPTOR | {"platform": platform}]}
    index = decode_index(as_json(given_))
    assert index.manifests[0].platform == Platform.of(
        BasePlatform(os="linux", architecture="arm", variant="v7", os_version="1", os_features=("f",))
    )
    assert json.loads(encode(index)) == given_
    assert encode(Index()) == b'{"schemaVersion":2,"manifests":[]}'


def test_what_is_unknown_is_passed_over_and_null_is_absent():
    data = as_json(
        {"config": DESCRIPTOR | {"annotations": None, "new": [1]}, "layers": None, "mediaType": None, "x": {}}
    )
    assert decode_manifest(data) == Manifest(config=Descriptor(media_type="x", digest=DIGEST, size=3))
    image = decode_image(
        as_json(
            {"created": None, "config": {"Env": None, "Cmd": ["a"], "Labels": None, "OnBuild": []}, "history": None}
        )
    )
    assert (image.config.env, image.config.cmd, dict(image.config.labels), image.history) == ((), ("a",), {}, ())
    assert decode_image(b'{"config":null,"rootfs":null}') == Image()


def test_an_image_config_is_read_and_written():
    given_: dict[str, Any] = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
    }
    given_ |= {"history": [{"created_by": "me", "empty_layer": True}], "created": "2024-01-01T00:00:00Z"}
    given_ |= {"config": {"User": "1", "ExposedPorts": {"80/tcp": {}}, "WorkingDir": "/w", "StopSignal": "SIGINT"}}
    image = decode_image(as_json(given_))
    assert image.platform == BasePlatform(os="linux", architecture="amd64")
    assert image.rootfs.diff_ids == (DIGEST,)
    assert json.loads(encode(image)) == given_


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "manifest"),
        (b"[]", "Expected `object`"),
        (b"{", "manifest"),
        (as_json({"layers": []}), "missing required field `config`"),
        (as_json({"config": DESCRIPTOR | {"size": -1}}), r">= 0 - at `\$\.config\.size`"),
        (as_json({"config": DESCRIPTOR | {"size": 1 << 63}}), "size"),
        (as_json({"config": DESCRIPTOR | {"digest": "sha256:x"}}), r"digest length .* at `\$\.config\.digest`"),
        (as_json({"config": DESCRIPTOR, "manifests": []}), "expected manifest but found index"),
        (as_json({"config": DESCRIPTOR, "mediaType": media_types.OCI_INDEX}), "expected manifest but found index"),
        (as_json({"config": DESCRIPTOR, "fsLayers": [1]}), "schema 1 not supported"),
        (b" " * (MAX_MANIFEST_SIZE + 1), "more than the allowed"),
        (b"[" * 100_000, "manifest"),
        (b'{"x":' * 50_000, "recursion"),
    ],
    ids=range(13),
)
def test_no_manifest(data, text):
    with pytest.raises(InvalidArgumentError, match=text):
        decode_manifest(data)


def test_an_index_that_is_a_manifest_is_refused():
    with pytest.raises(InvalidArgumentError, match="expected index but found manifest"):
        decode_index(as_json({"manifests": [], "layers": [DESCRIPTOR]}))


def test_a_document_that_looks_like_both_is_neither():
    shape = decode_shape(as_json({"manifests": [DESCRIPTOR], "config": DESCRIPTOR}))
    assert (shape.is_manifest, shape.is_index) == (True, True)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    for decode in (decode_manifest, decode_index, decode_image):
        try:
            decode(data)
        except InvalidArgumentError:
            continue


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(str(DIGEST)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "config",
                    "layers",
                    "manifests",
                    "mediaType",
                    "digest",
                    "size",
                    "annotations",
                    "rootfs",
                    "diff_ids",
                    "history",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_read_or_refused_and_what_is_read_can_be_written(document):
    for decode in (decode_manifest, decode_index, decode_image):
        try:
            found = decode(as_json(document))
        except InvalidArgumentError:
            continue
        assert decode(encode(found)) == found


def test_documents_are_written_the_same_each_time():
    one = Image(rootfs=RootFS(diff_ids=(DIGEST,)))
    assert encode(one) == encode(decode_image(encode(one)))
    ordered = Descriptor(media_type="x", digest=DIGEST, size=0, annotations={"b": "1", "a": "2"})
    assert encode(ordered).endswith(b'"annotations":{"a":"2","b":"1"}}')
