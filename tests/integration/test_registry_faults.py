"""The registry client against a registry on loopback that misbehaves on command."""

import asyncio
import contextlib
import hashlib
import ssl
import subprocess

import pytest

from orlop.base.errdefs import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    UnknownError,
)
from orlop.core.remotes import PushStatus
from orlop.core.remotes.credentials import AuthFile, Credentials, Fixed, parse_user
from orlop.core.remotes.hosts import HostOptions, Tls
from orlop.core.remotes.parts import Parts
from orlop.core.remotes.repository import Retry
from orlop.core.remotes.resolver import RegistryResolver
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor, Platform
from orlop.testing.registry import Fault, Registry, TokenRules, basic_header

LAYER = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(250)) * 500  # 4 MB
OTHER = b"another layer"


async def no_sleep(_seconds):
    await asyncio.sleep(0)


def resolver(**more):
    return RegistryResolver(retry=Retry(sleep=no_sleep), **more)


def run(scenario, **registry_arguments):
    async def with_registry():
        async with asyncio.timeout(60), Registry(**registry_arguments) as registry:
            return await scenario(registry)

    return asyncio.run(with_registry())


async def collect(fetcher, descriptor, **more):
    async with fetcher.fetch(descriptor, **more) as stream:
        return b"".join([piece async for piece in stream])


def ref(registry, name="team/app:1"):
    return f"{registry.address}/{name}"


def test_resolves_a_tag_and_a_digest_and_reads_what_is_there():
    async def scenario(registry):
        target = registry.add_image("team/app", "1", [LAYER])
        async with resolver() as remote:
            name, found = await remote.resolve(ref(registry))
            assert (name, found) == (ref(registry), target)
            assert (await remote.resolve(ref(registry, f"team/app@{target.digest}")))[1] == target
            layer = Descriptor(media_type=media_types.OCI_LAYER, digest=Digest.of(LAYER), size=len(LAYER))
            by_digest = await remote.resolve(ref(registry, f"team/app@{layer.digest}"))
            assert (by_digest[1].digest, by_digest[1].size) == (layer.digest, layer.size)
            fetcher = remote.fetcher(name)
            assert await fetcher.read(found) == registry.manifests["team/app", target.digest][1]
            assert await collect(fetcher, layer) == LAYER
            assert await collect(fetcher, layer, offset=1000) == LAYER[1000:]
            assert await collect(fetcher, layer, offset=len(LAYER)) == b""

    run(scenario)


@pytest.mark.parametrize("resumes", [{}, {"ignore_range": True}, {"wrong_range": True}])
def test_a_cut_body_goes_on_where_it_was_cut(resumes):
    async def scenario(registry):
        layer = registry.add_blob("team/app", LAYER)
        for cut in (1, 100_000, 2_000_000):
            registry.misbehave(Fault(path="/blobs/", cut_after=cut, **(resumes if cut > 1 else {})))
        registry.misbehave(Fault(path="/blobs/", times=1 if resumes else 0, **resumes))
        async with resolver() as remote:
            assert await collect(remote.fetcher(ref(registry)), layer) == LAYER
        assert any("range" in seen.headers for seen in registry.requests("GET", "/blobs/"))

    run(scenario)


