"""Headers as Go's archive/tar writes them; that they are the same bytes is shown beside containerd."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.core.diff import tar
from orlop.core.diff.tarwriter import END, Header, encode

KINDS = [tar.REGULAR, tar.LINK, tar.SYMLINK, tar.CHARACTER, tar.BLOCK_DEVICE, tar.DIRECTORY, tar.FIFO]
PARTS = st.binary(min_size=1, max_size=120).filter(lambda part: not set(part) & {0, 0x2F} and part not in (b".", b".."))
PATHS = st.lists(PARTS, min_size=1, max_size=6).map(b"/".join)
IDS = st.one_of(st.integers(0, 0xFFFFFFFE), st.integers(0o7777770, 0o10000010))


@st.composite
def headers(draw):
    kind = draw(st.sampled_from(KINDS))
    linked = kind in (tar.LINK, tar.SYMLINK)
    device = kind in (tar.CHARACTER, tar.BLOCK_DEVICE)
    return Header(
        name=draw(PATHS) + (b"/" if kind == tar.DIRECTORY else b""),
        type=kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(IDS),
        gid=draw(IDS),
        mtime=draw(st.integers(0, 1 << 40)),
        link=draw(PATHS) if linked else b"",
        major=draw(st.integers(0, 4095)) if device else 0,
        minor=draw(st.integers(0, (1 << 20) - 1)) if device else 0,
        xattrs=draw(st.dictionaries(st.sampled_from([b"user.a", b"security.capability"]), st.binary(max_size=300))),
    )


@settings(deadline=None)
@given(st.lists(headers(), max_size=5))
def test_what_is_written_is_what_is_read(written):
    archive = b"".join(map(encode, written)) + END
    assert len(archive) % 512 == 0
    read = list(tar.Reader(iter([archive])))
    assert len(read) == len(written)
    for header, entry in zip(written, read, strict=True):
        for name in ("name", "type", "mode", "uid", "gid", "size", "link", "major", "minor"):
            assert getattr(entry, name) == getattr(header, name), name
        limit = (1 << 63) - 1
        assert entry.mtime == (header.mtime * 10**9 if header.mtime * 10**9 <= limit else 0)
        assert (entry.xattrs or {}) == header.xattrs


@settings(deadline=None)
@given(headers())
def test_the_standard_library_reads_it_too(header):
    with tarfile.open(fileobj=io.BytesIO(encode(header) + END), errors="surrogateescape") as archive:
        [member] = archive.getmembers()
    # tarfile takes the slash off, all of those at the end, and it takes PAX text for UTF-8.
    assert member.name.encode("utf-8", "surrogateescape") == header.name.rstrip(b"/")
    assert (member.mode, member.uid, member.gid) == (header.mode, header.uid, header.gid)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        (b"a" * 100, 1),
        (b"a" * 101, 3),
        (b"d" * 155 + b"/" + b"n" * 100, 1),
        (b"d" * 156 + b"/" + b"n" * 100, 3),
        (b"d" * 100 + b"/" + b"n" * 101, 3),
        ("größe".encode(), 3),
        (b"\xff", 3),
    ],
)
def test_an_extended_header_only_where_it_must_be(name, blocks):
    assert len(encode(Header(name=name, type=tar.REGULAR))) == blocks * 512


def test_a_record_counts_its_own_length():
    """With a value of a length where the number's own digits make it one longer."""
    for size in range(60, 1100):
        block = encode(Header(name=b"n" * size + b"\xff", type=tar.REGULAR))
        record = block[512:-512].rstrip(b"\0")
        assert int(record.split(b" ")[0]) == len(record)


def test_the_extended_header_says_where_it_belongs():
    block = encode(Header(name=b"dir/" + b"x" * 120, type=tar.REGULAR))
    assert block.startswith(b"dir/PaxHeaders.0/xxx")
    block = encode(Header(name=b"d\xc3\xafr/", type=tar.DIRECTORY))
    assert block[:100].rstrip(b"\0") == b"dr/PaxHeaders.0"


def test_a_cut_name_does_not_end_like_a_directory():
    block = encode(Header(name=b"x" * 99 + b"/" + b"y" * 200 + b"\xff", type=tar.REGULAR))
    assert block[-512:-412] == b"x" * 99 + b"\0"


def test_times_before_1970():
    block = encode(Header(name=b"old", type=tar.REGULAR, mtime=-5))
    assert b"12 mtime=-5\n" in block


def test_numbers_that_no_header_can_hold():
    with pytest.raises(ValueError, match="octal"):
        encode(Header(name=b"x", type=tar.CHARACTER, major=1 << 21))
