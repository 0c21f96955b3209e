"""What of the linux room can be seen without root."""

import os
import signal
import struct
import subprocess
import sys

import pytest

from orlop.linux import mount as mnt
from orlop.linux import openat2, pidfd, probe, seccomp
from orlop.linux.capabilities import Cap, capget, mask


def test_mountinfo_is_read_with_its_escapes(tmp_path):
    file = tmp_path / "mountinfo"
    file.write_text(
        "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext4 /dev/a\\134b rw,errors=continue\n"
        "rubbish\n"
        "37 35 0:5 / /c rw - tmpfs none rw\n"
    )
    first, second = mnt.mountinfo(str(file))
    assert (first.mount_point, first.source, first.fs_type) == ("/mnt 2", "/dev/a\\b", "ext4")
    assert second.options == ("rw",)


def test_options_beyond_a_page_are_refused_rather_than_cut():
    with pytest.raises(OSError, match="do not fit a page"):
        mnt.mount("x", "/nowhere", "overlay", 0, "lowerdir=" + "a" * 5000)


def test_errors_name_call_and_path():
    with pytest.raises(OSError, match=r"umount2: .*/no/such/place"):
        mnt.umount2("/no/such/place")


@pytest.mark.parametrize(
    ("kinds", "mode"), [(["cgroup2"], "v2"), (["cgroup"], "v1"), (["cgroup", "cgroup2"], "hybrid"), (["tmpfs"], "none")]
)
def test_the_cgroup_mode_is_read_from_the_mounts(tmp_path, kinds, mode):
    file = tmp_path / "mountinfo"
    file.write_text("".join(f"{n} 1 0:5 / /c{n} rw - {kind} none rw\n" for n, kind in enumerate(kinds)))
    assert probe.cgroup_mode(str(file)) == mode


def test_openat2_stays_in_its_root(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "out").symlink_to("../../secret")
    (tmp_path / "secret").write_text("")
    root = os.open(tmp_path / "root", os.O_PATH)
    try:
        with pytest.raises(FileNotFoundError):
            openat2.openat2("out", os.O_RDONLY, dir_fd=root)
        with pytest.raises(OSError, match="openat2"):
            openat2.openat2("../secret", os.O_RDONLY, dir_fd=root, resolve=openat2.RESOLVE_BENEATH)
    finally:
        os.close(root)


def test_the_end_of_a_process_is_seen_by_its_descriptor():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    fd = pidfd.pidfd_open(process.pid)
    try:
        assert not pidfd.has_exited(fd)
        assert pidfd.exit_status(fd) is None
        assert pidfd.zombie_status(process.pid) is None
        pidfd.pidfd_send_signal(fd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOWAIT)
        assert pidfd.has_exited(fd)
        assert pidfd.zombie_status(process.pid) in (signal.SIGKILL, 0)
        with process:
            process.wait()
        assert pidfd.exit_status(fd) in (signal.SIGKILL, None)  # None before Linux 6.15
        with pytest.raises(ProcessLookupError):
            pidfd.pidfd_send_signal(fd, signal.SIGKILL)
    finally:
        os.close(fd)


def test_a_descriptor_of_another_process_can_be_fetched(tmp_path):
    file = tmp_path / "file"
    file.write_text("held")
    with file.open() as held:
        own = pidfd.pidfd_open(os.getpid())
        try:
            copy = pidfd.pidfd_getfd(own, held.fileno())
        finally:
            os.close(own)
        with os.fdopen(copy) as again:
            assert again.read() == "held"


@pytest.mark.skipif(not seccomp.supported(), reason="no seccomp numbers for this machine")
def test_a_filter_is_well_formed():
    program = seccomp.build_filter([3, 1, 1])
    instructions = list(struct.iter_unpack("<HBBI", program))
    assert [k for code, _, _, k in instructions if code == 0x15][1:] == [1, 3]
    assert instructions[-1][3] == seccomp.SECCOMP_RET_KILL_PROCESS


def test_capabilities_are_masks():
    assert mask([Cap.CHOWN, Cap.CHECKPOINT_RESTORE]) == 1 | 1 << 40
    sets = capget()
    assert sets.effective & ~sets.permitted == 0