PARTS = Parts(size=300_001, requests=4)


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [{"cut_after": 1000}, {"cut_after": 0}, {"status": 503}],
        [{"ignore_range": True}],
        [{}, {}, {"ignore_range": True}],
        [{"wrong_range": True}],
    ],
    ids=["well", "cut", "no ranges", "ranges for a while", "wrong ranges"],
)
def test_a_large_blob_comes_in_parts_and_in_order(faults):
    async def scenario(registry):
        layer = registry.add_blob("team/app", LAYER)
        for fault in faults:
            registry.misbehave(Fault(path="/blobs/", **fault))
        async with resolver() as remote:
            assert await collect(remote.fetcher(ref(registry), parts=PARTS), layer) == LAYER
            assert await collect(remote.fetcher(ref(registry), parts=PARTS), layer, offset=7) == LAYER[7:]
        ranges = [seen.headers["range"] for seen in registry.requests("GET", "/blobs/") if "range" in seen.headers]
        assert ranges[0] == "bytes=0-300000"
        assert f"bytes=3900020-{min(3900020 + 300_001, len(LAYER)) - 1}" in ranges

    run(scenario)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(path="/blobs/", corrupt=True, times=-1), FailedPreconditionError),
        (Fault(path="/blobs/", endless=True, times=-1), FailedPreconditionError),
        (Fault(path="/blobs/", cut_after=0, times=-1), UnavailableError),
        (Fault(path="/blobs/", status=404, times=-1), NotFoundError),
    ],
    ids=["corrupt", "endless", "cut", "missing"],
)
def test_parts_that_are_wrong_are_refused(fault, error):
    async def scenario(registry):
        layer = registry.add_blob("team/app", LAYER)
        registry.misbehave(fault)
        async with resolver() as remote:
            with pytest.raises(error):
                await collect(remote.fetcher(ref(registry), parts=PARTS), layer)

    run(scenario)


def test_a_body_that_is_always_cut_ends_with_an_error_that_says_where():
    async def scenario(registry):
        layer = registry.add_blob("team/app", LAYER)
        registry.misbehave(Fault(path="/blobs/", cut_after=0, times=-1))
        async with resolver() as remote:
            with pytest.raises(UnavailableError, match=rf"fetch {layer.digest}: registry .*at byte 0 of {len(LAYER)}"):
                await collect(remote.fetcher(ref(registry)), layer)
        assert len(registry.requests("GET", "/blobs/")) == Retry().attempts

    run(scenario)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault(path="/blobs/", corrupt=True), "unexpected digest"),
        (Fault(path="/blobs/", append=b"more"), f"offers {len(LAYER) + 4} bytes, expected {len(LAYER)}"),
        (Fault(path="/blobs/", endless=True), "more than the expected"),
        (Fault(path="/blobs/", set_headers={"Content-Type": "text/html"}), "page for browsers"),
    ],
    ids=["corrupt", "too long", "endless", "html"],
)
def test_a_lying_body_is_refused(fault, text):
    async def scenario(registry):
        layer = registry.add_blob("team/app", LAYER)
        registry.misbehave(fault)
        async with resolver() as remote:
            with pytest.raises(FailedPreconditionError, match=text):
                await collect(remote.fetcher(ref(registry)), layer)

    run(scenario)


def test_an_endless_body_of_the_right_beginning_is_read_no_further_than_expected():
    async def scenario(registry):
        layer = registry.add_blob("team/app", b"\0" * 65536 * 3)
        registry.misbehave(Fault(path="/blobs/", endless=True))
        async with resolver() as remote:
            with contextlib.suppress(FailedPreconditionError):  # where the pieces fall decides which of the two
                assert await collect(remote.fetcher(ref(registry)), layer) == b"\0" * 65536 * 3

    run(scenario)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again(status):
    async def scenario(registry):
        target = registry.add_image("team/app", "1", [])
        registry.misbehave(Fault(path="/manifests/", status=status, times=3, headers={"Retry-After": "1"}))
        async with resolver() as remote:
            assert (await remote.resolve(ref(registry)))[1] == target

    run(scenario)


