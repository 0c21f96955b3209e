"""hosts.toml, challenges, credentials and the texts of errors: no network."""

import asyncio
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.base.errdefs import InvalidArgumentError, NotFoundError, UnauthenticatedError
from orlop.base.references import Spec
from orlop.core.remotes.answers import cleaned, quoted_reason, shown_url
from orlop.core.remotes.challenges import Challenge, merge_scopes, parse_challenges
from orlop.core.remotes.credentials import AuthFile, Chain, Credentials, default_files, parse_user, run_helper
from orlop.core.remotes.hosts import (
    ALL_CAPABILITIES,
    Capability,
    Host,
    HostOptions,
    hosts_for,
    is_localhost,
    parse_duration,
    parse_hosts,
    require,
    web_address,
)
from orlop.core.remotes.pusher import append_source, mount_candidate


def addresses(hosts):
    return [f"{host.scheme}://{host.address}{host.path}" for host in hosts]


@pytest.mark.parametrize(
    ("namespace", "options", "url"),
    [
        ("docker.io", HostOptions(), "https://registry-1.docker.io/v2"),
        ("docker.io", HostOptions(plain_http=True), "https://registry-1.docker.io/v2"),
        ("ghcr.io", HostOptions(), "https://ghcr.io/v2"),
        ("ghcr.io:80", HostOptions(plain_http=True), "http://ghcr.io:80/v2"),
        ("localhost:5000", HostOptions(), "http://localhost:5000/v2"),
        ("localhost", HostOptions(), "https://localhost/v2"),
        ("localhost", HostOptions(plain_http=True), "http://localhost/v2"),
        ("127.0.0.1:443", HostOptions(), "https://127.0.0.1:443/v2"),
        ("[::1]:5000", HostOptions(), "http://[::1]:5000/v2"),
    ],
)
def test_without_configuration_the_registry_itself_is_asked(namespace, options, url):
    (host,) = hosts_for(namespace, options)
    assert addresses([host]) == [url]
    assert host.capabilities == ALL_CAPABILITIES
    assert not host.is_proxy


def test_localhost():
    assert [
        name for name in ("localhost:1", "127.1.2.3", "[::1]:9", "127.0.0.1.example", "example") if is_localhost(name)
    ] == [
        "localhost:1",
        "127.1.2.3",
        "[::1]:9",
    ]


def test_a_hosts_toml(tmp_path):
    text = """
server = "https://upstream.example"
skip_verify = true
[host."https://mirror.example"]
  capabilities = ["pull"]
  ca = "mirror.crt"
  client = [["a.cert", "a.key"], ["/b.pem", ""]]
  dial_timeout = "1m1.5s"
  proxy = "http://proxy:8080"
  [host."https://mirror.example".header]
    x-one = "1"
    x-two = ["2", "3"]
[host."http://other.example:8080/prefix/"]
[host."bare.example/v2"]
[host."https://odd.example/api"]
  override_path = true
"""
    hosts = parse_hosts("reg.example", text, "/d")
    assert addresses(hosts) == [
        "https://mirror.example/v2",
        "http://other.example:8080/prefix/v2",
        "https://bare.example/v2",
        "https://odd.example/api",
        "https://upstream.example/v2",
    ]
    mirror = hosts[0]
    assert mirror.capabilities == Capability.PULL
    assert mirror.tls.ca_files == ("/d/mirror.crt",)
    assert mirror.tls.client_pairs == (("/d/a.cert", "/d/a.key"), ("/b.pem", ""))
    assert (mirror.dial_timeout_s, mirror.proxy) == (61.5, "http://proxy:8080")
    assert mirror.headers == (("x-one", "1"), ("x-two", "2"), ("x-two", "3"))
    assert [host.upstream for host in hosts] == [False, False, False, False, True]
    assert mirror.is_proxy
    assert hosts[-1].tls.skip_verify
    assert require(hosts, Capability.PUSH, "push") == hosts[1:]
    with pytest.raises(NotFoundError, match="no push hosts"):
        require(hosts[:1], Capability.PUSH, "push")


