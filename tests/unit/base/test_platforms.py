"""Platforms: read, normalised, written and matched as github.com/containerd/platforms does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.base import platforms
from orlop.base.errdefs import InvalidArgumentError
from orlop.base.platforms import Platform, amd64_level, only, only_strict, parse


def linux(architecture, variant=""):
    return Platform(os="linux", architecture=architecture, variant=variant)


@pytest.fixture
def amd64_host(monkeypatch):
    monkeypatch.setattr(platforms, "_host_architecture", lambda: "amd64")


@pytest.mark.parametrize(
    ("specifier", "platform", "formatted"),
    [
        ("linux/arm64", linux("arm64"), "linux/arm64"),
        ("linux/arm64/v8", linux("arm64", "v8"), "linux/arm64/v8"),
        ("linux/aarch64", linux("arm64"), "linux/arm64"),
        ("linux/arm", linux("arm"), "linux/arm"),
        ("linux/arm/v7", linux("arm", "v7"), "linux/arm/v7"),
        ("linux/armhf", linux("arm"), "linux/arm"),
        ("linux/armel", linux("arm", "v6"), "linux/arm/v6"),
        ("linux/x86_64", linux("amd64"), "linux/amd64"),
        ("linux/amd64/v1", linux("amd64"), "linux/amd64"),
        ("linux/amd64/v3", linux("amd64", "v3"), "linux/amd64/v3"),
        ("linux/i386", linux("386"), "linux/386"),
        ("macOS/amd64", Platform(os="darwin", architecture="amd64"), "darwin/amd64"),
        ("windows", Platform(os="windows", architecture="amd64"), "windows/amd64"),
        ("linux", linux("amd64"), "linux/amd64"),
        ("s390x", linux("s390x"), "linux/s390x"),
        ("arm64", linux("arm64"), "linux/arm64"),
        ("linux/&", None, 'is an invalid component of "linux/&"'),
        ("li&nux", None, "is an invalid OS component"),
        ("", None, "is an invalid OS component"),
        ("nope", None, "unknown operating system or architecture"),
        ("*/amd64", None, "wildcards not yet supported"),
        ("a/b/c/d", None, "cannot parse platform specifier"),
        ("a/b/c/d/e", None, "is an invalid component"),
    ],
)
@pytest.mark.usefixtures("amd64_host")
def test_parse(specifier, platform, formatted):
    if platform is None:
        with pytest.raises(InvalidArgumentError, match=formatted):
            parse(specifier)
    else:
        assert parse(specifier) == platform
        assert platforms.format_platform(platform) == formatted


def test_versions_and_features_of_the_system():
    windows = parse("windows(10.0.17763+win32k)/amd64")
    assert (windows.os_version, windows.os_features) == ("10.0.17763", ("win32k",))
    assert platforms.format_all(windows) == "windows(10.0.17763+win32k)/amd64"
    assert platforms.format_platform(windows) == "windows/amd64"
    odd = Platform(os="linux", architecture="amd64", os_version="a+b(%)/", os_features=("z", "y"))
    assert parse(platforms.format_all(odd)) == Platform(
        os="linux", architecture="amd64", os_version="a+b(%)/", os_features=("y", "z")
    )
    assert platforms.format_platform(Platform()) == "unknown"
    with pytest.raises(InvalidArgumentError, match="URL escape"):
        parse("linux(%zz)/amd64")


@pytest.mark.parametrize(
    ("wanted", "offers"),
    [
        ("linux/amd64", ["linux/amd64", "linux/386"]),
        ("linux/amd64/v3", ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"]),
        ("linux/arm/v7", ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
        ("linux/arm", ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
        ("linux/arm/v6", ["linux/arm/v6", "linux/arm/v5"]),
        ("linux/arm/v5", ["linux/arm/v5"]),
        ("linux/arm64", ["linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
        (
            "linux/arm64/v9.1",
            [
                "linux/arm64/v9.1",
                "linux/arm64/v9",
                "linux/arm64/v8.6",
                "linux/arm64/v8.5",
                "linux/arm64/v8.4",
                "linux/arm64/v8.3",
                "linux/arm64/v8.2",
                "linux/arm64/v8.1",
                "linux/arm64",
                "linux/arm/v8",
                "linux/arm/v7",
                "linux/arm/v6",
                "linux/arm/v5",
            ],
        ),
        ("linux/s390x", ["linux/s390x"]),
    ],
)
def test_only_takes_what_runs_there_in_order(wanted, offers):
    matcher = only(parse(wanted))
    assert [platforms.format_platform(platform) for platform in matcher.alternatives] == offers
    assert [matcher.rank(parse(offer)) for offer in offers] == list(range(len(offers)))
    assert not matcher(parse("linux/ppc64le"))
    assert not matcher(parse("windows/amd64"))


def test_strict_and_ordered():
    assert only_strict(parse("linux/arm64"))(parse("linux/arm64/v8"))
    assert not only_strict(parse("linux/amd64"))(parse("linux/386"))
    both = platforms.ordered([parse("linux/s390x"), parse("linux/amd64")])
    assert (both.rank(parse("linux/amd64")), both.rank(parse("linux/s390x"))) == (1, 0)
    assert platforms.ALL(parse("plan9/mips"))
    assert str(both) == "linux/s390x,linux/amd64"


def test_features_must_be_had():
    have = Platform(os="linux", architecture="amd64", os_features=("a", "b"))
    assert only(have)(Platform(os="linux", architecture="amd64", os_features=("b",)))
    assert only(have)(Platform(os="linux", architecture="amd64"))
    assert not only(have)(Platform(os="linux", architecture="amd64", os_features=("c",)))


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("lm cmov", "v1"),
        ("cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3", "v2"),
        ("cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3 avx avx2 bmi1 bmi2 f16c fma abm movbe xsave", "v3"),
        ("avx avx2 bmi1 bmi2 f16c fma abm movbe xsave", "v1"),
    ],
)
def test_levels_of_amd64(flags, level):
    assert amd64_level(flags) == level


@pytest.mark.parametrize(
    ("reported", "machine", "architecture", "variant"),
    [
        ("8", "aarch64", "arm64", "v8"),
        (None, "aarch64", "arm64", "v8"),
        ("7", "armv7l", "arm", "v7"),
        (None, "armv6l", "arm", "v6"),
        ("5tej", "armv5", "arm", "v5"),
        ("?(12)", "armv7l", "arm", "v7"),
        ("weird", "armv7l", "arm", "unknown"),
    ],
)
def test_variants_of_arm(monkeypatch, reported, machine, architecture, variant):
    monkeypatch.setattr(platforms, "_cpuinfo", lambda _key: None)
    assert platforms._arm_variant(reported, machine, architecture) == variant


def test_a_first_raspberry_lies(monkeypatch):
    monkeypatch.setattr(platforms, "_cpuinfo", lambda _key: "ARMv6-compatible processor rev 7 (v6l)")
    assert platforms._arm_variant("7", "armv6l", "arm") == "v6"


def test_this_host_is_known():
    assert platforms.default_matcher()(parse(platforms.default_string()))
    assert platforms.default_string().startswith("linux/")


@given(st.text(max_size=40))
def test_any_text_is_a_platform_or_refused(text):
    try:
        platform = parse(text)
    except InvalidArgumentError:
        return
    assert only(platform)(platform)
