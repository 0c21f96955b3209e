"""The filter language: what is accepted and refused is what containerd's pkg/filters accepts and refuses."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.base.errdefs import InvalidArgumentError
from orlop.base.filters import ALWAYS, Operator, Selector, adapt, parse, parse_all

OBJECTS: list[dict[str, Any]] = [
    {"name": "foo", "labels": {"foo": "true", 'more complex label with \\ and "': "present", "bar": ""}},
    {"name": "bar", "labels": {"bar": "true", "io.example/x.y": "dots", "a/b|c": "quote"}},
    {"name": "compose", "labels": {"foo": "", "bar": "omg_it's a value"}, "other": "1"},
    {"name": "", "labels": {}},
]


def names(*texts):
    matches = parse_all(texts)
    return [OBJECTS.index(item) for item in OBJECTS if matches(adapt(item))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [0, 1, 2, 3]),
        ("name", [0, 1, 2]),
        ("name==foo", [0]),
        ('name=="foo"', [0]),
        ("name!=foo", [1, 2, 3]),
        ("other==1", [2]),
        ("other!=1", [0, 1, 3]),
        ("name~=^.o", [0, 2]),
        ("name~=/^(foo|bar)$/", [0, 1]),
        ("name~=|^f|", [0]),
        (r'name~="^\x66"', [0]),
        ("labels.foo", [0, 2]),
        ("labels.foo==true", [0]),
        ('labels.foo==""', [2]),
        ("labels.bar,name==compose", [2]),
        ('labels.io."example/x".y==dots', [1]),
        ('labels."io.example/x.y"', [1]),
        (r'labels."more complex label with \\ and \""==present', [0]),
        ('labels."a/b|c"==quote', [1]),
        ("labels.bar~=/it's a/", [2]),
        ("name ==foo", [0]),
        ("name == foo", [0]),
        ("name~=[", []),
        ("unknown", []),
        ("name.ignored==foo", [0]),
    ],
)
def test_selects(text, expected):
    assert names(text) == expected


def test_several_filters_are_alternatives():
    assert names("name==foo", "name==bar") == [0, 1]
    assert names() == [0, 1, 2, 3]
    assert names("name==foo", "") == [0, 1, 2, 3]
    assert parse("").always
    assert parse_all([]) is ALWAYS
    assert not parse("name").always


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" ", "filters: parse error: [ ]: expected field or quoted"),
        ("foo==", "filters: parse error: [foo==]: expected value or quoted"),
        ("foo===bar", 'filters: parse error: [foo >|=|< ==bar]: unsupported operator "==="'),
        ("foo bar", 'filters: parse error: [foo  >|b|< ar]: expected an operator ("=="|"!="|"~=")'),
        ("foo==bar baz", "filters: parse error: [foo==bar >| |< baz]: unexpected input:  "),
        ("foo==bar ,baz", "filters: parse error: [foo==bar >| |< ,baz]: unexpected input:  "),
        ('foo=="a"b', 'filters: parse error: [foo=="a" >|b|< ]: unexpected input: b'),
        ("foo,", "filters: parse error: [foo,]: expected field or quoted"),
        (",foo", "filters: parse error: [ >|,|< foo]: expected field or quoted"),
        ("foo.", "filters: parse error: [foo.]: expected field or quoted"),
        ("foo==.a", "filters: parse error: [foo== >|.|< a]: expected value or quoted"),
        ('foo=="a', 'filters: parse error: [foo== >|"|< a]: quoted literal not terminated'),
        ('foo=="a\n"', 'filters: parse error: [foo== >|"|< a\n"]: quoted literal not terminated'),
        (r'foo=="\d"', 'filters: parse error: [foo== >|"|< \\d"]: illegal escape sequence'),
        (r'foo=="\x1"', 'filters: parse error: [foo== >|"|< \\x1"]: illegal numeric escape sequence'),
        (r'foo=="\400"', 'filters: parse error: [foo== >|"|< \\400"]: unquoting failed: quote syntax error'),
        (r"foo~=/\d/", "filters: parse error: [foo~= >|/|< \\d/]: illegal escape sequence"),
        ("foo==/a/", "filters: parse error: [foo== >|/|< a/]: invalid quote encountered"),
        ("|foo|==a", "filters: parse error: [ >|||< foo|==a]: invalid quote encountered"),
        ("foo==a\0", "filters: parse error: [foo==a >|\0|< ]: unexpected input: \0"),
        ("foo\0", "filters: parse error: [foo >|\0|< ]: unexpected null"),
        ("foo\ufffd", "filters: parse error: [foo >|\ufffd|< ]: rune error"),
        ("föö", 'filters: parse error: [f >|ö|< ö]: expected an operator ("=="|"!="|"~=")'),
        ("foo=a", 'filters: parse error: [foo >|=|< a]: unsupported operator "="'),
    ],
)
def test_refuses_and_says_where(text, message):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_all(["name", text])
    assert caught.value.text == message


def test_a_value_may_be_a_word_of_any_script():
    assert names("name!=grün/weiß:tag@x|y'z") == [0, 1, 2, 3]
    (selector,) = parse('a."b.c"~=x').alternatives[0]
    assert selector == Selector(("a", "b.c"), Operator.MATCHES, "x")


def test_a_missing_field_is_not_equal_and_matches_as_empty():
    assert names("unknown!=x") == [0, 1, 2, 3]
    assert names("unknown~=^$") == [0, 1, 2, 3]
    assert names('unknown==""') == []


@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused(text):
    try:
        found = parse(text)
    except InvalidArgumentError:
        return
    assert found(adapt({})) in {True, False}


def test_text_that_is_not_utf8_is_refused():
    with pytest.raises(InvalidArgumentError, match="rune error"):
        parse("foo" + b"\x80".decode(errors="surrogateescape"))


@given(st.text(st.characters(exclude_characters="\0\n\ufffd", exclude_categories=["Cs"]), max_size=20))
def test_a_quoted_value_is_itself(value):
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    assert parse(f'name=="{escaped}"')(adapt({"name": value})) is (value != "")
