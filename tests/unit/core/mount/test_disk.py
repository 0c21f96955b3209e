"""What a disk's errors become."""

import errno
import os
from pathlib import Path

import pytest

from orlop.base.errdefs import InternalError, OrlopError, ResourceExhaustedError
from orlop.core.mount import disk


def test_the_mount_point_of_what_is_there_and_of_what_is_not(tmp_path: Path) -> None:
    assert disk.mount_point("/proc/self/status") == "/proc"
    assert disk.mount_point("/proc/none/such") == "/proc"
    link = tmp_path / "link"
    link.symlink_to("/proc/self")
    assert disk.mount_point(link / "status") == "/proc"
    assert os.path.ismount(disk.mount_point(tmp_path))


@pytest.mark.parametrize(
    ("number", "cls", "text"),
    [
        (errno.ENOSPC, ResourceExhaustedError, "a: no space left on the file system at /proc"),
        (errno.EDQUOT, ResourceExhaustedError, "a: disk quota exceeded on the file system at /proc"),
        (errno.EIO, InternalError, "a: input/output error on the file system at /proc"),
        (errno.EROFS, InternalError, "a: read-only file system on the file system at /proc"),
        (errno.ENOENT, InternalError, "a: [Errno 2] No such file or directory"),
    ],
)
def test_words(number: int, cls: type[OrlopError], text: str) -> None:
    error = disk.failure("a", "/proc/self", OSError(number, os.strerror(number)))
    assert type(error) is cls
    assert error.text == text
    assert disk.failure("a", None, OSError(number, os.strerror(number))).text == text.replace(
        " on the file system at /proc", ""
    )


def test_free_bytes_of_a_directory_that_is_still_to_be_made(tmp_path: Path) -> None:
    assert disk.free_bytes(tmp_path / "to" / "be" / "made") > 0
