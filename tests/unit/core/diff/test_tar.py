"""The reader of tar headers: malformed ones by name, and any archive beside the standard library's and GNU's."""

import contextlib
import io
import os
import subprocess
import tarfile
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orlop.core.diff import tar
from orlop.core.diff.errors import ArchiveError
from tests.hostile.tarballs import (
    END,
    GNU,
    USTAR,
    V7,
    archive,
    base256,
    device,
    directory,
    hardlink,
    header,
    long_name,
    member,
    old_sparse,
    padded,
    pax,
    raw_pax,
    record,
    sealed,
    symlink,
)


def read(blob, chunk=1 << 20):
    """Every entry with its data."""
    reader = tar.Reader(blob[start : start + chunk] for start in range(0, len(blob), chunk))
    found = []
    for entry in reader:
        data = b"".join(map(bytes, reader.pieces(entry.stored)))
        found.append((entry, data))
    return found


def one(*members, **more):
    ((entry, data),) = read(archive(*members), **more)
    return entry, data


def refused(*members, match):
    with pytest.raises(ArchiveError, match=match):
        read(archive(*members))


# -- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"000644 \0", 0o644),
        (b"   644 \0", 0o644),
        (b"644", 0o644),
        (b"", 0),
        (b"        ", 0),
        (base256(0o644, 8), 0o644),
    ],
)
def test_numbers_in_every_form(field, value):
    assert one(member(mode=field))[0].mode == value


@pytest.mark.parametrize("field", [b"8", b"0x1f", b"-1", b"+1", b"1.5", b"6 4", b"1\n"])
@pytest.mark.parametrize("name", ["mode", "uid", "gid", "size", "mtime"])
def test_what_is_no_number_is_refused(name, field):
    refused(member(**{name: field}), match=f"{name} field is no number")


@pytest.mark.parametrize("value", [b"\x80" + b"\xff" * 11, b"\xbf" + b"\xff" * 11, b"\xc0" + bytes(11)])
@pytest.mark.parametrize("name", ["size", "mtime"])
def test_numbers_that_overflow_are_refused(name, value):
    refused(member(**{name: value}), match="out of range")


def test_a_negative_size_is_refused():
    refused(member(size=base256(-512, 12)), match="negative")
    refused(pax([(b"size", b"-512")]), member(), match="negative")
    refused(member(b"x", kind=b"x", size=base256(-512, 12)), match="extended header of -512 bytes")


def test_a_checksum_of_signed_bytes_is_right_too():
    block = header(b"\xff\xfe")
    wrong = sum(block[:148] + b" " * 8 + block[156:]) - 2 * 256
    assert one(sealed(block, b"%06o\0 " % wrong))[0].name == b"\xff\xfe"


@pytest.mark.parametrize("checksum", [b"0000000\0", b"0012345\0", base256(1 << 40, 8), b"", b"7777777\0"])
def test_a_wrong_checksum_is_refused(checksum):
    refused(member(checksum=checksum), match="checksum")


# -- streams that end or go on where they must not -----------------------------------------------------------------


def test_an_archive_cut_at_every_byte_says_so_or_ends_between_two_entries():
    blob = archive(pax([(b"path", b"name")]), member(data=b"x" * 700), symlink(b"l", b"t"))
    whole = len(blob) - 1024
    for end in range(len(blob)):
        try:
            found = read(blob[:end])
        except ArchiveError:
            continue
        assert len(found) in (0, 1, 2)
        # or in the padding of the last data, which may be missing
        assert end % 512 == 0 or 512 + 13 <= end < 1024 or 1536 + 700 <= end < 2560
        if len(found) == 1:
            assert found[0][1] == b"x" * 700
    assert len(read(blob[:whole])) == 2  # without its trailer


@pytest.mark.parametrize("tail", [b"", b"garbage", bytes(10_000), archive(member(b"second")), b"\xff" * 5000])
def test_what_follows_the_trailer_is_not_looked_at(tail):
    assert [entry.name for entry, _ in read(archive(member(b"first")) + tail)] == [b"first"]


def test_a_single_block_of_zeros_between_entries_is_refused():
    with pytest.raises(ArchiveError, match="block of zeros"):
        read(member(b"a") + bytes(512) + member(b"b") + END)


def test_an_empty_stream_and_one_of_zeros_have_no_entries():
    assert read(b"") == read(bytes(512)) == read(bytes(1024)) == []


@pytest.mark.parametrize("blob", [b"x", b"x" * 511, b"x" * 512, b"x" * 513, b"\x80" * 4096, b"<html>".ljust(2048)])
def test_what_is_no_archive_is_refused(blob):
    with pytest.raises(ArchiveError):
        read(blob)


