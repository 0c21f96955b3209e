"""The corpus against every parser in this process: a result or its own error, and nothing outside is touched."""

import pytest

from tests.hostile import tarballs
from tests.hostile.doors import peak_kb
from tests.hostile.generators import corpus
from tests.hostile.targets import TARGETS
from tests.unit.core.diff.extraction import Place

COUNTS = {
    "archive": 900,
    "manifest": 500,
    "index": 400,
    "config": 400,
    "spec": 400,
    "name": 500,
    "reference": 500,
    "filter": 500,
}


@pytest.mark.parametrize("kind", COUNTS)
def test_bad_input_is_refused_or_read(kind):
    """Most of it must be refused: else the generator makes nothing bad."""
    before = peak_kb()
    outcomes = [TARGETS[kind](blob) for blob in corpus(kind, COUNTS[kind])]
    assert sum(outcomes) > len(outcomes) // 4
    assert peak_kb() - before < 150_000


def test_a_million_entries_in_a_stream(tmp_path):
    """Parsed as they come: a generator that yields a thousand headers a time; nothing is kept of them."""
    thousand = b"".join(tarballs.member(b".wh.%d" % number, magic=tarballs.GNU) for number in range(1000))

    def stream():
        for _ in range(1000):
            yield thousand
        yield tarballs.END

    place, before = Place(tmp_path), peak_kb()
    assert place.extract(blob=stream()).opaque == []
    assert place.names() == {}
    assert peak_kb() - before < 50_000