def test_a_closed_connection_is_tried_again_and_then_told():
    async def scenario(registry):
        target = registry.add_image("team/app", "1", [])
        registry.misbehave(Fault(path="/manifests/", drop=True, times=2))
        async with resolver() as remote:
            assert (await remote.resolve(ref(registry)))[1] == target
            registry.misbehave(Fault(path="/manifests/", drop=True, times=-1))
            with pytest.raises(UnavailableError, match=r"resolve .*team/app:1: registry 127\.0\.0\.1:\d+, repository"):
                await remote.resolve(ref(registry))

    run(scenario)


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (400, InvalidArgumentError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (418, UnknownError),
        (429, UnavailableError),
        (451, PermissionDeniedError),
        (500, UnavailableError),
        (503, UnavailableError),
    ],
)
def test_each_status_has_its_class_and_tells_registry_phase_and_reason(status, cls):
    async def scenario(registry):
        layer = registry.add_blob("team/app", OTHER)
        body = b'{"errors":[{"code":"DENIED","message":"requested access is denied\\u001b[2J"}]}'
        registry.misbehave(Fault(path="/blobs/", status=status, body=body, times=-1))
        async with resolver() as remote:
            with pytest.raises(cls) as caught:
                await collect(remote.fetcher(ref(registry)), layer)
        text = str(caught.value)
        assert f"fetch {layer.digest}: registry {registry.address}, repository team/app: {status}" in text
        assert "requested access is denied" in text
        assert "(DENIED)" in text
        assert "\x1b" not in text

    run(scenario)


def test_a_registry_without_digest_header_has_its_manifest_read():
    async def scenario(registry):
        target = registry.add_image("team/app", "1", [])
        registry.misbehave(Fault(path="/manifests/", times=-1, set_headers={"Docker-Content-Digest": ""}))
        async with resolver() as remote:
            assert (await remote.resolve(ref(registry)))[1] == target

    run(scenario)


def test_a_content_type_that_says_nothing_is_looked_up_in_the_document():
    async def scenario(registry):
        target = registry.add_image("team/app", "1", [])
        registry.misbehave(Fault(path="/manifests/", times=-1, set_headers={"Content-Type": "application/json"}))
        async with resolver() as remote:
            assert (await remote.resolve(ref(registry)))[1] == target

    run(scenario)


@pytest.mark.parametrize(
    ("fault", "cls", "text"),
    [
        ({"set_headers": {"Docker-Content-Digest": "sha256:abc"}}, FailedPreconditionError, "in header"),
        (
            {"status": 200, "body": b"<html>", "headers": {"Content-Type": "text/html"}},
            FailedPreconditionError,
            "not a manifest",
        ),
        ({"append": b" " * (9 << 20)}, NotFoundError, "rejecting 9[0-9]* byte manifest"),
        ({"endless": True, "set_headers": {"Docker-Content-Digest": ""}}, NotFoundError, "rejecting manifest of more"),
    ],
    ids=["digest", "html", "huge", "endless"],
)
def test_a_lying_answer_to_resolve_is_refused(fault, cls, text):
    async def scenario(registry):
        registry.add_image("team/app", "1", [])
        if fault.get("endless"):
            registry.misbehave(Fault(method="HEAD", status=405))
        registry.misbehave(Fault(path="/manifests/", times=-1, **fault))
        async with resolver() as remote:
            with pytest.raises(cls, match=text):
                await remote.resolve(ref(registry))

    run(scenario)


def test_a_manifest_of_absurd_size_is_refused_before_anything_is_read():
    async def scenario(registry):
        absurd = Descriptor(media_type=media_types.OCI_MANIFEST, digest=Digest.of(b""), size=1 << 40)
        async with resolver() as remote:
            with pytest.raises(InvalidArgumentError, match="more than the allowed"):
                await remote.fetcher(ref(registry)).read(absurd)
        assert registry.seen == []

    run(scenario)


def test_an_index_served_as_a_manifest_is_refused():
    async def scenario(registry):
        target = registry.add_image("team/app", "1", [])
        registry.misbehave(Fault(path="/manifests/", set_headers={"Content-Type": media_types.OCI_INDEX}))
        async with resolver() as remote:
            with pytest.raises(FailedPreconditionError, match=f"sends {media_types.OCI_INDEX}".replace("+", r"\+")):
                await remote.fetcher(ref(registry)).read(target)

    run(scenario)