@pytest.mark.parametrize(
    "text",
    ["server = 1", "=", 'host = "x"', '[host."ftp://x"]', '[host."https://u:p@x"]', '[host."https://x/../y"]']
    + [f'[host."https://x"]\n{line}' for line in ('capabilities = ["fly"]', "ca = 1", 'client = [["a"]]', "header = 1")]
    + [
        f'[host."https://x"]\n{line}' for line in ('skip_verify = "no"', 'dial_timeout = "1 s"', 'proxy = "socks5://x"')
    ],
)
def test_a_wrong_hosts_toml_is_an_error_that_names_it(tmp_path, text):
    (tmp_path / "reg.example").mkdir()
    (tmp_path / "reg.example" / "hosts.toml").write_text(text)
    with pytest.raises(InvalidArgumentError, match=r"registry configuration .*reg\.example/hosts\.toml: ") as caught:
        hosts_for("reg.example", HostOptions(hosts_dirs=(str(tmp_path),)))
    assert "u:p" not in str(caught.value)


def test_directories_are_found_by_host_and_port(tmp_path):
    options = HostOptions(hosts_dirs=("/nonexistent", str(tmp_path)))
    for name, server in [("_default", "d"), ("reg:5000", "colon"), ("reg_5000_", "underscore")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "hosts.toml").write_text(f'server = "https://{server}.example"')
        expected = {"reg:5000": "colon"} if name == "reg:5000" else {}
        assert hosts_for("reg:5000", options)[-1].address == f"{expected.get('reg:5000', server)}.example"
    assert hosts_for("other", options)[-1].address == "d.example"
    assert hosts_for("..", options)[-1].address == "d.example"


@pytest.mark.parametrize("namespace", ["reg:99999", "[1.2]x", "a@b", ""])
def test_what_is_no_address_is_refused(namespace):
    with pytest.raises(InvalidArgumentError, match="not the address of a server"):
        hosts_for(namespace, HostOptions())


@given(st.text(max_size=30))
def test_any_text_is_a_web_address_or_not(text):
    for url in (text, f"http://{text}", f"https://[{text}]:{text}/"):
        parts = web_address(url)
        assert parts is None or parts.hostname


def test_a_default_without_server_asks_the_registry_last(tmp_path):
    (tmp_path / "_default").mkdir()
    (tmp_path / "_default" / "hosts.toml").write_text('[host."https://mirror.example"]\ncapabilities = ["pull"]')
    hosts = hosts_for("reg.example", HostOptions(hosts_dirs=(str(tmp_path),)))
    assert addresses(hosts) == ["https://mirror.example/v2", "https://reg.example/v2"]


def test_dockers_certificates_are_found(tmp_path):
    place = tmp_path / "reg.example"
    place.mkdir()
    for name in ("a.crt", "b.cert", "b.key", "c.cert", "readme"):
        (place / name).touch()
    (host,) = hosts_for("reg.example", HostOptions(hosts_dirs=(str(tmp_path),)))
    assert host.tls.ca_files == (f"{place}/a.crt",)
    assert host.tls.client_pairs == ((f"{place}/b.cert", f"{place}/b.key"), (f"{place}/c.cert", ""))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("500ms", 0.5),
        ("1m30s", 90),
        ("0", 0),
        ("-1.5h", -5400),
        (".5s", 0.5),
        ("1", None),
        ("", None),
        ("s", None),
        ("1s1", None),
        ("1 s", None),
    ],
)
def test_durations(text, seconds):
    if seconds is None:
        with pytest.raises(ValueError, match="invalid duration"):
            parse_duration(text)
    else:
        assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        (
            'Bearer realm="https://a/token",service="s",scope="repository:a/b:pull,push"',
            [Challenge("bearer", {"realm": "https://a/token", "service": "s", "scope": "repository:a/b:pull,push"})],
        ),
        (
            'Negotiate, Basic realm=foo, BEARER Realm="x\\"y" , a=b',
            [
                Challenge("negotiate"),
                Challenge("basic", {"realm": "foo"}),
                Challenge("bearer", {"realm": 'x"y', "a": "b"}),
            ],
        ),
        ("", []),
        ('"', []),
        ('Basic realm="unterminated', [Challenge("basic")]),
    ],
)
def test_challenges(header, challenges):
    assert parse_challenges([header]) == challenges


