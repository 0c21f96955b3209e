"""Compressed blobs that lie, burst, end too early or go on too long."""

import contextlib
import gzip
import hashlib
import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from functools import partial

import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orlop.core.diff.errors import ArchiveError, LimitError
from orlop.core.diff.stream import CHUNK, Growing, Pipeline, uncompressed

DATA = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(256)) * 40
SKIPPABLE = b"\x50\x2a\x4d\x18" + struct.pack("<I", 5) + b"notes"


def whole(blob: bytes, step: int = 1 << 18) -> bytes:
    source = io.BytesIO(blob)
    return b"".join(uncompressed(lambda size: source.read(min(size, step))))


PACKED = {"gzip": gzip.compress(DATA), "zstd": zstd.compress(DATA)}
each = pytest.mark.parametrize("packed", PACKED.values(), ids=PACKED)


@each
def test_streams_in_a_row_are_one(packed):
    assert whole(packed, 1) == DATA
    for count in (1, 2, 3):
        for step in (3, 1000, 1 << 18):
            assert whole(packed * count, step) == DATA * count


@each
def test_a_cut_stream_is_refused_wherever_it_is_cut(packed):
    for end in [*range(12, 60), len(packed) // 2, *range(len(packed) - 12, len(packed))]:
        with pytest.raises(ArchiveError, match=r"ends too early|damaged"):
            whole(packed[:end])


@each
def test_a_stream_cut_in_its_second_part_is_refused(packed):
    for end in (1, 5, 20, len(packed) - 1):
        with pytest.raises(ArchiveError):
            whole(packed + packed[:end])


@each
@pytest.mark.parametrize("tail", [b"x", b"garbage behind", b"\xff" * 100_000, b"\0garbage", b"\0" * 300_000 + b"x"])
def test_garbage_behind_a_stream_is_refused(packed, tail):
    with pytest.raises(ArchiveError):
        whole(packed + tail)


def test_zeros_behind_a_gzip_stream_are_padding():
    assert whole(PACKED["gzip"] + bytes(700_000)) == DATA


def test_another_compression_behind_a_stream_is_refused():
    with pytest.raises(ArchiveError):
        whole(PACKED["gzip"] + PACKED["zstd"])
    with pytest.raises(ArchiveError):
        whole(PACKED["zstd"] + PACKED["gzip"])


def test_frames_to_be_skipped_are_skipped():
    assert whole(SKIPPABLE + PACKED["zstd"] + SKIPPABLE + PACKED["zstd"]) == DATA * 2
    assert whole(SKIPPABLE) == b""


def test_a_frame_to_be_skipped_that_lies_about_its_size():
    with pytest.raises(ArchiveError):
        whole(b"\x50\x2a\x4d\x18" + b"\xff\xff\xff\xff" + b"x" * 1000)


@pytest.mark.parametrize("place", [-8, -4, -1])
def test_a_wrong_checksum_or_length_of_gzip_is_refused(place):
    blob = bytearray(PACKED["gzip"])
    blob[place] ^= 1
    with pytest.raises(ArchiveError, match="damaged"):
        whole(bytes(blob))


def test_a_wrong_checksum_of_zstd_is_refused():
    blob = bytearray(zstd.compress(DATA, options={zstd.CompressionParameter.checksum_flag: 1}))
    blob[-1] ^= 1
    with pytest.raises(ArchiveError, match="damaged"):
        whole(bytes(blob))


def test_gzip_with_every_optional_field():
    body = zlib.compressobj(wbits=-15)
    raw = body.compress(DATA) + body.flush()
    trailer = struct.pack("<II", zlib.crc32(DATA), len(DATA))
    head = b"\x1f\x8b\x08\x1e" + bytes(6) + struct.pack("<H", 3) + b"abc" + b"name\0" + b"comment\0"
    assert whole(head + struct.pack("<H", zlib.crc32(head) & 0xFFFF) + raw + trailer) == DATA
    with pytest.raises(ArchiveError):
        whole(b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 1_000_000)  # a name without end


def test_a_zstd_window_that_would_take_gigabytes_is_refused():
    """Descriptor byte 0xF8: a window of 2^41 bytes."""
    with pytest.raises(ArchiveError, match="damaged"):
        whole(b"\x28\xb5\x2f\xfd\x00\xf8" + b"\x01\x00\x00")


def test_many_empty_gzip_members():
    assert whole(gzip.compress(b"") * 20_000 + PACKED["gzip"]) == DATA


def test_many_empty_zstd_frames():
    assert whole(zstd.compress(b"") * 50_000 + PACKED["zstd"]) == DATA


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(PACKED)),
    st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 40_000),
)
def test_a_damaged_stream_is_refused_or_read(compression, changes, end):
    blob = bytearray(PACKED[compression])
    for place, value in changes:
        blob[place % len(blob)] = value
    with contextlib.suppress(ArchiveError):
        whole(bytes(blob[: max(end % len(blob), 4)]))


