"""Verifiers in a directory: who is asked, what counts as a verdict, and that nothing outlives it."""

import asyncio
import os
from pathlib import Path

import pytest

from orlop.base.errdefs import UnknownError
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor
from orlop.plugins.imageverifier import OUTPUT_LIMIT, BinDir

TARGET = Descriptor(media_type="x/y", digest=Digest.of(b"x"), size=1)


def judged(directory, *, most=10, timeout_s=20.0):
    return asyncio.run(BinDir(directory, most=most, timeout_s=timeout_s).verify("a/b:1", TARGET))


@pytest.fixture
def programs(tmp_path):
    def write(**texts):
        for name, text in texts.items():
            path = tmp_path / name
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        return tmp_path

    return write


def test_without_verifiers_all_is_allowed(tmp_path):
    assert judged(tmp_path / "none").ok
    assert judged(tmp_path).reason == f"no image verifier binaries found in {tmp_path}"


def test_all_must_agree_in_the_order_of_their_names(programs):
    directory = programs(b="echo two; exit 0", a="echo one", c="cat >/dev/null; exit 3")
    verdict = judged(directory)
    assert (verdict.ok, verdict.reason) == (False, "verifier c rejected image (exit code 3): ")
    verdict = judged(directory, most=2)
    assert (verdict.ok, verdict.reason) == (True, "a => one, b => two")
    assert judged(directory, most=0).ok
    assert not judged(directory, most=-1).ok


def test_output_is_bounded(programs):
    verdict = judged(
        programs(a=f"head -c {4 * OUTPUT_LIMIT} /dev/zero | tr '\\0' x; exec >&-; yes | head -c 100000 >&2")
    )
    assert verdict.ok
    assert verdict.reason == f"a => {'x' * OUTPUT_LIMIT}(stdout truncated)"


def test_no_verdict_is_an_error(programs, tmp_path):
    with pytest.raises(UnknownError, match=r"failed to call verifier a \(runtime .*no verdict in 0.2s"):
        judged(programs(a='sleep 60 & echo $! > "$0.pid"; wait'), timeout_s=0.2)
    pid = int((tmp_path / "a.pid").read_text())
    while not _ended(pid):
        os.sched_yield()
    (tmp_path / "a.pid").unlink()
    with pytest.raises(UnknownError, match="killed by signal 9"):
        judged(programs(a="kill -9 $$"))
    (tmp_path / "a").chmod(0o644)
    with pytest.raises(UnknownError, match=r"(?i)permission denied"):
        judged(tmp_path)


def _ended(pid):
    """Whether a process has gone; a zombie that nobody has looked at yet counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