def test_chunks_of_any_size_give_the_same():
    blob = archive(
        long_name(b"n" * 300),
        member(data=b"1" * 1500),
        old_sparse(b"s", [(0, 3), (100, 4)], b"abcdefg", real_size=200),
        pax([(b"path", b"p" * 200)]),
        member(data=b"2"),
    )
    whole = [(entry.name, entry.size, data) for entry, data in read(blob)]
    for chunk in (1, 7, 511, 512, 513, 1000):
        assert [(entry.name, entry.size, data) for entry, data in read(blob, chunk)] == whole


# -- extended headers ---------------------------------------------------------------------------------------------


def test_an_extended_header_overrides_what_the_header_says():
    records = [(b"path", b"real"), (b"linkpath", b"real target"), (b"uid", b"5"), (b"gid", b"6"), (b"mtime", b"7.5")]
    entry, _ = one(pax(records), symlink(b"shown", b"shown target", uid=1, gid=1))
    assert (entry.name, entry.link, entry.uid, entry.gid) == (b"real", b"real target", 5, 6)
    assert entry.mtime == 7_500_000_000


def test_a_size_of_the_extended_header_decides_where_the_next_header_is():
    """What other readers take for data must not be an entry for us, nor the other way round."""
    hidden = member(b"hidden")
    found = read(archive(pax([(b"size", b"512")]), header(b"f", size=0) + hidden, member(b"after")))
    assert [(entry.name, len(data)) for entry, data in found] == [(b"f", 512), (b"after", 0)]
    found = read(archive(pax([(b"size", b"0")]), header(b"f", size=512), hidden))
    assert [entry.name for entry, _ in found] == [b"f", b"hidden"]


def test_of_records_that_repeat_the_last_holds():
    assert one(pax([(b"path", b"first"), (b"path", b"last")]), member())[0].name == b"last"


def test_an_empty_value_leaves_the_headers_own():
    assert one(pax([(b"path", b""), (b"size", b"")]), member(b"own", b"x"))[0].name == b"own"


def test_of_extended_headers_that_repeat_the_last_holds_alone():
    entry, _ = one(pax([(b"path", b"first"), (b"uid", b"5")]), pax([(b"gid", b"6")]), member(b"own"))
    assert (entry.name, entry.uid, entry.gid) == (b"own", 0, 6)


def test_a_global_header_changes_nothing_and_ends_what_came_before_it():
    """In Go's reader it is an entry of its own."""
    found = read(
        archive(
            pax([(b"path", b"everywhere"), (b"uid", b"9")], b"g"),
            member(b"own"),
            pax([(b"path", b"lost")]),
            pax([(b"comment", b"x")], b"g"),
            member(b"again"),
        )
    )
    assert [(entry.name, entry.uid) for entry, _ in found] == [(b"own", 0), (b"again", 0)]


@pytest.mark.parametrize(
    "raw",
    [
        b"x",
        b"path=x\n",
        b" path=x\n",
        b"0 path=x\n",
        b"8 path=x\n",
        b"11 path=x\n",
        b"10 pathx=\0",
        b"-10 path=x\n",
        b"+10 path=x\n",
        b"1\xb2 path=x\n",
        b"99999999999999999999999 path=x\n",
        b"9 pathxx\n",
        b"5 =x\n",
        b"8 a\0b=x\n",
        b"3 \n",
        b"2 ",
        b"\n",
        record(b"path", b"x") + b"trailing",
        record(b"GNU.sparse.offset", b"0") * 2,
        record(b"GNU.sparse.numbytes", b"0"),
        record(b"GNU.sparse.offset", b"0,1"),
    ],
)
def test_a_malformed_extended_header_is_refused(raw):
    refused(raw_pax(raw), member(), match="extended header")
    refused(raw_pax(raw, b"g"), member(), match="extended header")


@pytest.mark.parametrize(
    "value", [b"x", b"1x", b"--1", b"1.5", b"1e9", b"0x10", b" 1", b"9" * 20, b"9" * 100_000, b"-"]
)
@pytest.mark.parametrize("key", [b"size", b"uid", b"gid"])
def test_a_number_that_is_none_is_refused(key, value):
    refused(pax([(key, value)]), member(), match="is no number")


@pytest.mark.parametrize("value", [b"x", b".", b".5", b"1.x", b"1.-5", b"1.5.5", b"9" * 20, b"1.\xb2"])
def test_a_time_that_is_none_is_refused(value):
    refused(pax([(b"mtime", value)]), member(), match="is no")


def test_a_time_with_a_fraction_of_a_megabyte():
    assert one(pax([(b"mtime", b"1." + b"9" * 1_000_000)]), member())[0].mtime == 1_999_999_999