def test_a_redirect_elsewhere_takes_no_credentials_along():
    async def scenario(registry):
        layer = registry.add_blob("team/app", LAYER)
        async with Registry() as elsewhere, resolver(credentials=Fixed(parse_user("joe:secret"))) as remote:
            elsewhere.add_blob("team/app", LAYER)
            registry.misbehave(Fault(path="/blobs/", times=0))
            await collect(remote.fetcher(ref(registry)), layer)  # now the client has an authorization
            registry.misbehave(Fault(path="/blobs/", redirect=elsewhere.url + "{path}", times=-1))
            assert await collect(remote.fetcher(ref(registry)), layer) == LAYER
            assert registry.requests("GET")[-1].headers["authorization"] == basic_header("joe", "secret")
            assert len(elsewhere.seen) == 1
            assert "authorization" not in elsewhere.seen[0].headers

    run(scenario, basic=("joe", "secret"))


def test_a_challenge_behind_a_redirect_gets_no_credentials():
    async def scenario(registry):
        layer = registry.add_blob("team/app", LAYER)
        async with Registry(basic=("joe", "secret")) as elsewhere:
            registry.misbehave(Fault(path="/blobs/", redirect=elsewhere.url + "{path}", times=-1))
            async with resolver(credentials=Fixed(parse_user("joe:secret"))) as remote:
                with pytest.raises(UnauthenticatedError, match="redirected to"):
                    await collect(remote.fetcher(ref(registry)), layer)
            assert all("authorization" not in seen.headers for seen in elsewhere.seen)

    run(scenario)


def test_redirects_end():
    async def scenario(registry):
        layer = registry.add_blob("team/app", LAYER)
        registry.misbehave(Fault(path="/blobs/", redirect="{path}", times=-1))
        async with resolver() as remote:
            with pytest.raises(FailedPreconditionError, match="redirects"):
                await collect(remote.fetcher(ref(registry)), layer)

    run(scenario)


@pytest.mark.parametrize(
    "target",
    [
        "file:///etc/passwd",
        "ftp://example.com/",
        "http://user:pw@127.0.0.1:1/",
        "http://[",
        "http://x:99999/",
    ],
)
def test_a_redirect_to_no_web_address_is_refused(target):
    async def scenario(registry):
        layer = registry.add_blob("team/app", LAYER)
        registry.misbehave(Fault(path="/blobs/", redirect=target))
        async with resolver() as remote:
            with pytest.raises(FailedPreconditionError, match="redirect to") as caught:
                await collect(remote.fetcher(ref(registry)), layer)
        assert "pw" not in str(caught.value)

    run(scenario)


def test_basic_authorization():
    async def scenario(registry):
        target = registry.add_image("team/app", "1", [])
        async with resolver() as nobody:
            with pytest.raises(UnauthenticatedError, match="no basic auth credentials"):
                await nobody.resolve(ref(registry))
        async with resolver(credentials=Fixed(parse_user("joe:wrong"))) as stranger:
            with pytest.raises(UnauthenticatedError, match="credentials from --user refused") as caught:
                await stranger.resolve(ref(registry))
            assert "wrong" not in str(caught.value)
        async with resolver(credentials=Fixed(parse_user("joe:secret"))) as joe:
            assert (await joe.resolve(ref(registry)))[1] == target

    run(scenario, basic=("joe", "secret"))


