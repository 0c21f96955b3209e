"""Layers made of the same two trees by both daemons: the same bytes, and the same answers around them.

What differs stands in `differences.LAYERS`, each with its reason.
"""

import contextlib
import gzip
import hashlib
import io
import itertools
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import orlop
from orlop.base.errdefs import InvalidArgumentError, OrlopError, UnavailableError, UnimplementedError, UnknownError
from orlop.base.labels import UNCOMPRESSED
from orlop.core.mount import Mount
from orlop.core.mount.perform import temp_mount
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor
from orlop.oci.media_types import DOCKER_LAYER_GZIP, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from orlop.testing.trees import describe
from tools.daemons import Containerd, Ctr, Orlopd, environment

KEPT = {"containerd.io/gc.root": "1"}  # else the collector may be quicker than the test
pytestmark = [pytest.mark.root, pytest.mark.interop]

CAPABILITY = b"\x01\x00\x00\x02\x00\x20" + bytes(14)
OLD = 1_500_000_000


def populate(root: Path) -> None:
    """Something of every kind, with times of whole seconds, as an unpacked layer has them."""
    for name in ("etc/deep/deeper", "gone/with/all", "kept", "replaced", "mode", "tmp"):
        (root / name).mkdir(parents=True)
    for name in ("etc/deep/deeper/file", "gone/with/all/inside", "kept/file", "replaced/inside", "plain", "times"):
        (root / name).write_text(name)
    (root / "same-size").write_text("one")
    (root / "was-file").write_text("x")
    (root / "hard").write_text("several names")
    os.link(root / "hard", root / "kept/hard")
    (root / "ping").write_bytes(b"program")
    (root / "link").symlink_to("target")
    (root / "old-link").symlink_to("old")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(root / "fifo")
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            os.utime(os.path.join(directory, name), (OLD, OLD), follow_symlinks=False)