def test_extended_headers_and_long_names_are_bounded():
    big = tar.MAX_SPECIAL + 1
    for kind in (b"x", b"g", b"L", b"K"):
        refused(header(b"big", kind, size=big), match=f"extended header of {big} bytes")
        refused(header(b"big", kind, size=base256(1 << 60, 12)), match="extended header of")
    one(raw_pax(record(b"comment", b"x" * (tar.MAX_SPECIAL - 18))), member())


def test_many_records_in_one_header():
    count = 60_000
    entry, _ = one(pax([(b"k%d" % number, b"v") for number in range(count)]), member(b"f"))
    assert entry.name == b"f"


def test_long_names_of_gnu():
    entry, _ = one(long_name(b"n" * 300), long_name(b"t" * 300, b"K"), symlink(b"cut", b"cut", magic=GNU))
    assert (entry.name, entry.link) == (b"n" * 300, b"t" * 300)


@pytest.mark.parametrize(
    ("magic", "prefix", "name"),
    [
        (USTAR, b"dir", b"dir/f"),
        (V7, b"dir", b"f"),
        (GNU, b"dir", b"dir/f"),  # as Go before 1.8 wrote it
        (GNU, b"00000000007\x0000000000007\0", b"f"),
    ],
)
def test_a_prefix_belongs_to_the_name_where_the_format_has_one(magic, prefix, name):
    assert one(member(b"f", magic=magic, prefix=prefix))[0].name == name


@pytest.mark.parametrize("kind", [b"A", b"M", b"N", b"D", b"V", b"X", b"\xff", b"8", b"\x01", b"\n"])
def test_an_unknown_type_is_refused(kind):
    refused(member(kind=kind), match="is not supported")


def test_old_types_of_regular_files():
    assert [
        entry.type for entry, _ in read(archive(member(kind=b"\0"), member(kind=b"7"), member(b"d/", kind=b"\0")))
    ] == [
        tar.REGULAR,
        tar.REGULAR,
        tar.DIRECTORY,
    ]


ONE_BLOCK = (b"GNU.sparse.numblocks", b"1")

# -- sparse files -------------------------------------------------------------------------------------------------


def test_old_sparse_maps_go_on_in_blocks_of_their_own():
    segments = [(number * 1000, 10) for number in range(60)]
    entry, data = one(old_sparse(b"s", segments, b"0123456789" * 60, real_size=60_000))
    assert entry.segments == segments
    assert (entry.size, len(data)) == (60_000, 600)


@pytest.mark.parametrize(
    ("segments", "data", "real_size"),
    [
        ([(0, 10), (5, 10)], 20, 100),  # overlapping
        ([(10, 5), (0, 5)], 10, 100),  # descending
        ([(90, 20)], 20, 100),  # beyond the end
        ([(0, 10)], 5, 100),  # more than there is
        ([(0, 5)], 10, 100),  # less than there is
        ([(0, base256(-5, 12))], 0, 100),
        ([(base256(-5, 12), 5)], 5, 100),
        ([(base256((1 << 62) + 1, 12), base256(1 << 62, 12))], 0, base256((1 << 63) - 1, 12)),
        ([(0, base256((1 << 63) - 1, 12)), (base256((1 << 63) - 1, 12), base256((1 << 63) - 1, 12))], 0, 5),
    ],
)
def test_a_lying_sparse_map_is_refused(segments, data, real_size):
    refused(old_sparse(b"s", segments, b"x" * data, real_size=real_size), match="sparse map")


def test_a_sparse_map_without_end_is_refused():
    block = bytearray(header(b"s", b"S", magic=GNU))
    block[386:482] = b"00000000000\x0000000000000\0" * 4
    block[482] = 1
    more = (b"00000000000\x0000000000000\0" * 21) + b"\1" + bytes(7)
    with pytest.raises(ArchiveError, match="cut or too large"):
        read(sealed(bytes(block)) + more * 3000)
    with pytest.raises(ArchiveError, match="cut or too large"):
        read(sealed(bytes(block)) + more)


def test_a_sparse_entry_without_gnus_magic_is_refused():
    refused(member(kind=b"S"), match="GNU's magic")