@pytest.mark.parametrize(
    ("rules", "credentials"),
    [
        (TokenRules(), None),
        (TokenRules(user="joe", password="s3 c&ret", lifetime_s=None), parse_user("joe:s3 c&ret")),
        (TokenRules(user="joe", password="secret", post=False), parse_user("joe:secret")),
        (TokenRules(user="x", password="y", refresh_token="identity"), parse_user("", refresh="identity")),
    ],
    ids=["anonymous", "password by post", "password by get", "identity token"],
)
def test_tokens(rules, credentials):
    async def scenario(registry):
        target = registry.add_image("team/app", "1", [OTHER])
        async with resolver(credentials=Fixed(credentials) if credentials else None) as remote:
            name, found = await remote.resolve(ref(registry))
            assert found == target
            fetcher = remote.fetcher(name)
            await asyncio.gather(*(fetcher.read(found) for _ in range(5)))
            given = registry.requests(path="/token")
            assert len(given) == (2 if credentials and not rules.post else 1)
            pushed = Descriptor(media_type=media_types.OCI_LAYER, digest=Digest.of(LAYER), size=len(LAYER))
            result = await remote.pusher(name).push(pushed, pieces(LAYER))
            assert result.status is PushStatus.UPLOADED

    run(scenario, token=rules)


def test_a_token_that_has_lost_its_force_is_replaced():
    async def scenario(registry):
        target = registry.add_image("team/app", "1", [])
        async with resolver() as remote:
            await remote.resolve(ref(registry))
            registry.tokens.clear()
            registry.tokens["used"] = frozenset()  # so that the next token has another name
            assert (await remote.resolve(ref(registry)))[1] == target

    run(scenario, token=TokenRules())


def test_a_short_lived_token_is_fetched_anew():
    async def scenario(registry):
        registry.add_image("team/app", "1", [])
        async with resolver() as remote:
            await remote.resolve(ref(registry))
            await remote.resolve(ref(registry))
        assert len(registry.requests(path="/token")) == 2

    run(scenario, token=TokenRules(lifetime_s=0))


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        (TokenRules(user="joe", password="secret"), "token for resolve .*401 Unauthorized: incorrect username"),
        (TokenRules(answer=b"<html>"), "the answer is no token"),
        (TokenRules(answer=b"{}"), "has no token in it"),
        (TokenRules(answer=b" " * (2 << 20)), "bytes of token"),
        (TokenRules(realm="ftp://127.0.0.1/token"), "is no address"),
        (TokenRules(realm="http://[::"), "is no address"),
        (TokenRules(realm="http://127.0.0.1:1/token"), "token for resolve"),
    ],
    ids=["refused", "html", "empty", "huge", "realm", "no url", "down"],
)
def test_a_token_server_that_fails_is_named(rules, text):
    async def scenario(registry):
        registry.add_image("team/app", "1", [])
        async with resolver() as remote:
            with pytest.raises((UnauthenticatedError, FailedPreconditionError, UnavailableError), match=text):
                await remote.resolve(ref(registry))

    run(scenario, token=rules)


def test_a_token_server_cannot_send_the_password_elsewhere():
    async def scenario(registry):
        registry.add_image("team/app", "1", [])
        async with Registry() as elsewhere:
            registry.misbehave(Fault(path="/token", redirect=elsewhere.url + "{path}", times=-1))
            async with resolver(credentials=Fixed(parse_user("joe:secret"))) as remote:
                with pytest.raises(UnavailableError, match="not followed with secrets"):
                    await remote.resolve(ref(registry))
            assert elsewhere.seen == []

    run(scenario, token=TokenRules(user="joe", password="secret"))


def test_credentials_do_not_show():
    credentials = parse_user("joe:secret")
    assert "secret" not in repr(credentials)
    assert "secret" not in repr(Credentials(bearer="secret"))


def pieces(data, size=100_000):
    def source():
        async def give():
            for start in range(0, len(data), size):
                yield data[start : start + size]

        return give()

    return source