@given(st.text(max_size=100))
def test_any_header_is_read(header):
    for challenge in parse_challenges([header]):
        assert challenge.scheme == challenge.scheme.lower()


def test_a_long_header_takes_no_time():
    parse_challenges(["Bearer " + 'a="\\' * 100_000, "x" * 1_000_000, ", " * 100_000])


def test_scopes_are_merged():
    given_ = (["repository:a:pull"], {"repository:a:push,pull", "nonsense", "registry:catalog:*"})
    assert merge_scopes(*given_) == ("registry:catalog:*", "repository:a:pull,push")


def host_of(address):
    return Host(namespace=address, scheme="https", address=address)


def lookup(path, address, repository="", **more):
    return asyncio.run(AuthFile(str(path), **more).lookup(host_of(address), repository))


@pytest.mark.parametrize(
    ("key", "address", "repository"),
    [
        ("reg.example", "reg.example", ""),
        ("https://reg.example/v1/", "reg.example", "a/b"),
        ("http://reg.example/v2", "reg.example", ""),
        ("https://index.docker.io/v1/", "registry-1.docker.io", "library/redis"),
        ("docker.io", "registry-1.docker.io", ""),
        ("reg.example/a", "reg.example", "a/b"),
        ("reg.example:5000", "reg.example:5000", ""),
    ],
)
def test_entries_of_auth_files(tmp_path, key, address, repository):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": {key: {"auth": "am9lOnNlOmNyZXQ="}, "else": {}}, "HttpHeaders": {}}))
    assert lookup(path, address, repository) == Credentials(username="joe", secret="se:cret", source=str(path))
    assert lookup(path, "other.example", repository) is None


def test_the_narrowest_entry_counts(tmp_path):
    path = tmp_path / "auth.json"
    entries = {"reg": {"auth": "YTph"}, "reg/a": {"auth": "Yjpi"}, "reg/a/b": {"auth": "Yzpj"}}
    path.write_text(json.dumps({"auths": entries}))
    found = [lookup(path, "reg", repository) for repository in ("x", "a/x", "a/b/c")]
    assert [one.username for one in found if one is not None] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"identitytoken": "t"}, Credentials(secret="t")),
        ({"registrytoken": "t"}, Credentials(bearer="t")),
        ({"username": "u", "password": "p"}, Credentials(username="u", secret="p")),
        ({"auth": "am9lOnNlY3JldAAA"}, Credentials(username="joe", secret="secret")),
        ({}, None),
    ],
)
def test_kinds_of_entries(tmp_path, entry, expected):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": {"reg": entry}}))
    found = lookup(path, "reg")
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (found.username, found.secret, found.bearer) == (expected.username, expected.secret, expected.bearer)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"auths":{"reg":{"auth":"secret-not-base64!"}}}', '{"auths":{"reg":{"auth":"YWI="}}}']
)
def test_a_broken_auth_file_is_named_and_not_quoted(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match=r"config\.json") as caught:
        lookup(path, "reg")
    assert "secret-not" not in str(caught.value)


def test_files_of_this_user_are_looked_through_in_order(tmp_path):
    environment = {
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "DOCKER_CONFIG": str(tmp_path / "d"),
    }
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.json").write_text('{"auths":{"reg":{"auth":"YTph"},"two":{"auth":"YTph"}}}')
    (tmp_path / ".config" / "containers").mkdir(parents=True)
    (tmp_path / ".config" / "containers" / "auth.json").write_text('{"auths":{"reg":{"auth":"Yjpi"}}}')
    chain = Chain(default_files(environment))
    found = [asyncio.run(chain.lookup(host_of(name), "")) for name in ("reg", "two", "three")]
    assert [one and one.username for one in found] == ["b", "a", None]


