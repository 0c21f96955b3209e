"""Platforms: `linux/arm64/v8` read, normalised, written, and matched against what an image offers.

The order of a matcher's alternatives is a preference: on amd64/v3 an image for v3 comes before v2, v1 and 386; on
arm/v7 one for v7 before v6 and v5.

Source: github.com/containerd/platforms (platforms.go, compare.go, database.go, cpuinfo_linux.go).
"""

import functools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from orlop.base.errdefs import InvalidArgumentError
from orlop.base.quoting import quote

EROFS_FEATURE: Final = "erofs"
"""In `os.features`: layers are file system images."""
_COMPONENT: Final = re.compile(r"[A-Za-z0-9_.-]+")
_OS: Final = re.compile(r"([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.%-]*)((?:\+[A-Za-z0-9_.%-]+)*)\))?")

# Source: syslist.go of Go, as far as containerd/platforms has it.
_SYSTEMS: Final = (
    "aix android darwin dragonfly freebsd hurd illumos ios js linux nacl netbsd openbsd plan9 solaris windows zos"
)
_ARCHITECTURES: Final = (
    "386 amd64 amd64p32 arm armbe arm64 arm64be ppc64 ppc64le loong64 mips mipsle mips64 mips64le mips64p32 "
    "mips64p32le ppc riscv riscv64 s390 s390x sparc sparc64 wasm"
)
_KNOWN_OS: Final = frozenset(_SYSTEMS.split())
_KNOWN_ARCHITECTURES: Final = frozenset(_ARCHITECTURES.split())
_ARCHITECTURE_OF_MACHINE: Final = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "loongarch64": "loong64",
    "mips64": "mips64le",
    "ppc64le": "ppc64le",
    "riscv64": "riscv64",
    "s390x": "s390x",
}


