"""The blocking client is the asyncio client's twin."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_twin_is_fresh() -> None:
    tool = ROOT / "tools" / "sync_twin.py"
    done = subprocess.run([sys.executable, tool, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