def change(root: Path) -> None:
    """Every kind of change."""
    (root / "etc/deep/deeper/file").write_text("changed")
    _remove(root / "gone")
    _remove(root / "replaced")
    (root / "replaced").write_text("a file now")
    (root / "was-file").unlink()
    (root / "was-file").mkdir()
    (root / "was-file/inside").write_text("a directory now")
    (root / "plain").unlink()
    (root / "mode").chmod(0o1700)
    os.chown(root / "tmp", 12, 34)
    os.utime(root / "times", (OLD + 1, OLD + 1))
    (root / "same-size").write_text("two")
    os.utime(root / "same-size", (OLD, OLD))
    os.link(root / "hard", root / "kept/new-name")
    os.setxattr(root / "ping", "security.capability", CAPABILITY)
    (root / "link").unlink()
    (root / "link").symlink_to("elsewhere")
    os.utime(root / "link", (OLD, OLD), follow_symlinks=False)
    (root / "old-link").unlink()
    os.mkfifo(root / "old-link")
    os.mknod(root / "loop", stat.S_IFBLK | 0o660, os.makedev(7, 300))
    (root / "null").unlink()
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    (root / "long" / ("d" * 90) / ("e" * 90)).mkdir(parents=True)
    (root / "long" / ("d" * 90) / ("e" * 90) / ("f" * 200)).write_text("not in ustar")
    (root / "long" / ("d" * 90) / "short").write_text("split in two fields")
    (root / "long" / ("d" * 90) / "points").symlink_to("t" * 120)
    (root / "größe").write_text("not ASCII")
    Path(os.fsdecode(os.fsencode(root) + b"/not-utf8-\xff")).write_text("raw bytes")
    (root / "with\nnewline").touch()
    (root / "big-ids").touch()
    os.chown(root / "big-ids", 3_000_000_000, 4_000_000)
    (root / "set-uid").touch()
    (root / "set-uid").chmod(0o6755)
    os.link(root / "set-uid", root / "set-uid-again")
    os.symlink("x", root / "hard-link-to-link")
    os.link(root / "hard-link-to-link", root / "its-other-name", follow_symlinks=False)
    (root / "past").touch()
    os.utime(root / "past", (-5, -5))
    (root / "future").touch()
    os.utime(root / "future", ns=(10**19 // 2, 5 * 10**18 + 999_999_999))
    with (root / "sparse").open("wb") as file:
        file.truncate(3 << 20)
        file.seek(1 << 20)
        file.write(b"middle")
    (root / "big").write_bytes(bytes(range(256)) * 10_000)
    _socket(root / "socket")


def _remove(path: Path) -> None:
    for entry in sorted(path.rglob("*"), key=lambda one: len(one.parts), reverse=True):
        entry.rmdir() if entry.is_dir() else entry.unlink()
    path.rmdir()


def _socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


Pair = tuple[list[Mount], list[Mount]]
Clients = Mapping[str, orlop.Client]


def bind(path: Path) -> list[Mount]:
    return [Mount(type="bind", source=str(path), options=("rw", "rbind"))]


def overlay(path: Path, *lower: Path) -> list[Mount]:
    (path / "upper").mkdir(parents=True)
    (path / "work").mkdir()
    options = (f"workdir={path}/work", f"upperdir={path}/upper", f"lowerdir={':'.join(map(str, lower))}")
    return [Mount(type="overlay", source="overlay", options=("index=off", *options))]


def copies(base: Path) -> Pair:
    """Two directories, as the native snapshotter has them."""
    lower, upper = base / "lower", base / "upper"
    for path in (lower, upper):
        path.mkdir()
        populate(path)
    change(upper)
    return bind(lower), bind(upper)


def layers(base: Path) -> Pair:
    """A layer of an overlay, in use."""
    lower = base / "lower"
    lower.mkdir()
    populate(lower)
    upper = overlay(base / "active", lower)
    with temp_mount(upper) as path:
        change(Path(path))
    return bind(lower), upper


def views(base: Path) -> Pair:
    """A committed layer of an overlay over two others, with a directory that is opaque."""
    bottom, middle = base / "bottom", base / "middle"
    bottom.mkdir()
    populate(bottom)
    with temp_mount(overlay(middle, bottom)) as path:
        change(Path(path))
    with temp_mount(overlay(base / "top", middle / "upper", bottom)) as path:
        _remove(Path(path, "kept"))
        Path(path, "kept").mkdir()
        Path(path, "kept/file").write_text("again")
        Path(path, "etc/deep/deeper/file").unlink()
        Path(path, "big").chmod(0o600)
    stacked = [
        f"lowerdir={':'.join(map(str, paths))}"
        for paths in ((middle / "upper", bottom), (base / "top/upper", middle / "upper", bottom))
    ]
    lower, upper = ([Mount(type="overlay", source="overlay", options=("index=off", one))] for one in stacked)
    return lower, upper


def nothing_below(base: Path) -> Pair:
    """A first layer."""
    lower, upper = base / "empty", base / "upper"
    lower.mkdir()
    upper.mkdir()
    populate(upper)
    change(upper)
    return bind(lower), bind(upper)


def nothing_left(base: Path) -> Pair:
    """Everything deleted."""
    lower, upper = base / "lower", base / "empty"
    lower.mkdir()
    upper.mkdir()
    populate(lower)
    return bind(lower), bind(upper)


def no_mounts(base: Path) -> Pair:
    """No list of mounts at all stands for an empty tree."""
    upper = base / "upper"
    upper.mkdir()
    populate(upper)
    return [], bind(upper)


PAIRS = [copies, layers, views, nothing_below, nothing_left, no_mounts]


@pytest.fixture
def clients(containerd: Containerd, orlopd: Orlopd, namespace: str) -> Iterator[Clients]:
    """A client of each daemon, whose content a lease holds."""
    with contextlib.ExitStack() as undo:
        found = {}
        for who, daemon in (("them", containerd), ("us", orlopd)):
            client = undo.enter_context(orlop.Client(str(daemon.address), namespace, timeout_s=60))
            lease = client.leases.create("")
            undo.callback(client.leases.delete, lease.id, synchronous=True)
            found[who] = client.with_lease(lease.id)
        yield found


def made(client: orlop.Client, pair: Pair, media_type: str = OCI_LAYER) -> bytes:
    layer = client.diff.compare(*pair, media_type=media_type, labels=KEPT)
    return b"".join(client.content.chunks(layer.digest))


def entries(archive: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """The members of an archive, each with the bytes of its headers."""
    with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape") as tar:
        for member in tar:
            yield member, archive[member.offset : member.offset_data]


def comparable(archive: bytes) -> bytes:
    """The archive with `differences.LAYERS["whiteout times"]` undone."""
    fixed = bytearray(archive)
    for member, _ in entries(archive):
        if os.path.basename(member.name).startswith(".wh."):
            block = bytearray(archive[member.offset : member.offset + 512])
            block[136:148] = b"%011o\0" % 0
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            fixed[member.offset : member.offset + 512] = block
    return bytes(fixed)


@pytest.mark.parametrize("pair", PAIRS)
def test_layers_are_the_same_byte_for_byte(clients: Clients, pair: Callable[[Path], Pair], tmp_path: Path) -> None:
    mounts = pair(tmp_path)
    theirs, ours = comparable(made(clients["them"], mounts)), made(clients["us"], mounts)
    headers = {who: [(m.name, raw) for m, raw in entries(data)] for who, data in (("us", ours), ("them", theirs))}
    assert headers["us"] == headers["them"]
    assert ours == theirs
    assert len(headers["us"]) > 0


def test_the_same_entries_otherwise_compressed(clients: Clients, tmp_path: Path) -> None:
    mounts = nothing_below(tmp_path)  # no whiteouts, so that the digests can be compared
    labels = {}
    for who, client in clients.items():
        layer = client.diff.compare(*mounts, media_type="", labels={"colour": "blue"})
        assert layer.media_type == OCI_LAYER_GZIP
        data = b"".join(client.content.chunks(layer.digest))
        labels[who] = dict(client.content.info(layer.digest).labels)
        digest = f"sha256:{hashlib.sha256(gzip.decompress(data)).hexdigest()}"
        assert labels[who] == {"colour": "blue", UNCOMPRESSED: digest}
    assert labels["us"] == labels["them"]


def test_zstd_holds_the_same_archive(clients: Clients, tmp_path: Path) -> None:
    from backports import zstd

    mounts = copies(tmp_path)
    client = clients["us"]  # containerd 1.6 knows no zstd here
    layer = client.diff.compare(*mounts, media_type=OCI_LAYER_ZSTD)
    data = b"".join(client.content.chunks(layer.digest))
    assert zstd.decompress(data) == made(client, mounts)


def test_attributes_of_users_are_in_the_layer(clients: Clients, tmp_path: Path) -> None:
    """`differences.LAYERS["attributes"]`."""
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for path in (lower, upper):
        path.mkdir()
        (path / "file").touch()
        os.utime(path / "file", (OLD, OLD))
    os.setxattr(upper / "file", "user.note", b"kept")
    os.setxattr(upper / "file", "trusted.note", b"not kept")
    assert list(entries(made(clients["them"], (bind(lower), bind(upper))))) == []
    [(member, _)] = entries(made(clients["us"], (bind(lower), bind(upper))))
    assert {key: value for key, value in member.pax_headers.items() if "xattr" in key} == {
        "SCHILY.xattr.user.note": "kept"
    }


def test_names_that_would_delete_are_refused(clients: Clients, tmp_path: Path) -> None:
    """`differences.LAYERS["names"]`."""
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / ".wh.passwd").touch()
    assert [member.name for member, _ in entries(made(clients["them"], ([], bind(upper))))] == [".wh.passwd"]
    with pytest.raises(InvalidArgumentError, match=r'entry "\.wh\.passwd"'):
        made(clients["us"], ([], bind(upper)))


REFUSED: dict[str, tuple[dict[str, Any], type[OrlopError]]] = {
    "an unknown media type": ({"media_type": "application/x"}, UnimplementedError),
    "a media type of docker": ({"media_type": DOCKER_LAYER_GZIP}, UnimplementedError),
    "a label that is too long": ({"labels": {"a": "b" * 5000}}, InvalidArgumentError),
    "a ref that someone writes to": ({"ref": "taken"}, UnavailableError),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_are_the_same(clients: Clients, what: str, tmp_path: Path) -> None:
    options, error = REFUSED[what]
    mounts = nothing_below(tmp_path)
    texts = {}
    for who, client in clients.items():
        with client.content.writer("taken"), pytest.raises(error) as caught:
            client.diff.compare(*mounts, **options)
        texts[who] = str(caught.value)
        assert [status.ref for status in client.content.ingests()] == ["taken"]
        client.content.abort("taken")
    if error is UnimplementedError:
        assert texts["us"] == texts["them"]


def test_a_ref_is_begun_again(clients: Clients, tmp_path: Path) -> None:
    mounts = nothing_below(tmp_path)
    for client in clients.values():
        with client.content.writer("mine") as writer:
            writer.write(b"something else")
        layer = client.diff.compare(*mounts, media_type=OCI_LAYER, ref="mine")
        assert layer.digest == client.diff.compare(*mounts, media_type=OCI_LAYER).digest
        assert client.content.ingests() == []


def test_content_that_is_there_gets_the_label_it_lacks(clients: Clients, tmp_path: Path) -> None:
    mounts = nothing_below(tmp_path)
    for client in clients.values():
        layer = client.diff.compare(*mounts, labels={"colour": "blue"})
        client.content.label(layer.digest, {UNCOMPRESSED: ""})
        again = client.diff.compare(*mounts, labels={"colour": "red"})
        assert again == layer
        assert set(client.content.info(layer.digest).labels) == {"colour", UNCOMPRESSED}
        assert client.content.info(layer.digest).labels["colour"] == "blue"


def test_layers_apply_to_what_they_were_made_of(clients: Clients, tmp_path: Path) -> None:
    """Each daemon's layer, applied by the other, gives the same tree."""
    (tmp_path / "trees").mkdir()
    mounts = copies(tmp_path / "trees")
    seen = {}
    for maker, taker in (("us", "them"), ("them", "us"), ("us", "us")):
        data = made(clients[maker], mounts)
        target = tmp_path / f"{maker}-{taker}"
        target.mkdir()
        populate(target)
        digest = clients[taker].content.write(f"layer-{maker}", data, labels=KEPT)
        layer = Descriptor(media_type=OCI_LAYER, digest=Digest.parse(digest), size=len(data))
        clients[taker].diff.apply(layer, bind(target))
        seen[maker, taker] = describe(target)
    assert seen["us", "them"] == seen["them", "us"] == seen["us", "us"]
    expected = describe(Path(mounts[1][0].source))
    del expected["socket"]
    for tree in (expected, seen["us", "us"]):
        del tree["."]
    assert seen["us", "us"] == expected


UNTAKEN = [
    "",
    "application/octet-stream",
    "application/x",
    "application/vnd.oci.image.config.v1+json",
]


@pytest.mark.parametrize("media_type", UNTAKEN)
def test_media_types_that_nobody_unpacks(clients: Clients, media_type: str, tmp_path: Path) -> None:
    answers = {}
    for who, client in clients.items():
        digest = client.content.write("blob", b"bytes", labels=KEPT)
        layer = Descriptor(media_type=media_type, digest=Digest.parse(digest), size=5)
        with pytest.raises(UnknownError) as caught:
            client.diff.apply(layer, bind(tmp_path))
        answers[who] = str(caught.value)
    assert answers["us"] == answers["them"]


TAKEN = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
]


@pytest.mark.parametrize("media_type", TAKEN)
@pytest.mark.parametrize("compression", ["", "gzip"])
def test_media_types_that_both_unpack(clients: Clients, media_type: str, compression: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_text("contents")
    data = made(clients["us"], ([], bind(tmp_path / "source")))
    if compression:
        data = gzip.compress(data)
        media_type += "+gzip" if ".oci." in media_type else ".gzip"
    for who, client in clients.items():
        target = tmp_path / who
        target.mkdir()
        digest = client.content.write("blob", data, labels=KEPT)
        client.diff.apply(Descriptor(media_type=media_type, digest=Digest.parse(digest), size=len(data)), bind(target))
        assert (target / "file").read_text() == "contents"


def test_snapshots_diff_of_our_ctr(
    containerd: Containerd, orlopd: Orlopd, our_ctr: Callable[..., Ctr], go_ctr: Callable[..., Ctr], namespace: str
) -> None:
    """`ctr snapshots diff`, theirs and ours, on both daemons."""
    outputs = {}
    for daemon in (containerd, orlopd):
        go, ours = go_ctr(daemon, namespace), our_ctr(daemon, namespace)
        go("snapshots", "prepare", "one")
        mount = daemon.directory / "mount"
        mount.mkdir(exist_ok=True)
        _write(go, mount, "one", "first")
        go("snapshots", "commit", "first", "one")
        go("snapshots", "prepare", "two", "first")
        _write(go, mount, "two", "second")
        for ctr, words in itertools.product((go, ours), (["two"], ["first"], ["two", "first"], ["first", "two"])):
            plain = ["snapshots", "diff", "--media-type", OCI_LAYER, "--label", "a=b", *words]
            data = comparable(_output(ctr, *plain))
            outputs[daemon.name, ctr is go, *words] = [(m.name, m.mtime) for m, _ in entries(data)]
        for ctr in (go, ours):
            kept = _output(ctr, "snapshots", "diff", "--keep", "first")
            digest = f"sha256:{hashlib.sha256(kept).hexdigest()}"
            assert digest in go("content", "ls", "-q").split()
            assert "containerd.io/gc.root=" in go("content", "ls")
            go("content", "rm", digest)
        assert go("snapshots", "ls").count("\n") == 3  # no view is left
        go("snapshots", "rm", "two")
        go("snapshots", "rm", "first")
    for wanted, names in (
        (("two",), ["second"]),
        (("first",), ["first"]),
        (("two", "first"), [".wh.second"]),
        (("first", "two"), ["second"]),
    ):
        found = [seen for key, seen in outputs.items() if key[2:] == wanted]
        assert len(found) == 4
        assert all([name for name, _ in seen] == names for seen in found)


def test_source_date_epoch_bounds_the_times(
    orlopd: Orlopd, our_ctr: Callable[..., Ctr], namespace: str, tmp_path: Path
) -> None:
    ctr = our_ctr(orlopd, namespace)
    ctr("snapshots", "prepare", "one")
    _write(ctr, tmp_path, "one", "file")
    plain = ["snapshots", "diff", "--media-type", OCI_LAYER, "one"]
    [(member, _)] = entries(_output(ctr, *plain, env={"SOURCE_DATE_EPOCH": "1234567890"}))
    assert member.mtime == 1234567890
    with pytest.raises(subprocess.CalledProcessError):
        _output(ctr, *plain, env={"SOURCE_DATE_EPOCH": "yesterday"})
    ctr("snapshots", "rm", "one")


def _output(ctr: Ctr, *words: str, env: Mapping[str, str] | None = None) -> bytes:
    command = ctr.argv(*words)
    return subprocess.run(command, env=environment(env), check=True, stdout=subprocess.PIPE, timeout=60).stdout


def _write(ctr: Ctr, mount: Path, key: str, name: str) -> None:
    subprocess.run(["sh", "-ec", ctr("snapshots", "mounts", str(mount), key)], check=True, capture_output=True)
    try:
        (mount / name).write_text(name)
    finally:
        subprocess.run(["umount", mount], check=True)
