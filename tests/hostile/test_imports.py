"""Archives of images that lie: imported or refused, in bounded memory, and no half-written blob is left."""

import gzip
import hashlib
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import orlop
from orlop.base.errdefs import InvalidArgumentError, OrlopError
from orlop.oci import media_types
from tests.hostile import generators
from tests.hostile.doors import peak_kb, unharmed
from tests.hostile.tarballs import archive, directory, hardlink, header, long_name, member, old_sparse, pax, symlink
from tools.daemons import Orlopd

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

CONFIG = b'{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}'
LAYOUT = member(b"oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
COUNT = 200
NO_IMAGE = 5  # all was read, and names none


@pytest.fixture(scope="module")
def shared(short_directory: Path) -> Iterator[Orlopd]:
    with Orlopd(short_directory / "imports") as running:
        yield running


@pytest.fixture
def client(shared: Orlopd) -> Iterator[orlop.Client]:
    with unharmed(shared), orlop.Client(str(shared.address), "hostile", timeout_s=60) as made:
        before = peak_kb()
        yield made
        assert peak_kb() - before < 120_000
        assert made.content.ingests() == []
        for image in made.images.list():
            image.delete()


def take(client: orlop.Client, blob: bytes) -> int:
    """Import; 0, or the error's code, which is one of those that say whose fault it is."""
    try:
        client.import_(io.BytesIO(blob))
    except OrlopError as error:
        refusal = error
    else:
        return 0
    assert refusal.code in (3, 5, 9), refusal
    assert str(refusal).isprintable()
    return refusal.code


def blob(data: bytes) -> bytes:
    return member(b"blobs/sha256/" + hashlib.sha256(data).hexdigest().encode(), data)


def descriptor(data: bytes, media_type: str) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def layout(*blobs: bytes, index: Any) -> bytes:
    return archive(LAYOUT, *map(blob, blobs), member(b"index.json", json.dumps(index).encode()))


def docker(manifest: bytes, *more: bytes) -> bytes:
    return archive(member(b"config.json", CONFIG), *more, member(b"manifest.json", manifest))


@pytest.mark.parametrize(
    "first",
    [
        header(b"x", b"x", size=b"07777777777"),
        header(b"g", b"g", size=b"07777777777"),
        header(b"L", b"L", size=b"07777777777", magic=b"ustar  \0"),
        header(b"K", b"K", size=b"07777777777", magic=b"ustar  \0"),
    ],
    ids=["pax", "global", "name", "link"],
)
def test_an_extended_header_of_a_gigabyte(client, first):
    with pytest.raises(InvalidArgumentError, match="extended header of 1073741823 bytes"):
        client.import_(io.BytesIO(gzip.compress(first + bytes(64 << 20), 1)))


def test_a_million_entries(client):
    with pytest.raises(InvalidArgumentError, match="more than 65536 entries"):
        client.import_(io.BytesIO(gzip.compress(b"".join(symlink(b"%d" % n, b"x") for n in range(70_000)), 1)))


def test_names_without_end(client):
    entries = (long_name(b"%d" % number + b"n" * 900_000) + symlink(b"x", b"y") for number in range(30))
    with pytest.raises(InvalidArgumentError, match="names of more than"):
        client.import_(io.BytesIO(gzip.compress(b"".join(entries), 1)))


def test_a_bomb_in_a_file_that_nobody_names_is_stored_as_it_comes(client):
    """16 MB of zeros out of 16 kB: written to disk in pieces, and let go with the import's lease."""
    bomb = gzip.compress(archive(member(b"zeros", bytes(16 << 20))), 1)
    assert take(client, bomb) == 3


def test_layers_and_names_without_end(client):
    layer = member(b"layer.tar", b"x")
    many = json.dumps([{"Config": "config.json", "Layers": ["layer.tar"] * 500_000}]).encode()
    begun = time.monotonic()
    assert take(client, docker(many, layer)) == 3
    tags = json.dumps([{"Config": "config.json", "RepoTags": [f"a:{n}" for n in range(50_000)], "Layers": []}]).encode()
    assert take(client, docker(tags)) == 3
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"[1]",
        b"[{}]",
        b'[{"Config":5}]',
        b'[{"Config":"none"}]',
        b'[{"Config":"../../etc/passwd"}]',
        b'[{"Config":"config.json","Layers":"layer.tar"}]',
        b'[{"Config":"config.json","Layers":[null]}]',
        b'[{"Config":"config.json","Layers":["../x"]}]',
        b'[{"Config":"config.json","RepoTags":["A B:C"],"Layers":[]}]',
        b'[{"Config":"config.json","RepoTags":["\\u0000"],"Layers":[]}]',
        b'[{"Config":"loop","Layers":[]}]',
        b'[{"Config":"layer.tar","Layers":[]}]',
        b"[" * 200_000,
        b"\xff",
    ],
    ids=lambda manifest: repr(manifest[:40]),
)
def test_a_manifest_of_docker_that_is_none(client, manifest):
    more = (member(b"layer.tar", b"\xff"), symlink(b"loop", b"loop2"), symlink(b"loop2", b"loop"))
    assert take(client, docker(manifest, *more)) != 0 or manifest == b"[]"