def test_push_puts_blobs_and_manifests_and_finds_them_there_again():
    async def scenario(registry):
        layer = Descriptor(media_type=media_types.OCI_LAYER, digest=Digest.of(LAYER), size=len(LAYER))
        manifest = b'{"schemaVersion":2}'
        target = Descriptor(media_type=media_types.OCI_MANIFEST, digest=Digest.of(manifest), size=len(manifest))
        async with resolver() as remote:
            pusher = remote.pusher(ref(registry))
            assert (await pusher.push(layer, pieces(LAYER))).status is PushStatus.UPLOADED
            assert (await pusher.push(layer, pieces(LAYER))).status is PushStatus.EXISTS
            assert (await pusher.push(target, pieces(manifest))).status is PushStatus.UPLOADED
            assert (await pusher.push(target, pieces(manifest))).status is PushStatus.EXISTS
        assert registry.blobs["team/app", layer.digest] == LAYER
        assert registry.tags["team/app", "1"] == target.digest
        put = registry.requests("PUT", "/blobs/")[0]
        assert put.headers["content-length"] == str(len(LAYER))
        assert "state=x" in put.path

    run(scenario)


def test_push_mounts_from_a_known_repository():
    async def scenario(registry):
        layer = registry.add_blob("team/base", LAYER)
        host = registry.address.partition(":")[0]
        labels = {f"containerd.io/distribution.source.{host}": "other/thing,team/base"}
        async with resolver() as remote:
            result = await remote.pusher(ref(registry)).push(layer, pieces(LAYER), labels=labels)
        assert (result.status, result.mounted_from) == (PushStatus.MOUNTED, f"{registry.address}/team/base")
        assert registry.requests("PUT") == []

    run(scenario, token=TokenRules())


def test_push_begins_anew_after_a_failure():
    async def scenario(registry):
        layer = Descriptor(media_type=media_types.OCI_LAYER, digest=Digest.of(LAYER), size=len(LAYER))
        registry.misbehave(Fault(method="PUT", status=500))
        registry.misbehave(Fault(method="PUT", drop=True))
        async with resolver() as remote:
            await remote.pusher(ref(registry)).push(layer, pieces(LAYER))
        assert registry.blobs["team/app", layer.digest] == LAYER
        assert len(registry.requests("POST")) >= 2  # aiohttp itself repeats a PUT on a connection that had been kept

    run(scenario)


@pytest.mark.parametrize("data", [LAYER[:-1], LAYER + b"x", LAYER[:-1] + b"x"], ids=["short", "long", "other"])
def test_push_refuses_local_content_that_is_not_what_it_says(data):
    async def scenario(registry):
        layer = Descriptor(media_type=media_types.OCI_LAYER, digest=Digest.of(LAYER), size=len(LAYER))
        async with resolver() as remote:
            with pytest.raises(FailedPreconditionError, match="local content"):
                await remote.pusher(ref(registry)).push(layer, pieces(data))
        assert registry.blobs == {}

    run(scenario)


def test_push_notices_that_something_else_was_stored():
    async def scenario(registry):
        layer = Descriptor(media_type=media_types.OCI_LAYER, digest=Digest.of(LAYER), size=len(LAYER))
        registry.misbehave(Fault(method="PUT", set_headers={"Docker-Content-Digest": Digest.of(b"")}))
        async with resolver() as remote:
            with pytest.raises(FailedPreconditionError, match="stored as"):
                await remote.pusher(ref(registry)).push(layer, pieces(LAYER))

    run(scenario)


def test_push_refuses_a_place_that_is_none():
    async def scenario(registry):
        layer = Descriptor(media_type=media_types.OCI_LAYER, digest=Digest.of(OTHER), size=len(OTHER))
        async with resolver() as remote:
            for place in ("http://[", "ftp://x/", "http://u:secret@x/"):
                registry.misbehave(Fault(method="POST", set_headers={"Location": place}))
                with pytest.raises(FailedPreconditionError, match="no place to upload to") as caught:
                    await remote.pusher(ref(registry)).push(layer, pieces(OTHER))
                assert "secret" not in str(caught.value)

    run(scenario)


