"""Pulls that must fail: unknown, lying, absurd or hostile; each with the right error, and nothing left behind."""

import asyncio
import gzip
import re
from pathlib import Path

import pytest

from orlop.base import errdefs
from orlop.base.errdefs import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OrlopError,
    UnavailableError,
)
from orlop.core.remotes.repository import Retry
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor, Manifest, Platform, encode
from orlop.testing.registry import Fault
from tests.hostile.tarballs import archive, hardlink, member, symlink
from tests.integration.bad_input.pulling import HERE, LAYER, NAME, image_of, pull, refuses

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.mark.parametrize(
    ("reference", "cls", "text"),
    [
        ("{here}/a/b:none", NotFoundError, r"resolve 127.*a/b:none.*404 Not Found"),
        ("{here}/none:1", NotFoundError, r"resolve 127.*none:1.*404 Not Found"),
        ("{here}/a/b@sha256:" + "0" * 64, NotFoundError, r"sha256:0000.*404 Not Found"),
        ("127.0.0.1:1/a/b:1", UnavailableError, r"127\.0\.0\.1:1.*(refused|[Cc]onnect)"),
        ("{here}/a/b", InvalidArgumentError, "object required"),
        ("a", InvalidArgumentError, "reference"),
        ("", InvalidArgumentError, "reference"),
        ("{here}/A B:1", NotFoundError, "404 Not Found"),
        ("{here}/a/b:1@sha256:short", InvalidArgumentError, "digest"),
        ("{here}/a/b:" + "t" * 10_000, OrlopError, "a/b"),
    ],
)
def test_an_unknown_reference(client, daemon, reference, cls, text):
    def scenario(registry):
        image_of(registry, LAYER)
        return reference

    with pytest.raises(cls, match=text):
        pull(daemon, scenario)


@pytest.mark.parametrize(
    ("fault", "cls", "text"),
    [
        (Fault(path="/manifests/", corrupt=True, times=-1), FailedPreconditionError, "unexpected digest"),
        (Fault(path="/blobs/", corrupt=True, times=-1), FailedPreconditionError, "unexpected digest"),
        (Fault(path="/blobs/", cut_after=100, times=-1), UnavailableError, r"fetch sha256.*at byte \d+ of"),
        (Fault(path="/blobs/", append=b"more", times=-1), FailedPreconditionError, r"offers \d+ bytes, expected"),
        (Fault(path="/blobs/", endless=True, times=-1), FailedPreconditionError, "expected"),
        (Fault(path="/blobs/", drop=True, times=-1), UnavailableError, "fetch sha256"),
        (Fault(path="/blobs/", status=404, times=-1), NotFoundError, "fetch sha256.*404 Not Found"),
        (Fault(path="/blobs/", status=403, times=-1), errdefs.PermissionDeniedError, "fetch sha256.*403 Forbidden"),
        (Fault(path="/blobs/", status=500, times=-1), UnavailableError, "fetch sha256.*500 Internal"),
        (Fault(path="/manifests/", endless=True, times=-1), OrlopError, "manifest|fetch|resolve"),
        (
            Fault(path="/manifests/", set_headers={"Docker-Content-Digest": "sha256:" + "0" * 64}, times=-1),
            OrlopError,
            "sha256:0000",
        ),
        (
            Fault(path="/manifests/", set_headers={"Docker-Content-Digest": "x"}, times=-1),
            FailedPreconditionError,
            "digest",
        ),
        (Fault(path="/blobs/", redirect="http://127.0.0.1:1{path}", times=-1), UnavailableError, r"127\.0\.0\.1:1"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, Fault) else "",
)
def test_a_registry_that_lies_or_stops(client, daemon, fault, cls, text, monkeypatch):
    async def at_once(_self, _attempt, _asked_s=0.0):
        await asyncio.sleep(0)

    monkeypatch.setattr(Retry, "wait", at_once)

    def scenario(registry):
        image_of(registry, LAYER)
        registry.misbehave(fault)
        return NAME

    with pytest.raises(cls, match=text):
        pull(daemon, scenario)


def test_a_manifest_of_absurd_size_by_its_header(client, daemon):
    def scenario(registry):
        registry.add_manifest("a/b", "1", b"{" + b" " * (9 << 20) + b"}")
        return NAME

    with pytest.raises(OrlopError, match=r"943\d+ byte|more than the allowed|943\d+ bytes"):
        pull(daemon, scenario)


@pytest.mark.parametrize("size", [(8 << 20) + 1, 1 << 40, (1 << 63) - 1])
@pytest.mark.parametrize("media_type", [media_types.OCI_MANIFEST, media_types.OCI_INDEX])
def test_a_manifest_of_absurd_size_by_its_descriptor(client, daemon, size, media_type):
    def scenario(registry):
        child = Descriptor(media_type=media_type, digest=Digest.of(b"x"), size=size, platform=HERE)
        registry.add_index("a/b", "1", [child])
        registry.misbehave(Fault(path=child.digest, endless=True, times=-1))
        return NAME

    with refuses(InvalidArgumentError, rf"{Digest.of(b'x')}.*{size} bytes"):
        pull(daemon, scenario)


def test_a_config_of_absurd_size(client, daemon):
    config = b'{"os":"linux","architecture":"amd64","x":"' + b"y" * (9 << 20) + b'"}'

    def scenario(registry):
        manifest = Manifest(
            media_type=media_types.OCI_MANIFEST,
            config=registry.add_blob("a/b", config, media_types.OCI_CONFIG),
            layers=(registry.add_blob("a/b", LAYER),),
        )
        registry.add_manifest("a/b", "1", encode(manifest))
        return NAME

    with refuses(InvalidArgumentError, rf"{Digest.of(config)}.*{len(config)} bytes"):
        pull(daemon, scenario)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'"text"',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"schemaVersion":2,"config":{},"layers":[]}',
        b'{"schemaVersion":2,"config":{"digest":"sha256:x","size":1},"layers":[]}',
        b'{"schemaVersion":2,"config":{"digest":"../../etc","size":1},"layers":[]}',
        b'{"schemaVersion":2,"layers":[]}',
        b'{"schemaVersion":2,"manifests":[]}',
        b"\xff\xfe{}",
    ],
    ids=lambda document: repr(document[:30]),
)
def test_a_manifest_that_is_none(client, daemon, document):
    def scenario(registry):
        registry.add_manifest("a/b", "1", document)
        return NAME

    with pytest.raises((InvalidArgumentError, FailedPreconditionError, NotFoundError), match=r"manifest|index"):
        pull(daemon, scenario)