def bomb(compression: str) -> bytes:
    """Four gigabytes of zeros."""
    if compression == "zstd":
        return zstd.compress(bytes(64 << 20)) * 64
    packer = zlib.compressobj(1, wbits=31)
    piece = bytes(16 << 20)
    return packer.compress(piece) + b"".join(packer.compress(piece) for _ in range(15)) + packer.flush()


def test_output_comes_in_bounded_pieces():
    for compression in PACKED:
        source = io.BytesIO(bomb(compression))
        for number, chunk in enumerate(uncompressed(source.read)):
            assert len(chunk) <= CHUNK
            if number > 300:
                break


@pytest.mark.parametrize("compression", sorted(PACKED))
def test_a_bomb_ends_at_the_limit(compression, tmp_path):
    (tmp_path / "bomb").write_bytes(bomb(compression))
    with open(tmp_path / "bomb", "rb") as blob:
        pipeline = Pipeline(partial(os.read, blob.fileno()), limit=100 << 20)
        pipeline.start()
        with pytest.raises(LimitError, match="more than 104857600 bytes uncompressed"):
            for _chunk in pipeline:
                pass
        pipeline.finish()
    assert pipeline.size <= (100 << 20) + CHUNK


def test_a_bomb_costs_no_memory(tmp_path):
    (tmp_path / "bomb").write_bytes(bomb("zstd"))
    program = (
        "import sys; from orlop.core.diff.stream import Pipeline\n"
        "f = open(sys.argv[1], 'rb'); p = Pipeline(f.read1, limit=1 << 40); p.start()\n"
        "for n, _ in enumerate(p):\n    if n > 1500: break\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"  # ru_maxrss is the parent's too
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "bomb"], capture_output=True, check=True)
    assert int(done.stdout) < 120_000  # kilobytes, of which the interpreter takes a quarter


def test_a_blob_that_cannot_be_read_says_so():
    fd = os.open(".", os.O_RDONLY)
    try:
        pipeline = Pipeline(partial(os.read, fd), limit=1)
        pipeline.start()
        with pytest.raises(IsADirectoryError):
            list(pipeline)
        pipeline.finish()
    finally:
        os.close(fd)


def test_a_file_that_grows_is_read_as_far_as_is_told(tmp_path):
    data = os.urandom(100_000)
    more = os.eventfd(0)
    with open(tmp_path / "file", "wb+", buffering=0) as file, open(tmp_path / "file", "rb") as reading:
        file.write(data[:60_000])
        growing = Growing(reading.fileno(), more, len(data))
        os.eventfd_write(more, 10)
        assert growing.read(4) == data[:4]
        assert growing.read(1 << 20) == data[4:10]
        threading.Timer(0.05, os.eventfd_write, (more, 50_000)).start()
        assert growing.read(1 << 20) == data[10:50_010]
        os.eventfd_write(more, 49_990 + 5)  # more than was announced
        assert growing.read(1 << 20) == data[50_010:60_000]
        with pytest.raises(ArchiveError, match="ends before"):
            growing.read(1 << 20)
        file.write(data[60_000:] + b"other")
        rest = b""
        while part := growing.read(1 << 20):
            rest += part
        assert rest == data[60_000:]
    os.close(more)