HELPER = """#!/bin/sh
read server
case "$server" in
  reg) echo '{"ServerURL":"reg","Username":"joe","Secret":"s"}' ;;
  token) echo '{"Username":"<token>","Secret":"t"}' ;;
  none) echo 'credentials not found in native keychain'; exit 1 ;;
  bad) echo 'it broke' >&2; exit 3 ;;
  *) echo nonsense ;;
esac
"""


@pytest.fixture
def helper_path(tmp_path):
    program = tmp_path / "docker-credential-tests"
    program.write_text(HELPER)
    program.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def test_helpers_are_asked(tmp_path, helper_path):
    path = tmp_path / "config.json"
    path.write_text('{"credHelpers":{"reg":"tests","none":"tests"},"credsStore":"","auths":{"none":{"auth":"YTph"}}}')
    found = lookup(path, "reg", helper_path=helper_path)
    assert found == Credentials(username="joe", secret="s", source="docker-credential-tests")
    fallen_back = lookup(path, "none", helper_path=helper_path)
    assert fallen_back is not None
    assert fallen_back.username == "a"
    token = asyncio.run(run_helper("tests", "token", search_path=helper_path))
    assert token is not None
    assert (token.username, token.secret) == ("", "t")


@pytest.mark.parametrize(
    ("server", "text"),
    [("bad", "docker-credential-tests for bad: exit status 3: it broke"), ("x", "the answer is no JSON")],
)
def test_a_helper_that_fails_is_named(helper_path, server, text):
    with pytest.raises(UnauthenticatedError, match=text):
        asyncio.run(run_helper("tests", server, search_path=helper_path))


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "a b", "-x"])
def test_a_helper_is_a_plain_name(name):
    with pytest.raises(InvalidArgumentError, match="not the name of a program"):
        asyncio.run(run_helper(name, "reg"))


def test_a_missing_helper_is_named():
    with pytest.raises(UnauthenticatedError, match="docker-credential-absent: No such file"):
        asyncio.run(run_helper("absent", "reg"))


def test_users():
    assert parse_user("a:b:c") == Credentials(username="a", secret="b:c", source="--user")
    assert parse_user("a", refresh="t") == Credentials(secret="t", source="--refresh")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"errors":[{"code":"DENIED","message":"no"},{"code":"X"},{"message":"y"}]}', "no (DENIED); X; y"),
        (b'{"errors":null,"message":"m"}', "m"),
        (b'{"error":"invalid_grant","error_description":"wrong"}', "invalid_grant: wrong"),
        (b'{"error":{"deep":1},"details":"d"}', "d"),
        (b"404 page not found\nmore", "404 page not found"),
        (b"<html>", ""),
        (b"[1]", ""),
        (b"", ""),
        (b"\x1b[31mred", "[31mred"),
        (b"\xff", "\ufffd"),
    ],
)
def test_reasons_are_quoted(body, reason):
    assert quoted_reason(body) == reason


@given(st.binary(max_size=300))
def test_any_reason_fits_a_line(body):
    reason = quoted_reason(body)
    assert "\n" not in reason
    assert "\x1b" not in reason


def test_secrets_of_urls_do_not_show():
    assert shown_url("https://u:p@h/x?sig=secret#f") == "https://h/x"
    assert cleaned("a\r\nb" + "c" * 400) == "a  b" + "c" * 296 + "…"


@pytest.mark.parametrize(
    ("known", "best"),
    [("", ""), ("a/b", ""), ("x/y,a/c", "a/c"), ("a/c,a/d", "a/d"), ("a/c,,x", "a/c"), ("x", "x")],
)
def test_mount_candidates(known, best):
    labels = {"containerd.io/distribution.source.reg.example": known}
    assert mount_candidate(Spec.parse("reg.example:5000/a/b:1"), labels) == best


def test_sources_are_noted_once():
    assert append_source("", "a/b") == "a/b"
    assert append_source("x,a/b", "a/b") == "a/b,x"
