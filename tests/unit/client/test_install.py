"""What a layer puts onto the host when an image is installed."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from orlop.base.errdefs import AlreadyExistsError, DataLossError, InvalidArgumentError
from orlop.client.install import _install_layer

BIN = ("bin",)


def _layer(*members: tuple[str, bytes, str]) -> io.BytesIO:
    """Members by name, tar's type and, of links, what they name; files hold their own name."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, link, 0o6777
            data = name.encode() if kind == tarfile.REGTYPE else b""
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return io.BytesIO(gzip.compress(file.getvalue()))


def test_programs_and_links_among_them(tmp_path: Path) -> None:
    layer = _layer(
        ("./", tarfile.DIRTYPE, ""),
        ("./bin/", tarfile.DIRTYPE, ""),
        ("./bin/one", tarfile.REGTYPE, ""),
        ("bin/two", tarfile.SYMTYPE, "one"),
        ("bin/three", tarfile.LNKTYPE, "bin/one"),
        ("bin/.wh.four", tarfile.REGTYPE, ""),
        ("bin/deep/five", tarfile.REGTYPE, ""),
        ("lib/six", tarfile.REGTYPE, ""),
        ("etc/seven", tarfile.REGTYPE, ""),
        ("bin/../../eight", tarfile.REGTYPE, ""),
    )
    target = str(tmp_path)
    assert _install_layer(layer, target, BIN, False, "x") == [f"{target}/bin/{one}" for one in ("one", "two", "three")]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bin", "one", "three", "two"]
    assert (tmp_path / "bin/two").read_text() == "./bin/one"
    assert (tmp_path / "bin/one").stat().st_mode & 0o7777 == 0o755
    layer.seek(0)
    with pytest.raises(AlreadyExistsError, match="cannot replace bin/one in"):
        _install_layer(layer, target, BIN, False, "x")
    layer.seek(0)
    assert len(_install_layer(layer, target, BIN, True, "x")) == 3


@pytest.mark.parametrize(
    "member",
    [
        ("bin/x", tarfile.SYMTYPE, "/etc/shadow"),
        ("bin/x", tarfile.SYMTYPE, "../y"),
        ("bin/x", tarfile.LNKTYPE, "etc/shadow"),
        ("bin/x", tarfile.LNKTYPE, "bin/../../y"),
        ("bin/x", tarfile.FIFOTYPE, ""),
        ("bin/x", tarfile.CHRTYPE, ""),
    ],
)
def test_nothing_leads_elsewhere(tmp_path: Path, member: tuple[str, bytes, str]) -> None:
    with pytest.raises(InvalidArgumentError, match="install bin/x"):
        _install_layer(_layer(member), str(tmp_path), BIN, True, "x")
    assert list((tmp_path / "bin").iterdir()) == []


def test_a_damaged_layer(tmp_path: Path) -> None:
    whole = gzip.decompress(_layer(("bin/x", tarfile.REGTYPE, "")).getvalue())
    with pytest.raises(DataLossError, match="install layer x"):
        _install_layer(io.BytesIO(whole[:514]), str(tmp_path), BIN, True, "x")
    assert list((tmp_path / "bin").iterdir()) == []
