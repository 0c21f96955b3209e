"""Credentials for a registry: in no log at the most talkative level, no error, no file of the daemon's, no argument."""

import base64
import contextlib
from pathlib import Path

import pytest

from tools import daemons

pytestmark = pytest.mark.root

WRONG = "wrong-gangway-7312"
CREDENTIALS = (f"{daemons.USER}:{daemons.PASSWORD}", f"{daemons.USER}:{WRONG}")
SECRETS = [WRONG, CREDENTIALS[0], *(base64.b64encode(one.encode()).decode() for one in CREDENTIALS)]


def arguments(besides):
    """The command lines of all processes but one."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != besides:
            with contextlib.suppress(OSError):
                yield process.name, (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def watched(ctr, *words):
    """Run ctr, and look at everybody else's arguments while it runs. Its outcome and what it said."""
    process = ctr.popen(*words)
    try:
        while process.poll() is None:
            for name, line in arguments(process.pid):
                assert not any(secret in line for secret in SECRETS), f"process {name}: {line}"
    finally:
        process.kill()
        said = b"".join(one or b"" for one in process.communicate()).decode()
    return process.returncode, said


def test_credentials_stay_where_they_belong(new_orlopd, our_ctr, secure_registry, busybox_image, namespace):
    daemon = new_orlopd("--log-level", "trace")
    ctr = our_ctr(daemon, namespace)
    reference = secure_registry.push(busybox_image, "secrets")
    right, wrong = CREDENTIALS
    said = []
    for words in (
        ("images", "pull", "--http-dump"),
        ("images", "pull", "--local"),
        ("images", "push"),
    ):
        code, text = watched(ctr, *words, "--user", wrong, reference)
        assert code != 0, text
        said.append(text)
        code, text = watched(ctr, *words, "--user", right, reference)
        assert code == 0, text
        said.append(text)
    assert daemon.log
    said.append(daemon.log)
    for text in said:
        assert not any(secret in text for secret in SECRETS), text
    for path in daemon.directory.rglob("*"):
        if path.is_file():
            held = path.read_bytes()
            assert not any(secret.encode() in held for secret in SECRETS), path
