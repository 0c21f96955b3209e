"""Registries and token servers that lie, in many combinations: a pull gives the right bytes or an error.

Beside the registry stands a stranger's server, to which it may redirect; no credentials of the registry's may reach it.
"""

import asyncio
import os
from random import Random

import pytest

from orlop.base.errdefs import OrlopError
from orlop.core.remotes.credentials import Fixed, parse_user
from orlop.core.remotes.repository import Retry
from orlop.core.remotes.resolver import RegistryResolver
from orlop.oci.digest import Digest
from orlop.oci.image import decode_manifest
from orlop.testing.registry import Fault, Registry, TokenRules
from tests.hostile.doors import peak_kb
from tests.hostile.generators import text

COUNT = 400
SECRET = "s3cr3t-password"
LAYER = os.urandom(1 << 16) * 3
ANSWERS = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"token":1}',
    b'{"token":""}',
    b'{"token":"a\\u0000b"}',
    b'{"token":"a\\r\\nX-Evil: 1"}',
    b'{"token":"\xff"}',
    b'{"token":"x","expires_in":-1}',
    b'{"token":"x","expires_in":1e400}',
    b'{"access_token":{}}',
    b"[" * 100_000,
    b'{"token":"' + b"x" * 3_000_000 + b'"}',
]


def fault(rng: Random, stranger: str) -> Fault:
    """One lie, or several at once."""
    made = Fault(
        path=rng.choice(["", "/manifests/", "/blobs/", "/token", "/v2/"]),
        method=rng.choice(["", "", "GET", "HEAD", "POST"]),
        times=rng.choice([1, 1, 2, -1]),
    )
    for _ in range(rng.choice([1, 1, 2, 3])):
        shape = rng.randrange(11)
        if shape == 0:
            made.status = rng.choice([199 + 1, 204, 301, 400, 401, 403, 404, 416, 418, 429, 500, 503, 599])
            made.body = rng.choice([b"", b"x" * 100_000, b"\xff", b'{"errors":[{"code":1}]}', b"{" * 1000, b"<html>"])
            made.headers = rng.choice(
                [{}, {"Retry-After": text_header(rng)}, {"WWW-Authenticate": challenge(rng, stranger)}]
            )
        elif shape == 1:
            made.set_headers = {
                rng.choice(
                    ["Content-Type", "Docker-Content-Digest", "Content-Range", "WWW-Authenticate", "Content-Encoding"]
                ): (text_header(rng))
            }
        elif shape == 2:
            made.drop = True
        elif shape == 3:
            made.cut_after = rng.choice([0, 1, 1000])
        elif shape == 4:
            made.ignore_range = True
        elif shape == 5:
            made.wrong_range = True
        elif shape == 6:
            made.corrupt = True
        elif shape == 7:
            made.append = rng.choice([b"x", bytes(1 << 20)])
        elif shape == 8:
            made.endless = True
        else:
            made.redirect = rng.choice(
                [
                    f"http://{stranger}{{path}}",
                    f"http://user:pw@{stranger}/x",
                    "file:///etc/passwd",
                    "http://[",
                    "//x",
                    "{path}",
                    "",
                ]
            )
    return made


def text_header(rng: Random) -> str:
    return "".join(one for one in text(rng) if one.isprintable() and ord(one) < 127)[:500] or "x"


def challenge(rng: Random, stranger: str) -> str:
    return rng.choice(
        [
            f'Bearer realm="http://{stranger}/token",service="x",scope="repository:a:pull"',
            'Bearer realm="/relative"',
            'Basic realm="x"',
            'Bearer realm="',
            "Bearer",
            "Nonsense a=b",
            'Bearer realm="http://[",scope="' + "x" * 5000 + '"',
        ]
    )


def rules(rng: Random, stranger: str) -> TokenRules | None:
    if rng.random() < 0.4:
        return None
    return TokenRules(
        user=rng.choice(["", "user"]),
        password=SECRET,
        post=rng.random() < 0.5,
        realm=rng.choice(["", "", f"http://{stranger}/token", "nonsense"]),
        lifetime_s=rng.choice([None, 0, -5, 300, 10**12]),
        answer=rng.choice([None, None, *ANSWERS]),
    )


async def one(seed: int) -> str:
    """One hostile registry; what came of it."""
    rng, said = Random(f"registry {seed}"), ""
    async with Registry() as stranger:
        async with Registry(token=rules(rng, stranger.address)) as registry:
            registry.add_image("team/app", "1", [LAYER])
            for _ in range(rng.choice([0, 1, 1, 2])):
                registry.misbehave(fault(rng, stranger.address))
            stranger.misbehave(fault(rng, registry.address))
            credentials = Fixed(parse_user(f"user:{SECRET}"))
            resolver = RegistryResolver(retry=Retry(sleep=at_once), credentials=credentials)
            try:
                async with asyncio.timeout(30), resolver as remote:
                    name, target = await remote.resolve(f"{registry.address}/team/app:1")
                    fetcher = remote.fetcher(name)
                    blob = await fetcher.read(target)
                    assert Digest.of(blob) == target.digest
                    manifest = decode_manifest(blob)
                    for layer in manifest.layers:
                        async with fetcher.fetch(layer) as pieces:
                            whole = b"".join([piece async for piece in pieces])
                        assert Digest.of(whole) == layer.digest
                outcome = "right"
            except OrlopError as error:
                outcome = type(error).__name__
                said = str(error)
        assert SECRET not in said
        assert said.isprintable()
        told_to = [seen for seen in stranger.requests() if is_ours(seen.headers, seen.body)]
        # A token server elsewhere is where a realm may lead; anything else gets nothing.
        assert [seen.path for seen in told_to if not seen.path.startswith("/token")] == []
    return outcome


def is_ours(headers: object, body: bytes) -> bool:
    import base64

    basic = base64.b64encode(f"user:{SECRET}".encode()).decode()
    shown = f"{headers}{body!r}"
    return basic in shown or SECRET in shown or "Bearer token-" in shown


async def at_once(_seconds: float) -> None:
    await asyncio.sleep(0)


@pytest.mark.timeout(170)
def test_a_pull_from_a_hostile_registry_is_right_or_refused() -> None:
    before = peak_kb()
    outcomes = [asyncio.run(one(seed)) for seed in range(COUNT)]
    assert 0 < outcomes.count("right") < COUNT // 2
    assert peak_kb() - before < 200_000
