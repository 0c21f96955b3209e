"""containerd's default AppArmor profile: its text, and loading it into the kernel of this host.

A profile is loaded by the host's `apparmor_parser`, once, under the name that is wanted; it stays until the next boot.

Source: contrib/apparmor of containerd, whose rules are Docker's.
"""

import os
import shutil
import subprocess
import tempfile
from typing import Final

from orlop.base.errdefs import FailedPreconditionError, InvalidArgumentError

_LOADED: Final = "/sys/kernel/security/apparmor/profiles"
_DIRECTORY: Final = "/etc/apparmor.d"
_PARSER_TIMEOUT_S: Final = 60.0
_FORBIDDEN: Final = frozenset('\0\n\r"{}#,')
# Paths below /proc and /sys that a process of the container must not write, or not touch at all.
_DENIED: Final = (
    "@{PROC}/* w",
    "@{PROC}/{[^1-9/],[^1-9/][^0-9/],[^1-9s/][^0-9y/][^0-9s/],[^1-9/][^0-9/][^0-9/][^0-9/]*}/** w",
    "@{PROC}/sys/[^k]** w",
    "@{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w",
    "@{PROC}/sysrq-trigger rwklx",
    "@{PROC}/kcore rwklx",
    "mount",
    "/sys/[^f]*/** wklx",
    "/sys/f[^s]*/** wklx",
    "/sys/fs/[^c]*/** wklx",
    "/sys/fs/c[^g]*/** wklx",
    "/sys/fs/cg[^r]*/** wklx",
    "/sys/firmware/** rwklx",
    "/sys/devices/virtual/powercap/** rwklx",
    "/sys/kernel/security/** rwklx",
)


def default_profile(name: str, *, directory: str = _DIRECTORY) -> str:
    """The text of the default profile.

    Args:
        name: of the profile.
        directory: whose tunables and abstractions are included, those that exist.
    """
    if not name or _FORBIDDEN & set(name):
        raise InvalidArgumentError(f"AppArmor profile name {name!r}")
    lines = []
    if os.path.exists(os.path.join(directory, "abi/3.0")):
        lines.append("abi <abi/3.0>,")
    has_tunables = os.path.exists(os.path.join(directory, "tunables/global"))
    lines.append("#include <tunables/global>" if has_tunables else "@{PROC}=/proc/")
    lines.append(f'profile "{name}" flags=(attach_disconnected,mediate_deleted) {{')
    if os.path.exists(os.path.join(directory, "abstractions/base")):
        lines.append("  #include <abstractions/base>")
    lines += ["  network,", "  capability,", "  file,", "  umount,"]
    for peer in ("unconfined", "runc", "crun", _own_profile()):
        rule = f'  signal (receive) peer="{peer}",'
        if rule not in lines:
            lines.append(rule)
    lines.append(f'  signal (send,receive) peer="{name}",')
    lines += [f"  deny {rule}," for rule in _DENIED]
    lines += [f'  ptrace (trace,tracedby,read,readby) peer="{name}",', "}"]
    return "\n".join(lines) + "\n"


def load_default(name: str) -> None:
    """Make sure that the kernel has the default profile under this name.

    Raises:
        FailedPreconditionError: this host has no AppArmor, no `apparmor_parser`, or that refuses; its words are quoted.
    """
    if is_loaded(name):
        return
    text = default_profile(name)
    parser = shutil.which("apparmor_parser")
    if parser is None:
        raise FailedPreconditionError(
            f"load AppArmor profile {name}: apparmor_parser is not on PATH", hint="install the package apparmor"
        )
    with tempfile.NamedTemporaryFile("w", prefix="orlop-apparmor-", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        done = subprocess.run(
            [parser, "-Kr", file.name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PARSER_TIMEOUT_S,
        )
    if done.returncode:
        raise FailedPreconditionError(
            f"load AppArmor profile {name}: {done.stderr.strip() or 'apparmor_parser failed'}"
        )


def is_loaded(name: str) -> bool:
    """Whether the kernel has a profile of this name.

    Raises:
        FailedPreconditionError: this host has no AppArmor.
    """
    try:
        with open(_LOADED, encoding="utf-8", errors="replace") as file:
            return any(line.rpartition(" (")[0] == name for line in file)
    except OSError as error:
        raise FailedPreconditionError(
            f"AppArmor profile {name}: this host has no AppArmor ({(error.strerror or str(error)).lower()})"
        ) from error


def _own_profile() -> str:
    """The profile of this process, which stands for the daemon that will send signals."""
    try:
        with open("/proc/self/attr/current", encoding="utf-8", errors="replace") as file:
            text = file.read().strip("\n\0 ")
    except OSError:
        text = ""
    name = text.partition(" (")[0]
    return name if name and not _FORBIDDEN & set(name) else "unconfined"