@pytest.mark.parametrize(
    "entry",
    [
        member(b"blobs/sha256/" + b"0" * 64, b"not its digest"),
        member(b"blobs/sha256/short", b"x"),
        member(b"blobs/md5/" + b"0" * 32, b"x"),
        member(b"blobs/../../x", b"x"),
        member(b"\xff\xfe", b"x"),
        member(b"n" * 99, b"x"),
        pax([(b"path", b"p" * 5000)]) + member(b"x", b"x"),
        old_sparse(b"s", [(0, 1)], b"x", real_size=1 << 40),
        hardlink(b"oci-layout", b"index.json"),
        directory(b"index.json"),
        member(b"index.json", b"x" * (9 << 20)),
        member(b"oci-layout", b"[]"),
        member(b"oci-layout", b'{"imageLayoutVersion":{}}'),
        member(b"oci-layout", b" " * (9 << 20)),
    ],
    ids=lambda entry: repr(entry[:30].strip(b"\0")),
)
def test_an_entry_that_is_not_what_its_name_says(client, entry):
    take(client, archive(LAYOUT, entry))
    take(client, archive(entry, LAYOUT, member(b"index.json", b'{"schemaVersion":2,"manifests":[]}')))


def test_a_bomb_behind_the_end(client):
    whole = layout(index={"schemaVersion": 2, "manifests": []})
    with pytest.raises(InvalidArgumentError, match="follow its end"):
        client.import_(io.BytesIO(gzip.compress(whole + bytes(32 << 20), 1)))
    assert take(client, gzip.compress(whole + bytes(10240))[:-4]) == 3
    assert take(client, gzip.compress(whole + bytes(10240))) == NO_IMAGE


def test_a_blob_that_is_there_already_and_another_behind_it(client):
    data = bytes(range(256)) * 20_000
    whole = layout(data, b"behind it", index={"schemaVersion": 2, "manifests": []})
    assert take(client, whole) == take(client, whole) == NO_IMAGE


def test_indexes_nested_without_end(client):
    data = b'{"schemaVersion":2,"manifests":[]}'
    blobs = []
    for _ in range(40):
        blobs.append(data)
        data = json.dumps({"schemaVersion": 2, "manifests": [descriptor(data, media_types.OCI_INDEX)]}).encode()
    assert take(client, layout(*blobs, index=json.loads(data))) == 3


def test_an_archive_cut_anywhere(client):
    whole = layout(CONFIG, index={"schemaVersion": 2, "manifests": [descriptor(CONFIG, media_types.OCI_MANIFEST)]})
    for end in range(0, len(whole) - 1024, 256):
        take(client, whole[:end])
    packed = gzip.compress(whole)
    for end in range(0, len(packed), 40):
        assert take(client, packed[:end]) == 3


def test_generated_archives(client):
    """Hostile tar around right documents, hostile documents in a right tar, and both."""
    outcomes = []
    for seed in range(COUNT):
        rng = Random(f"import {seed}")
        documents = [generators.GENERATORS[kind](rng) for kind in ("manifest", "index", "config")]
        parts = [
            LAYOUT,
            *map(blob, documents),
            member(b"index.json", documents[1]),
            member(b"manifest.json", documents[0]),
        ]
        if rng.random() < 0.5:
            parts.insert(rng.randrange(len(parts)), generators.member(rng))
        outcomes.append(take(client, archive(*rng.sample(parts, rng.randrange(2, len(parts) + 1)))))
    assert outcomes.count(3) > COUNT // 3
