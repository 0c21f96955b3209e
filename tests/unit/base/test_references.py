"""References: containerd's Spec, and Docker's familiar names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.base.errdefs import InvalidArgumentError
from orlop.base.references import Named, Spec, is_tag, normalize

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "locator", "object_", "host"),
    [
        ("docker.io/library/redis:foo?fooo=asdf", "docker.io/library/redis", "foo", "docker.io"),
        (
            "docker.io/library/redis:foo@sha256:abcdef?fooo=asdf",
            "docker.io/library/redis",
            "foo@sha256:abcdef",
            "docker.io",
        ),
        ("docker.io/library/redis@sha256:abcdef", "docker.io/library/redis", "@sha256:abcdef", "docker.io"),
        ("docker.io/library/redis", "docker.io/library/redis", "", "docker.io"),
        ("localhost:5000/a/b:1", "localhost:5000/a/b", "1", "localhost:5000"),
        ("[::1]:5000/a:1", "[::1]:5000/a", "1", "[::1]:5000"),
        (
            "sub-dom1.foo.com/bar/baz/quux:some-long-tag",
            "sub-dom1.foo.com/bar/baz/quux",
            "some-long-tag",
            "sub-dom1.foo.com",
        ),
        ("host", "host", "", "host"),
        ("host//a/./b/:t", "host/a/b", "t", "host"),
        ("host/a%20b:1", "host/a b", "1", "host"),
        ("host/a:1#fragment", "host/a", "1", "host"),
        ("xn--n3h.com/myimage:xn--n3h.com", "xn--n3h.com/myimage", "xn--n3h.com", "xn--n3h.com"),
    ],
)
def test_spec(text, locator, object_, host):
    spec = Spec.parse(text)
    assert (spec.locator, spec.object, spec.hostname) == (locator, object_, host)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "hostname required"),
        ("/library/redis:1", "hostname required"),
        ("http://docker.io/x", "scheme"),
        (":tag", "invalid port"),
        ("host/../other/x:1", "in the path"),
        ("host/%2e%2e/x:1", "in the path"),
        ("host/a\n:1", "control character"),
        ("ho st/a:1", "invalid character"),
        ("host:port/a:1", "invalid port"),
        ("host/a%zz:1", "escape"),
        ("[::1/a:1", "missing"),
        ("[x]/a:1", "invalid host"),
        ("docker.io@sha256:abc", "invalid port"),
    ],
)
def test_no_spec(text, reason):
    with pytest.raises(InvalidArgumentError, match=reason):
        Spec.parse(text)


def test_parts_of_a_spec():
    spec = Spec.parse(f"host:5000/a/b:tag@{DIGEST}")
    assert (spec.repository, spec.tag, spec.digest, str(spec)) == ("a/b", "tag", DIGEST, f"host:5000/a/b:tag@{DIGEST}")
    assert str(Spec.parse(f"host/a@{DIGEST}")) == f"host/a@{DIGEST}"
    assert Spec.parse("host/a:1").digest == ""


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("redis", "docker.io/library/redis:latest"),
        ("redis:7", "docker.io/library/redis:7"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/redis", "docker.io/library/redis:latest"),
        ("index.docker.io/redis:1", "docker.io/library/redis:1"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("Example/app", "Example/app:latest"),
        ("ghcr.io/a/b/c:v1.0_x-y", "ghcr.io/a/b/c:v1.0_x-y"),
        ("[2001:db8::1]:5000/app", "[2001:db8::1]:5000/app:latest"),
        (f"redis@{DIGEST}", f"docker.io/library/redis@{DIGEST}"),
        (f"redis:7@{DIGEST}", f"docker.io/library/redis@{DIGEST}"),
        ("a__b/c--d.e_f", "docker.io/a__b/c--d.e_f:latest"),
    ],
)
def test_normalize(text, full):
    assert normalize(text) == full
    assert str(Spec.parse(full)) == full


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":tag",
        "Redis",
        "a/Redis",
        "-redis",
        "a//b",
        "a/",
        "/a",
        "a:tag:tag",
        "a:-x",
        "a:" + "t" * 129,
        "ab" * 32,
        "a@sha256:abc",
        "a@md5:" + "a" * 32,
        "a@sha256:" + "A" * 64,
        "a b",
        "http://a/b",
        "a/b@",
        "a..b",
        "a_-b/c/" * 40,
    ],
)
def test_not_normal(text):
    with pytest.raises(InvalidArgumentError):
        normalize(text)


def test_familiar():
    assert Named.parse("docker.io/library/redis:7").familiar == "redis:7"
    assert Named.parse("docker.io/user/app").familiar == "user/app"
    assert Named.parse("ghcr.io/a:1").familiar == "ghcr.io/a:1"
    assert Named.parse("redis").name == "docker.io/library/redis"
    assert is_tag("v1.0")
    assert not is_tag(".x")


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_refused(text):
    try:
        spec = Spec.parse(text)
    except InvalidArgumentError:
        pass
    else:
        assert spec.hostname
        assert ".." not in spec.locator.split("/")[1:]
    try:
        full = normalize(text)
    except InvalidArgumentError:
        return
    assert normalize(full) == full
    assert str(Spec.parse(full)) == full
