"""Fixtures of all tests: real daemons beside each other, images, clients; and the check that nothing is left behind.

Marks decide what a test needs: `root` (mounts, Linux namespaces, cgroups, an OCI runtime), `interop` (Debian's
containerd and its clients). What the host cannot give skips the test with the reason. Daemons that a test may share
live as long as the session (`containerd`, `registry`, `orlopd`) and collect only on request, so that what one test
removes does not sweep away what another is about to use; a test that kills one makes its own (`new_orlopd`,
`new_containerd`), with a collector as users have it.
"""

import os
import shutil
import signal
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hypothesis
import pytest

from orlop.linux.signals import reset_internal
from tools import daemons, host, images, peers, residue
from tools.daemons import COLLECT_ON_REQUEST, Containerd, Ctr, Orlopd, Registry
from tools.images import Image

# GNU make starts us by posix_spawn(3), which leaves these ignored; daemons and containers would inherit that.
reset_internal()
# A shell's background job ignores these, and so would all that we start: our ctr leaves ignored what it finds ignored.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)

# A busy machine is no failure.
hypothesis.settings.register_profile("orlop", deadline=None)
hypothesis.settings.load_profile("orlop")

OPENERS = ("containerd", "registry", "secure_registry", "orlopd", "lean_orlopd", "grpcio_orlopd", "grpcio")
"""Session fixtures: the first test that asks for one is the one in which its descriptors appear."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root"):
        reason = host.forbids_root_tests()
        if reason:
            pytest.skip(reason)
    if item.get_closest_marker("interop"):
        for peer in ("containerd", "ctr", "containerd-shim-runc-v2"):
            reason = host.lacks_peer(peer)
            if reason:
                pytest.skip(reason)


# -- nothing is left behind ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _run() -> Iterator[residue.Run]:
    with residue.Run() as run:
        yield run


@pytest.fixture(autouse=True)
def _leaves_nothing(request: pytest.FixtureRequest, _run: residue.Run) -> Iterator[None]:
    """After each test: no descriptor, thread or child of this process more than before; after a root test also no
    mount, process, loop device or cgroup. What is found is taken away, so that the next test starts clean."""
    marked = request.node.get_closest_marker("root") is not None
    # asked for here, so that pytest removes it after this check: it must not follow a mount that was left
    directory = request.getfixturevalue("tmp_path") if marked and "tmp_path" in request.fixturenames else None
    opens = any(name in request.fixturenames for name in OPENERS)
    cgroups = residue.cgroups() if marked else None
    descriptors, threads = _descriptors(), set(threading.enumerate())
    yield
    problems = []
    if not opens:
        extra = {fd: target for fd, target in _descriptors().items() if descriptors.get(fd) != target}
        problems += [f"descriptor {fd}: {target}" for fd, target in extra.items()]
    left = [thread for thread in set(threading.enumerate()) - threads if not thread.daemon]
    problems += [f"thread {thread.name}" for thread in left]
    if directory is not None:
        found = residue.settle(directory, cgroups_before=None if opens else cgroups, alone=_run.alone())
        if found:
            residue.remove(found)
            problems.append(str(found))
    if problems:
        pytest.fail("left behind:\n" + "\n".join(problems), pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def _session_leaves_nothing(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, _run: residue.Run
) -> Iterator[None]:
    """At the very end: nothing below the session's directory is mounted, running or attached.

    What is, is taken away before pytest removes the directory: it must never follow a mount out of it. A session
    without root tests makes no cgroups; those that it would find are another session's, which needs them.
    """
    base = tmp_path_factory.getbasetemp()
    rooted = any(item.get_closest_marker("root") is not None for item in request.session.items)
    before = residue.cgroups() if rooted and host.forbids_root_tests() is None else None
    yield
    found = residue.settle(base, cgroups_before=before, alone=_run.alone())
    if found:
        residue.remove(found)
        pytest.fail(f"the session left behind:\n{found}", pytrace=False)


def _descriptors() -> dict[int, str]:
    """Open descriptors of this process and what they are, but for those that the interpreter keeps to itself."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the directory's own descriptor
            continue
        if not target.startswith(("/dev/urandom", "/proc/", "anon_inode:[eventpoll]", "anon_inode:[eventfd]")):
            found[int(name)] = target
    return found


# -- daemons ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def short_directory() -> Iterator[Path]:
    """A directory with a short path, for sockets: their paths end at 108 bytes."""
    path = Path(tempfile.mkdtemp(prefix="orlop."))
    path.chmod(0o711)  # a container's root in a user namespace must get through
    try:
        yield path
    finally:
        found = residue.settle(path)
        residue.remove(found)
        shutil.rmtree(path)
    if found:
        pytest.fail(f"the session left behind:\n{found}", pytrace=False)


