"""Header compression beside RFC 7541's examples and the `hpack` library."""

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given
from hypothesis import strategies as st

from orlop.http2 import huffman
from orlop.http2.frames import COMPRESSION_ERROR, ConnectionFault
from orlop.http2.hpack import Decoder, encode

LIMIT = 1 << 20

# RFC 7541, appendix C.3 and C.4: three requests on one connection, plain and with Huffman codes.
REQUESTS = [
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")],
    [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "www.example.com"),
        ("cache-control", "no-cache"),
    ],
    [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        (":authority", "www.example.com"),
        ("custom-key", "custom-value"),
    ],
]
PLAIN = [
    "828684410f7777772e6578616d706c652e636f6d",
    "828684be58086e6f2d6361636865",
    "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
]
CODED = [
    "828684418cf1e3c2e5f23a6ba0ab90f4ff",
    "828684be5886a8eb10649cbf",
    "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
]

# Appendix C.5 and C.6: responses in a table of 256 bytes, so that entries are evicted.
RESPONSES = [
    [
        (":status", "302"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ("location", "https://www.example.com"),
    ],
    [
        (":status", "307"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ("location", "https://www.example.com"),
    ],
]
EVICTING = [
    "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
    "4883640effc1c0bf",
]


@pytest.mark.parametrize("blocks", [PLAIN, CODED])
def test_requests_of_the_rfc(blocks):
    decoder = Decoder()
    assert [decoder.decode(bytes.fromhex(block), LIMIT) for block in blocks] == REQUESTS


def test_responses_of_the_rfc_evict():
    decoder = Decoder(256)
    assert [decoder.decode(bytes.fromhex(block), LIMIT) for block in EVICTING] == RESPONSES


names = st.sampled_from([":path", ":method", "te", "x-a", "x-b", "content-type", "grpc-timeout", "x" * 300, ""])
values = st.one_of(
    st.sampled_from(["", "POST", "trailers", "application/grpc", "y" * 3000]), st.text("ab\x7fé", max_size=9)
)
lists = st.lists(st.tuples(names, values), max_size=12)
steps = st.lists(st.one_of(lists, st.integers(0, 4096)), max_size=12)


@given(steps, st.booleans())
def test_whatever_the_library_encodes_is_decoded(steps, coded):
    encoder, decoder = hpack.Encoder(), Decoder()
    for step in steps:
        if isinstance(step, int):
            if step != encoder.header_table_size:  # the library forgets to tell of a size that is set twice
                encoder.header_table_size = step
            continue
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in step]
        assert decoder.decode(encoder.encode(raw, huffman=coded), LIMIT) == step


@given(lists)
def test_the_library_decodes_what_we_encode(fields):
    block = encode(fields)
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
    assert [tuple(field) for field in hpack.Decoder(LIMIT).decode(block, raw=True)] == raw
    assert Decoder().decode(block, LIMIT) == fields


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_as_the_library_does_or_refused(block):
    ours, theirs = Decoder(), hpack.Decoder(LIMIT)
    try:
        expected = [(bytes(n).decode("latin-1"), bytes(v).decode("latin-1")) for n, v in theirs.decode(block, raw=True)]
    except hpack.HPACKError:
        expected = None
    try:
        found = ours.decode(block, LIMIT)
    except ConnectionFault:
        found = None
    if expected is not None and found is not None:
        assert found == expected
    elif expected is not None:
        # Integers of more than five octets are all that we refuse beyond the library.
        assert any(octet >= 0x80 for octet in block)


def test_a_list_beyond_the_limit_is_dropped_but_the_table_follows():
    encoder, decoder = hpack.Encoder(), Decoder()
    assert decoder.decode(encoder.encode([("x-long", "v" * 200), ("x-b", "1")]), 100) is None
    assert decoder.decode(encoder.encode([("x-b", "1")]), 100) == [("x-b", "1")]


@pytest.mark.parametrize(
    "block",
    [
        "80",  # index 0
        "be",  # the dynamic table is empty
        "ff",  # an integer without end
        "ffffffffffff01",  # one that is too large
        "40",  # a name without length
        "400161",  # a value is missing
        "4081",  # a name is missing
        "3fe21f",  # a table of 4097 bytes
        "8220",  # a table size after a field
        "00810061",  # Huffman code padded with zeros
        "0084ffffffff00",  # EOS inside
    ],
)
def test_what_is_no_header_block(block):
    with pytest.raises(ConnectionFault) as caught:
        Decoder().decode(bytes.fromhex(block), LIMIT)
    assert caught.value.code == COMPRESSION_ERROR


def test_generation_tells_whether_equal_blocks_mean_equal_fields():
    encoder, decoder = hpack.Encoder(), Decoder()
    first = encoder.encode([("x-a", "1"), ("te", "trailers")])
    again = encoder.encode([("x-a", "1"), ("te", "trailers")])
    decoder.decode(first, LIMIT)
    before = decoder.generation
    assert decoder.decode(again, LIMIT) == decoder.decode(again, LIMIT)
    assert decoder.generation == before
    decoder.decode(encoder.encode([("x-a", "2")]), LIMIT)
    assert decoder.generation != before


@given(st.binary(max_size=80))
def test_huffman_codes(data):
    coded = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(data)
    assert huffman.decode(coded) == data


@given(st.binary(max_size=40))
def test_what_is_accepted_as_huffman_code_is_one(data):
    try:
        text = huffman.decode(data)
    except huffman.HuffmanError:
        return
    assert HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text) == data
