"""What the Version service and `--version` answer."""

import functools
import subprocess
from pathlib import Path
from typing import Final

from orlop.version import __version__

API_LEVEL: Final = "2.3.4"
"""The release of containerd whose API this daemon serves."""

VERSION: Final = f"{API_LEVEL}+orlop.{__version__}"
PACKAGE: Final = "github.com/containerd/containerd/v2"


@functools.cache
def revision() -> str:
    """The commit that this program was built from, or an empty string where nobody knows.

    A wheel carries it in `orlop/_revision.txt` (written by the build); a checkout is asked through git.
    """
    package = Path(__file__).resolve().parent.parent
    recorded = package / "_revision.txt"
    if recorded.is_file():
        return recorded.read_text().strip()
    if not (package.parent.parent / ".git").exists():
        return ""
    try:
        answer = subprocess.run(
            ["git", "-C", package, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()
