"""Go's regular expressions: what is accepted, what matches, and that no expression takes for ever."""

import random
import re
import string
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.base.regexps import MAX_STATES, RegexpError, compile_regexp


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("", "", True),
        ("b", "abc", True),
        ("^b", "abc", False),
        ("^abc$", "abc", True),
        ("^abc$", "abc\n", False),  # Python's $ would match before the newline
        (r"\Aabc\z", "abc", True),
        ("a.c", "a\nc", False),
        ("(?s)a.c", "a\nc", True),
        ("(?m)^c$", "a\nc\nd", True),
        ("(?i)HeLLo", "hEllO", True),
        ("(?i:a)b", "AB", False),
        ("(?i:a)b", "Ab", True),
        ("(?i)k", "\u212a", True),  # Kelvin sign
        ("(?-i)a", "A", False),
        ("a{2,3}", "xaax", True),
        ("^a{2}$", "aaa", False),
        ("^a{2,}$", "aaaa", True),
        ("a{,2}", "a{,2}", True),
        ("^x{0}$", "", True),
        ("^(a|b|)$", "", True),
        ("^(?P<name>a+)(?<other>b?)$", "aab", True),
        (r"\bcat\b", "a cat.", True),
        (r"\bcat\b", "concat", False),
        (r"\Bcat", "concat", True),
        (r"^\d+\D\s\S\w\W$", "12x yz-", True),
        (r"^[[:alpha:]]+[[:^digit:]]$", "abc-", True),
        (r"^[^a-c\d]$", "7", False),
        (r"^[]a-]+$", "]-a", True),
        (r"^\pL\p{Lu}\P{L}\p{^L}$", "xX12", True),
        (r"^\x41\x{1F600}\101\*\_$", "A\U0001f600A*_", True),
        (r"^\Qa.b*\E+$", "a.b**", True),
        (r"^[\]\-\\]+$", "]-\\", True),
        ("x*?y+?", "xxy", True),
    ],
)
def test_matches_as_go_does(pattern, text, matches):
    assert compile_regexp(pattern).search(text) is matches


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        ")",
        "a)",
        "[a",
        "[z-a]",
        "*",
        "a**",
        "a{2}{3}",
        "+a",
        "a|*",
        "{2}",
        "a{1001}",
        "(a{100}){11}",
        "a{3,2}",
        r"\1",
        r"(a)\1",
        r"\8",
        r"\C",
        r"\Z",
        r"\y",
        "\\",
        r"\x{110000}",
        r"\xg0",
        r"\p{Nope}",
        r"\pQ",
        "[[:nope:]]",
        "(?=a)",
        "(?!a)",
        "(?<=a)",
        "(?<!a)",
        "(?>a)",
        "(?P=n)",
        "(?P<n>a)(?P<n>b)",
        "(?P<>a)",
        "(?#x)",
        "(?i-)",
        "(?",
        "(" * 500 + ")" * 500,
        "(a{900}b{900}c{900}d{900})",
        "a" * 100000,
    ],
)
def test_refuses_what_go_refuses_and_what_is_too_large(pattern):
    with pytest.raises(RegexpError):
        compile_regexp(pattern)


@pytest.mark.parametrize(
    "pattern", ["(a*)*$b", "(a|a)*$b", "(a|aa)+$b", "(.*.*.*.*.*.*x)+y", "(a?){100}a{100}$b", "^(a+)+$b"]
)
def test_no_expression_takes_for_ever(pattern):
    assert not compile_regexp(pattern).search("a" * 2000)


def test_states_are_bounded():
    assert compile_regexp("a" * (MAX_STATES - 10)).search("a" * MAX_STATES)
    with pytest.raises(RegexpError, match="too large"):
        compile_regexp("a" * MAX_STATES)


@pytest.mark.parametrize("pattern", ["(a|b)*a(a|b){330}c", r"(?m)(\b|^|a|b|\n)*a(?:\b[ab]|[ab\n]$|[ab]){120}c"])
def test_what_is_remembered_is_bounded_whatever_the_text(pattern):
    """Once each set of states that was met was kept: 60 MB for one expression, and as much for the next."""
    rng = random.Random(1)
    text = "".join(rng.choice("ab\n ") for _ in range(3000)) + "".join(map(chr, range(0x100, 0x900)))
    tracemalloc.start()
    try:
        compiled = compile_regexp(pattern)
        for _ in range(2):
            compiled.search(text)
        assert tracemalloc.get_traced_memory()[0] < 3_000_000
    finally:
        tracemalloc.stop()


ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "c", r"\d", r"\w", "^", "$", r"\b", "(?:)"])


def _combine(children):
    return st.one_of(
        st.lists(children, min_size=1, max_size=3).map("".join),
        st.lists(children, min_size=1, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(children, st.sampled_from(["*", "+", "?", "{0,2}", "{2}", "*?"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    )


@given(st.recursive(ATOMS, _combine, max_leaves=6), st.text("abc1 \n", max_size=8))
def test_agrees_with_pythons_where_the_languages_agree(pattern, text):
    # $ means the very end in Go; \d and \w are of ASCII alone.
    python = re.compile(pattern.replace("$", r"\Z"), re.ASCII)
    assert compile_regexp(pattern).search(text) is (python.search(text) is not None)


@given(st.text(string.printable, max_size=30), st.text(max_size=20))
def test_any_text_compiles_or_is_refused(pattern, text):
    try:
        compiled = compile_regexp(pattern)
    except RegexpError:
        return
    assert compiled.search(text) in {True, False}