@pytest.mark.parametrize(
    ("records", "data"),
    [
        ([(b"GNU.sparse.map", b"0,1,2")], b"x"),
        ([(b"GNU.sparse.map", b"0,x"), ONE_BLOCK], b"x"),
        ([(b"GNU.sparse.map", b",")], b"x"),
        ([(b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.numblocks", b"2")], b"x"),
        ([(b"GNU.sparse.map", b"0,-1"), ONE_BLOCK], b"x"),
        ([(b"GNU.sparse.map", b"0,9999999999999999999"), ONE_BLOCK], b"x"),
        ([(b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.size", b"x"), ONE_BLOCK], b"x"),
        ([(b"GNU.sparse.map", b"0,1")], b"x"),
        ([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")], b"x" * 512),
        ([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")], b"1\n" + b"0\n" * 300),
        ([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")], b"999999999999\n".ljust(1024, b"1")),
        ([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")], b"-1\n".ljust(512, b"0")),
        ([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")], b""),
    ],
)
def test_a_lying_sparse_map_in_an_extended_header_is_refused(records, data):
    refused(pax([*records, (b"GNU.sparse.name", b"s")]), member(b"f", data), match=r"sparse|GNU\.sparse")


# -- beside other readers -----------------------------------------------------------------------------------------

names = st.binary(min_size=1, max_size=130).filter(lambda name: b"\0" not in name and not name.endswith(b"/"))
targets = st.binary(min_size=1, max_size=130).filter(lambda name: b"\0" not in name)
ids = st.one_of(st.integers(0, 0o7777777), st.integers(0, 1 << 31))
times = st.one_of(st.integers(0, 1 << 33), st.integers(0, 1 << 33).map(lambda number: number + 0.5))


@st.composite
def members(draw):
    info = tarfile.TarInfo(os.fsdecode(draw(names)))
    info.type = draw(
        st.sampled_from([tarfile.REGTYPE] * 3 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
    )
    data = draw(st.binary(max_size=1100)) if info.type == tarfile.REGTYPE else b""
    info.size = len(data)
    info.mode = draw(st.integers(0, 0o7777))
    info.uid, info.gid = draw(ids), draw(ids)
    info.mtime = draw(times)
    if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname = os.fsdecode(draw(targets))
    if info.type == tarfile.CHRTYPE:
        info.devmajor, info.devminor = draw(st.integers(0, 4095)), draw(st.integers(0, 0o7777777 >> 1))
    return info, data


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(members(), max_size=6),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.sampled_from([1 << 20, 512, 333]),
)
def test_whatever_the_standard_library_writes_is_read_as_it_reads_it(written, dialect, chunk):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=dialect, errors="surrogateescape") as out:
        for info, data in written:
            out.addfile(info, io.BytesIO(data))
    found = read(buffer.getvalue(), chunk)
    assert len(found) == len(written)
    for (info, data), (entry, mine) in zip(written, found, strict=True):
        assert mine == data
        assert entry.name.rstrip(b"/") == os.fsencode(info.name)
        assert entry.link == os.fsencode(info.linkname)
        assert (entry.mode, entry.uid, entry.gid) == (info.mode, info.uid, info.gid)
        whole = info.mtime if dialect == tarfile.PAX_FORMAT else int(info.mtime)
        assert entry.mtime == int(Decimal(str(whole)) * 10**9)
        if info.type == tarfile.CHRTYPE:
            assert (entry.major, entry.minor) == (info.devmajor, info.devminor)


pieces = st.sampled_from(
    [
        member(b"a", b"data"),
        directory(b"d"),
        symlink(b"l", b"a"),
        hardlink(b"h", b"a"),
        device(b"c", 1, 3),
        long_name(b"n" * 120),
        pax([(b"path", b"p" * 120)]),
        pax([(b"size", b"3")]),
        old_sparse(b"s", [(0, 3)], b"abc", real_size=9),
        header(b"z", size=700),
        padded(b"x" * 700),
        bytes(512),
    ]
)
edits = st.lists(st.tuples(st.integers(0, 8000), st.integers(0, 255)), max_size=4)


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(pieces, max_size=7), edits, st.booleans(), st.sampled_from([1 << 20, 512, 100]))
def test_a_damaged_archive_is_read_or_refused_and_nothing_else(parts, changes, seal, chunk):
    blob = bytearray(b"".join(parts) + END)
    for place, value in changes:
        blob[place % len(blob)] = value
        if seal:  # let the damage through the checksum
            start = place % len(blob) // 512 * 512
            blob[start : start + 512] = sealed(bytes(blob[start : start + 512]))
    with contextlib.suppress(ArchiveError):
        for entry, data in read(bytes(blob), chunk):
            assert len(data) == entry.stored
            assert entry.size >= 0
            assert 0 <= entry.mode <= 0o7777


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(members(), min_size=1, max_size=5))
def test_gnu_tar_lists_what_we_read(written):
    """Names, modes and sizes; and it checks the archive's shape on its own."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as out:
        for info, data in written:
            out.addfile(info, io.BytesIO(data))
    listing = subprocess.run(
        ["tar", "-P", "-t", "--null", "--quoting-style=literal", "--show-transformed-names", "-f", "-"],
        input=buffer.getvalue(),
        capture_output=True,
        check=True,
        env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
    ).stdout
    mine = [entry.name for entry, _ in read(buffer.getvalue())]
    assert listing == b"".join(name + b"\n" for name in mine)