@pytest.fixture(scope="session")
def containerd(short_directory: Path) -> Iterator[Containerd]:
    """Debian's containerd, shared by the session."""
    _need("containerd", "ctr", "containerd-shim-runc-v2")
    # With unpigz, a peer for the bench, it takes garbage after gzip; by itself it does not.
    env = {"CONTAINERD_DISABLE_PIGZ": "1"}
    with Containerd(short_directory / "containerd", config=COLLECT_ON_REQUEST, env=env) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def orlopd(short_directory: Path) -> Iterator[Orlopd]:
    """Our daemon, shared by the session."""
    with Orlopd(short_directory / "orlopd", config=COLLECT_ON_REQUEST) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def lean_orlopd(short_directory: Path) -> Iterator[Orlopd]:
    """Our daemon with its own gRPC door, whatever the others of this run have."""
    with Orlopd(short_directory / "lean", config=COLLECT_ON_REQUEST, door="lean") as daemon:
        yield daemon


@pytest.fixture(scope="session")
def grpcio_orlopd(short_directory: Path) -> Iterator[Orlopd]:
    """Our daemon with grpcio's door, whatever the others of this run have."""
    with Orlopd(short_directory / "grpcio", config=COLLECT_ON_REQUEST, door="grpcio") as daemon:
        yield daemon


@pytest.fixture(scope="session")
def grpcio() -> None:
    """For tests that use grpcio's client in this process: its library keeps descriptors of its own."""


@pytest.fixture(scope="session")
def registry(short_directory: Path) -> Iterator[Registry]:
    """A registry on loopback that anybody may use."""
    _need("docker-registry", "skopeo")
    with Registry(short_directory / "registry") as daemon:
        yield daemon


@pytest.fixture(scope="session")
def secure_registry(short_directory: Path) -> Iterator[Registry]:
    """A registry that asks for daemons.USER and daemons.PASSWORD (basic authentication)."""
    _need("docker-registry", "skopeo")
    with Registry(short_directory / "secure-registry", authenticate=True) as daemon:
        yield daemon


@pytest.fixture
def new_orlopd(short_directory: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Orlopd]]:
    """Start daemons of the test's own: `new_orlopd(*arguments, config="…", env={…})`. All are closed after it."""
    started: list[Orlopd] = []

    def start(*arguments: str, config: str = "", env: dict[str, str] | None = None) -> Orlopd:
        directory = Path(tempfile.mkdtemp(prefix="o.", dir=short_directory))
        daemon = Orlopd(directory, *arguments, config=config, env=env)
        started.append(daemon)
        daemon.start()
        return daemon

    yield start
    for daemon in reversed(started):
        daemon.close()


@pytest.fixture
def new_containerd(short_directory: Path) -> Iterator[Callable[..., Containerd]]:
    """Start containerds of the test's own: `new_containerd(config="…")`. All are closed after it."""
    _need("containerd", "ctr", "containerd-shim-runc-v2")
    started: list[Containerd] = []

    def start(*, config: str = "", off: Sequence[str] = ()) -> Containerd:
        daemon = Containerd(Path(tempfile.mkdtemp(prefix="c.", dir=short_directory)), config=config, off=off)
        started.append(daemon)
        daemon.start()
        return daemon

    yield start
    for daemon in reversed(started):
        daemon.close()


@pytest.fixture(scope="session")
def go_ctr() -> Callable[..., Ctr]:
    """Debian's ctr: `go_ctr(daemon)` or `go_ctr(daemon, "namespace")`, then call that with a command's words."""
    _need("ctr")

    def bind(daemon: daemons.Engine, namespace: str = "default") -> Ctr:
        return Ctr(daemons.program("ctr"), daemon.address, namespace)

    return bind


@pytest.fixture(scope="session")
def our_ctr() -> Callable[..., Ctr]:
    """Our ctr, bound in the same way."""

    def bind(daemon: daemons.Engine, namespace: str = "default") -> Ctr:
        return Ctr(daemons.our_program("ctr"), daemon.address, namespace)

    return bind


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    """A containerd namespace of the test's own on daemons that it shares."""
    return f"test-{zlib.crc32(request.node.nodeid.encode()):08x}"


# -- images -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def busybox_image() -> Image:
    """Busybox in three gzip layers: `.archive` (a tar for import), `.directory` (an OCI layout), `.reference`."""
    return _image("busybox")


@pytest.fixture(scope="session")
def busybox_zstd_image() -> Image:
    """The same in zstd."""
    return _image("busybox-zstd")


@pytest.fixture(scope="session")
def busybox_multi_image() -> Image:
    """An index of an image for another machine and busybox for this one."""
    return _image("busybox-multi")


@pytest.fixture(scope="session")
def debian_image() -> Image:
    """A Debian userland in five layers, gzip and zstd; large: ask for it where size is the point."""
    return _image("debian")


def _image(name: str) -> Image:
    _need("busybox")
    try:
        return images.image(name)
    except peers.PeerError as error:
        pytest.skip(f"no image {name}: {error}")


def _need(*names: str) -> None:
    for peer in names:
        reason = host.lacks_peer(peer)
        if reason:
            pytest.skip(reason)