def test_what_a_hostile_manifest_says_does_not_reach_the_headers():
    async def scenario(registry):
        layer = registry.add_blob("team/app", OTHER)
        evil = Descriptor(media_type="x\r\nEvil: 1", digest=layer.digest, size=layer.size)
        async with resolver() as remote:
            with pytest.raises(InvalidArgumentError):
                await collect(remote.fetcher(ref(registry)), evil)
        assert registry.seen == []

    run(scenario)


def test_push_uploads_to_another_origin_without_credentials():
    async def scenario(registry):
        layer = Descriptor(media_type=media_types.OCI_LAYER, digest=Digest.of(OTHER), size=len(OTHER))
        async with Registry() as elsewhere, resolver(credentials=Fixed(parse_user("joe:secret"))) as remote:
            place = f"{elsewhere.url}/v2/team/app/blobs/uploads/1"
            registry.misbehave(Fault(method="HEAD", times=1))
            registry.misbehave(Fault(method="POST", set_headers={"Location": place}))
            await remote.pusher(ref(registry)).push(layer, pieces(OTHER))
            assert elsewhere.blobs["team/app", layer.digest] == OTHER
            assert "authorization" not in elsewhere.seen[0].headers

    run(scenario, basic=("joe", "secret"))


def mirror_files(directory, registry, *, server, capabilities="pull"):
    place = directory / "registry.invalid"
    place.mkdir()
    (place / "hosts.toml").write_text(
        f'server = "{server}"\n[host."{registry.url}"]\ncapabilities = [{capabilities!r}]\n'
        f'[host."{registry.url}".header]\nx-own = "mine"\n'
    )
    return HostOptions(hosts_dirs=(str(directory),))


def test_a_mirror_serves_blobs_and_the_server_resolves(tmp_path):
    async def scenario(registry):
        async with Registry() as mirror:
            target = registry.add_image("team/app", "1", [LAYER])
            mirror.add_image("team/app", "1", [LAYER])
            hosts = mirror_files(tmp_path, mirror, server=registry.url)
            async with resolver(hosts=hosts, credentials=Fixed(parse_user("joe:secret"))) as remote:
                name, found = await remote.resolve("registry.invalid/team/app:1")
                assert found == target
                layer = Descriptor(media_type=media_types.OCI_LAYER, digest=Digest.of(LAYER), size=len(LAYER))
                assert await collect(remote.fetcher(name), layer) == LAYER
            assert registry.requests(path="/blobs/") == []
            seen = mirror.requests(path="/blobs/")[0]
            assert seen.path.endswith("?ns=registry.invalid")
            assert seen.headers["x-own"] == "mine"
            assert all("authorization" not in seen.headers for seen in mirror.seen)

    run(scenario)


def test_a_mirror_that_lacks_or_lies_is_passed_over(tmp_path):
    async def scenario(registry):
        async with Registry() as mirror:
            layer = registry.add_blob("team/app", LAYER)
            hosts = mirror_files(tmp_path, mirror, server=registry.url)
            async with resolver(hosts=hosts) as remote:
                assert await collect(remote.fetcher("registry.invalid/team/app:1"), layer) == LAYER
                mirror.add_blob("team/app", LAYER)
                mirror.misbehave(Fault(append=b"x", times=-1))
                assert await collect(remote.fetcher("registry.invalid/team/app:1"), layer) == LAYER
            assert len(mirror.requests(path="/blobs/")) == 2
            registry.blobs.clear()
            async with resolver(hosts=hosts) as remote:
                with pytest.raises(FailedPreconditionError, match="offers"):
                    await collect(remote.fetcher("registry.invalid/team/app:1"), layer)

    run(scenario)


def test_a_mirror_that_is_down_is_passed_over(tmp_path):
    async def scenario(registry):
        target = registry.add_image("team/app", "1", [])
        async with Registry() as gone:
            hosts = mirror_files(tmp_path, gone, server=registry.url, capabilities="resolve")
        async with resolver(hosts=hosts) as remote:
            assert (await remote.resolve("registry.invalid/team/app:1"))[1] == target

    run(scenario)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        (
            f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {key} -out {cert}"
            " -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
        ).split(),
        check=True,
        capture_output=True,
    )
    return cert, key