class PlatformLike(Protocol):
    """What has a platform's fields: ours, or the image-spec's struct."""

    @property
    def os(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def variant(self) -> str: ...
    @property
    def os_version(self) -> str: ...
    @property
    def os_features(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """An operating system and a CPU; empty texts where nothing is said."""

    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        return format_platform(self)


@dataclass(frozen=True, slots=True)
class Matcher:
    """Platforms that will do, the best first; `match_all` takes any and prefers none."""

    alternatives: tuple[Platform, ...] = ()
    match_all: bool = field(default=False, kw_only=True)

    def __call__(self, platform: PlatformLike) -> bool:
        return self.rank(platform) is not None

    def rank(self, platform: PlatformLike) -> int | None:
        """The place of the first alternative that `platform` satisfies (0 is best), or None."""
        if self.match_all:
            return 0
        offered = normalize(platform)
        for place, wanted in enumerate(self.alternatives):
            if _matches(wanted, offered):
                return place
        return None

    def __str__(self) -> str:
        return "all" if self.match_all else ",".join(format_platform(wanted) for wanted in self.alternatives)


ALL: Final = Matcher(match_all=True)


def parse(specifier: str) -> Platform:
    """Read `<os>`, `<arch>` or `<os>[(<version>[+<feature>…])]/<arch>[/<variant>]`; the host fills in what is missing.

    Raises:
        InvalidArgumentError: a component has other characters, or a lone one is no known system or architecture.
    """
    shown = quote(specifier[:300])
    if "*" in specifier:
        raise InvalidArgumentError(f"{shown}: wildcards not yet supported")
    parts = specifier.split("/", 3)
    for part in parts[1:]:
        if not _COMPONENT.fullmatch(part):
            raise InvalidArgumentError(
                f"{quote(part[:300])} is an invalid component of {shown}: "
                f'platform specifier component must match "^{_COMPONENT.pattern}$"'
            )
    system = _parse_os(parts[0], shown)
    if len(parts) == 1:
        return _parse_single(parts[0], system, shown)
    if len(parts) == 2:
        architecture, variant = _normalize_architecture(parts[1], "")
        if (architecture, variant) == ("arm", "v7"):
            variant = ""
    elif len(parts) == 3:
        architecture, variant = _normalize_architecture(parts[1], parts[2])
        if (architecture, variant) == ("arm64", ""):
            variant = "v8"
    else:
        raise InvalidArgumentError(f"{shown}: cannot parse platform specifier")
    return replace(system, architecture=architecture, variant=variant)


def parse_all(specifiers: Iterable[str]) -> list[Platform]:
    """Read several specifiers.

    Raises:
        InvalidArgumentError: as `parse`, naming the specifier.
    """
    return [parse(specifier) for specifier in specifiers]


def format_platform(platform: PlatformLike) -> str:
    """`os/arch[/variant]`, or `unknown` without an operating system."""
    if not platform.os:
        return "unknown"
    return _join(platform.os, platform)


def format_all(platform: PlatformLike) -> str:
    """As `format_platform`, with version and features of the operating system: `windows(10.0.17763)/amd64`."""
    if not platform.os:
        return "unknown"
    options = _encode_option(platform.os_version)
    options += "".join("+" + _encode_option(feature) for feature in sorted(platform.os_features))
    return _join(f"{platform.os}({options})" if options else platform.os, platform)


def normalize(platform: PlatformLike) -> Platform:
    """The canonical spelling: `x86_64` is `amd64`, `aarch64` is `arm64`, `arm` is `arm/v7`, no system is the host's."""
    architecture, variant = _normalize_architecture(platform.architecture, platform.variant)
    return Platform(
        os=_normalize_os(platform.os),
        architecture=architecture,
        variant=variant,
        os_version=platform.os_version,
        os_features=tuple(sorted(set(platform.os_features))),
    )


@functools.lru_cache(maxsize=1)
def default() -> Platform:
    """This host, with the variant of its CPU: what containerd calls DefaultSpec."""
    architecture = _host_architecture()
    variant = _host_variant(architecture)
    return Platform(os="linux", architecture=architecture, variant=variant)


def default_string() -> str:
    """This host as a specifier: `linux/amd64`, `linux/arm64/v8`; the micro-architecture of amd64 stays unsaid."""
    host = normalize(default())
    return format_platform(replace(host, variant="") if host.architecture == "amd64" else host)


def with_erofs(platform: PlatformLike) -> Platform:
    """`platform` where layers may be file system images, as `linux(+erofs)/amd64`; containerd's converter writes it."""
    return normalize(replace(normalize(platform), os_features=(*platform.os_features, EROFS_FEATURE)))


def default_matcher() -> Matcher:
    """What runs on this host, the best first."""
    return only(default())


def only(platform: PlatformLike) -> Matcher:
    """`platform` and what runs on it too, the best first."""
    return Matcher(tuple(normalize(alternative) for alternative in _vector(normalize(platform))))


def only_strict(platform: PlatformLike) -> Matcher:
    """`platform` alone, in any spelling."""
    return Matcher((normalize(platform),))


def ordered(platforms: Iterable[PlatformLike]) -> Matcher:
    """Any of `platforms`, the first preferred."""
    return Matcher(tuple(normalize(platform) for platform in platforms))


def _matches(wanted: Platform, offered: Platform) -> bool:
    return (
        wanted.os == offered.os
        and wanted.architecture == offered.architecture
        and wanted.variant == offered.variant
        and set(offered.os_features) <= set(wanted.os_features)
        and (wanted.os != "windows" or _windows_version_matches(wanted.os_version, offered.os_version))
    )


def _windows_version_matches(wanted: str, offered: str) -> bool:
    """Build numbers must agree; a side that names none takes any."""
    if not wanted or not offered:
        return True
    return wanted.split(".")[:3] == offered.split(".")[:3]


def _vector(platform: Platform) -> list[Platform]:
    vector = [platform]

    def also(architecture: str, variant: str = "") -> None:
        vector.append(replace(platform, architecture=architecture, variant=variant))

    match platform.architecture:
        case "amd64":
            for level in range((_version(platform.variant) or 1) - 1, 0, -1):
                also("amd64", f"v{level}")
            also("386")
        case "arm":
            for version in range((_version(platform.variant) or 5) - 1, 4, -1):
                also("arm", f"v{version}")
        case "arm64":
            variant = platform.variant or "v8"
            for older in _older_arm64(variant):
                also("arm64", older)
            variant32 = "v8" if variant.startswith(("v8.", "v9.")) else variant
            vector.extend(_vector(replace(platform, architecture="arm", variant=variant32)))
    return vector


def _older_arm64(variant: str) -> list[str]:
    """What an arm64 of `variant` also runs; v9.x includes v8.(x+5)."""
    major_text, _, minor_text = variant.removeprefix("v").partition(".")
    if not major_text.isdecimal() or int(major_text) < 8:
        return []
    major = int(major_text)
    minor = int(minor_text) if len(variant) == 4 and minor_text.isdecimal() else 0
    older = []
    if major == 9:
        older = [_arm64_variant(9, below) for below in range(minor - 1, -1, -1)]
        major, minor = 8, minor + 5
        older.append(f"v8.{minor}")
    return older + [_arm64_variant(major, below) for below in range(minor - 1, -1, -1)]


def _arm64_variant(major: int, minor: int) -> str:
    return f"v{major}.{minor}" if minor else f"v{major}"


def _version(variant: str) -> int | None:
    number = variant.removeprefix("v")
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 4 else None


def _parse_os(text: str, shown: str) -> Platform:
    match = _OS.fullmatch(text)
    if match is None:
        raise InvalidArgumentError(
            f"{quote(text[:300])} is an invalid OS component of {shown}: "
            f'OSAndVersion specifier component must match "^{_OS.pattern}$"'
        )
    features = tuple(_decode_option(feature) for feature in (match[3] or "")[1:].split("+") if feature)
    return Platform(os=_normalize_os(match[1]), os_version=_decode_option(match[2] or ""), os_features=features)


def _parse_single(text: str, system: Platform, shown: str) -> Platform:
    if system.os in _KNOWN_OS:
        architecture = _host_architecture()
        variant = _host_variant(architecture) if architecture == "arm" else ""
        return replace(system, architecture=architecture, variant="" if variant == "v7" else variant)
    architecture, variant = _normalize_architecture(text, "")
    if (architecture, variant) == ("arm", "v7"):
        variant = ""
    if architecture in _KNOWN_ARCHITECTURES:
        return Platform(os="linux", architecture=architecture, variant=variant)
    raise InvalidArgumentError(f"{shown}: unknown operating system or architecture")


def _normalize_os(system: str) -> str:
    lower = system.lower()
    return {"": "linux", "macos": "darwin"}.get(lower, lower)


def _normalize_architecture(architecture: str, variant: str) -> tuple[str, str]:
    architecture, variant = architecture.lower(), variant.lower()
    match architecture:
        case "i386":
            return "386", ""
        case "x86_64" | "x86-64" | "amd64":
            return "amd64", "" if variant == "v1" else variant
        case "aarch64" | "arm64":
            return "arm64", "" if variant in {"8", "v8"} else variant
        case "armhf":
            return "arm", "v7"
        case "armel":
            return "arm", "v6"
        case "arm":
            if variant in {"", "7"}:
                return "arm", "v7"
            return "arm", f"v{variant}" if variant in {"5", "6", "8"} else variant
    return architecture, variant


_OPTION_ESCAPES: Final = str.maketrans({"%": "%25", "+": "%2B", "(": "%28", ")": "%29", "/": "%2F"})


def _encode_option(text: str) -> str:
    return text.translate(_OPTION_ESCAPES)


def _decode_option(text: str) -> str:
    if "%" not in text:
        return text
    if re.search(r"%(?![0-9a-fA-F]{2})", text):
        raise InvalidArgumentError(f"invalid URL escape in platform option {quote(text[:300])}")
    from urllib.parse import unquote

    return unquote(text)


def _join(system: str, platform: PlatformLike) -> str:
    return "/".join(part for part in (system, platform.architecture, platform.variant) if part)


def _host_architecture() -> str:
    machine = os.uname().machine.lower()
    if machine.startswith("armv"):
        return "arm"
    return _ARCHITECTURE_OF_MACHINE.get(machine, machine)


def _host_variant(architecture: str) -> str:
    if architecture in {"arm", "arm64"}:
        return _arm_variant(_cpuinfo("cpu architecture"), os.uname().machine.lower(), architecture)
    if architecture == "amd64":
        return amd64_level(_cpuinfo("flags") or "")
    return ""


def _arm_variant(reported: str | None, machine: str, architecture: str) -> str:
    """The ARM version from /proc/cpuinfo, else (emulation on another CPU) from uname."""
    if reported is None:
        reported = "8" if machine == "aarch64" else machine.removeprefix("armv")[:1]
    if architecture == "arm" and reported == "7" and (_cpuinfo("model name") or "").lower().startswith("armv6-"):
        reported = "6"  # Raspberry Pi 1 says 7
    lower = reported.lower()
    if lower in {"8", "aarch64"}:
        return "v8"
    if re.fullmatch(r"7m?|\?\(1[2-7]\)", lower):
        return "v7"
    return f"v{lower[0]}" if re.fullmatch(r"6(tej)?|5(t|te|tej)?|4t?|3", lower) else "unknown"


def amd64_level(flags: str) -> str:
    """The micro-architecture level for the flags of /proc/cpuinfo: `v1` to `v4`."""
    have = set(flags.split())
    needs = (
        {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"},
        {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"},
        {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    )
    level = 1
    for need in needs:
        if not need <= have:
            break
        level += 1
    return f"v{level}"


def _cpuinfo(key: str) -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, colon, value = line.partition(":")
                if colon and name.strip().lower() == key:
                    return value.strip()
    except OSError:
        return None  # no /proc: the architecture alone must do
    return None