def test_an_image_for_another_platform(client, daemon):
    def scenario(registry):
        other = registry.add_image("a/b", None, [LAYER], Platform(os="linux", architecture="s390x"))
        other = Descriptor(
            media_type=other.media_type,
            digest=other.digest,
            size=other.size,
            platform=Platform(os="linux", architecture="s390x"),
        )
        registry.add_index("a/b", "1", [other])
        return NAME

    with refuses(NotFoundError, "no (manifest|match) for platform"):
        pull(daemon, scenario)


def test_indexes_nested_without_end(client, daemon):
    def scenario(registry):
        below = image_of(registry, LAYER)
        for _ in range(40):
            below = registry.add_index("a/b", "1", [below])
        return NAME

    with refuses(InvalidArgumentError, "indexes deep"):
        pull(daemon, scenario)


def test_a_layer_whose_content_is_not_what_its_image_says(client, daemon):
    def scenario(registry):
        image_of(registry, LAYER, diff_ids=(Digest.of(b"other"),))
        return NAME

    with refuses(FailedPreconditionError, rf"unpack layer {Digest.of(LAYER)}: its content is"):
        pull(daemon, scenario)


def test_layers_and_diff_ids_of_different_number(client, daemon):
    def scenario(registry):
        image_of(registry, LAYER, diff_ids=(Digest.of(LAYER), Digest.of(LAYER)))
        return NAME

    with refuses(FailedPreconditionError, "1 layers and its configuration 2 diff ids"):
        pull(daemon, scenario)


def test_a_layer_of_an_unknown_type(client, daemon):
    def scenario(registry):
        image_of(registry, LAYER, layer_type="application/vnd.oci.image.layer.v1.tar+nonsense")
        return NAME

    with refuses(errdefs.UnknownError, "nonsense"):
        pull(daemon, scenario)


OUT = {
    "a hard link out": (archive(hardlink(b"l", b"../../../../etc/passwd")), 'links to "../../../../etc/passwd"'),
    "a hard link through a link out": (archive(symlink(b"d", b"/etc"), hardlink(b"l", b"d/passwd")), "does not exist"),
    "a whiteout of what is above": (archive(member(b".wh...")), "no valid name"),
    "a cut archive": (archive(member(b"f", bytes(5000)))[:3000], "ends in the middle"),
    "a cut stream": (gzip.compress(LAYER)[:-20], "ends too early"),
    "no archive": (b"this is no archive".ljust(1024), "checksum"),
    "a bomb of entries": (archive(member(b"f", size=b"77777777777")), "ends in the middle"),
}


@pytest.mark.parametrize("attack", OUT)
def test_an_archive_that_wants_out_or_is_none(client, daemon, attack):
    layer, text = OUT[attack]

    def scenario(registry):
        image_of(registry, layer)
        return NAME

    with refuses(InvalidArgumentError, rf"layer {Digest.of(layer)}: extract.*{re.escape(text)}"):
        pull(daemon, scenario)
    assert not Path("/l").exists()


def test_an_archive_that_climbs_stays_in_its_snapshot(client, daemon):
    layer = archive(
        member(b"../../../../../../../../tmp/orlop-climbed", b"x"),
        symlink(b"d", b"/etc"),
        member(b"d/orlop-climbed"),
    )

    def scenario(registry):
        image_of(registry, layer)
        return NAME

    pull(daemon, scenario)
    assert not Path("/tmp/orlop-climbed").exists()
    assert not Path("/etc/orlop-climbed").exists()
    for image in client.images.list():
        if image.name.startswith("127.0.0.1"):
            image.delete(synchronous=True)