def server_context(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def test_tls_on_localhost_is_found_and_not_verified_unless_told(certificate):
    async def scenario(registry):
        target = registry.add_image("team/app", "1", [])
        async with resolver() as remote:
            assert (await remote.resolve(ref(registry)))[1] == target

    run(scenario, ssl_context=server_context(certificate))


def test_tls_is_verified_by_the_authority_that_hosts_toml_names(certificate, tmp_path):
    async def scenario(registry):
        registry.add_image("team/app", "1", [])
        place = tmp_path / "registry.invalid"
        place.mkdir()
        (place / "hosts.toml").write_text(f'server = "{registry.url}"\nca = "{certificate[0]}"\n')
        async with resolver(hosts=HostOptions(hosts_dirs=(str(tmp_path),))) as remote:
            await remote.resolve("registry.invalid/team/app:1")
        (place / "hosts.toml").write_text(f'server = "{registry.url}"\n')
        async with resolver(hosts=HostOptions(hosts_dirs=(str(tmp_path),))) as remote:
            with pytest.raises(UnavailableError, match="certificate not trusted: self-signed"):
                await remote.resolve("registry.invalid/team/app:1")
        skip = HostOptions(hosts_dirs=(str(tmp_path),), tls=Tls(skip_verify=True))
        async with resolver(hosts=skip) as remote:
            await remote.resolve("registry.invalid/team/app:1")

    run(scenario, ssl_context=server_context(certificate))


def test_credentials_of_a_file_and_of_its_helper(tmp_path):
    helper = tmp_path / "docker-credential-tests"
    helper.write_text(
        '#!/bin/sh\nread server\necho "{\\"Username\\":\\"joe\\",\\"Secret\\":\\"secret\\",\\"x\\":\\"$server\\"}"\n'
    )
    helper.chmod(0o755)

    async def scenario(registry):
        registry.add_image("team/app", "1", [])
        auths = tmp_path / "config.json"
        auths.write_text(f'{{"auths":{{"http://{registry.address}/v2/":{{"auth":"am9lOnNlY3JldA=="}}}}}}')
        async with resolver(credentials=AuthFile(str(auths))) as remote:
            await remote.resolve(ref(registry))
        auths.write_text('{"credsStore":"tests","auths":{}}')
        async with resolver(credentials=AuthFile(str(auths), helper_path=f"{tmp_path}:/usr/bin:/bin")) as remote:
            await remote.resolve(ref(registry))

    run(scenario, basic=("joe", "secret"))


def test_a_platform_is_chosen_from_an_index():
    from orlop.base import platforms
    from orlop.core.images import handlers as images

    async def scenario(registry):
        found = []
        for architecture in ("arm64", "amd64"):
            platform = Platform(os="linux", architecture=architecture)
            image = registry.add_image("team/app", None, [architecture.encode()], platform)
            found.append(
                Descriptor(media_type=image.media_type, digest=image.digest, size=image.size, platform=platform)
            )
        target = registry.add_index("team/app", "1", found)
        async with resolver() as remote:
            fetcher = remote.fetcher(ref(registry))
            matcher = platforms.only(platforms.parse("linux/amd64"))
            chosen = await images.manifest(fetcher, target, matcher)
            assert chosen.descriptor == found[1]
            assert (await images.image_config(fetcher, target, matcher)).architecture == "amd64"
            with pytest.raises(NotFoundError, match="no match for platform linux/s390x"):
                await images.manifest(fetcher, target, platforms.only(platforms.parse("linux/s390x")))
            assert [str(one) for one in await images.platforms(fetcher, target)] == ["linux/arm64", "linux/amd64"]

    run(scenario)
