"""Identifiers, namespaces, labels, update masks, and Go's quoting."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.base import fieldmask, identifiers, labels, namespaces
from orlop.base.errdefs import FailedPreconditionError, InvalidArgumentError
from orlop.base.quoting import QuoteSyntaxError, quote, unquote


@pytest.mark.parametrize("identifier", ["default", "a", "A.b_c-d", "0", "default-default", "Default.A", "x" * 76])
def test_identifiers(identifier):
    assert identifiers.validate(identifier) == identifier


@pytest.mark.parametrize(
    ("identifier", "text"),
    [
        ("", "identifier must not be empty"),
        ("a/b", 'identifier "a/b" must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$'),
        ("x" * 77, f'identifier "{"x" * 77}" greater than maximum length (76 characters)'),
        ("ä" * 39, f'identifier "{"ä" * 39}" greater than maximum length (76 characters)'),
        ("a\n", r'identifier "a\n" must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$'),
    ],
)
def test_no_identifiers(identifier, text):
    with pytest.raises(InvalidArgumentError) as caught:
        identifiers.validate(identifier)
    assert str(caught.value) == f"{text}: invalid argument"


@pytest.mark.parametrize("identifier", [".", "..", "-a", "a-", "a..b", "a--b", "a b", "grün", "a.", "\0", "/", "a\\b"])
def test_what_a_path_could_suffer_from_is_refused(identifier):
    with pytest.raises(InvalidArgumentError):
        identifiers.validate(identifier)


@given(st.text(max_size=100))
def test_valid_identifiers_are_safe_components_of_paths(text):
    try:
        identifiers.validate(text)
    except InvalidArgumentError:
        return
    assert re.fullmatch("[A-Za-z0-9._-]{1,76}", text)
    assert text not in {".", ".."}


def test_namespaces():
    assert namespaces.require("default") == "default"
    with pytest.raises(FailedPreconditionError, match="namespace is required"):
        namespaces.require("")
    with pytest.raises(InvalidArgumentError, match='namespace validation: identifier "a/b"'):
        namespaces.require("a/b")
    assert namespaces.from_environment({}) == "default"
    assert namespaces.from_environment({"CONTAINERD_NAMESPACE": "foo"}) == "foo"


def test_labels():
    labels.validate("k" * 2048, "v" * 2048)
    with pytest.raises(InvalidArgumentError) as caught:
        labels.validate_all({"fine": "", "k" * 100: "v" * 4000})
    assert str(caught.value) == (
        "label key and value length (4100 bytes) greater than maximum size (4096 bytes), "
        f"key: {'k' * 64}: invalid argument"
    )


def test_update_masks():
    paths = fieldmask.parse(["image", "labels.a.b/c", "labels"], fields={"image", "labels"}, maps={"labels"}, what="x")
    assert paths == [fieldmask.Path("image"), fieldmask.Path("labels", "a.b/c"), fieldmask.Path("labels")]
    with pytest.raises(InvalidArgumentError, match='cannot update "id" field on container "web"'):
        fieldmask.parse(["id"], fields={"image"}, maps=(), what='container "web"')


def test_maps_are_merged_by_key():
    current = {"a": "1", "b": "2"}
    assert fieldmask.merge(current, {"b": "3", "c": "4"}, "b") == {"a": "1", "b": "3"}
    assert fieldmask.merge(current, {}, "b") == {"a": "1"}
    assert fieldmask.merge(current, {"b": ""}, "b") == {"a": "1"}
    assert fieldmask.merge(current, {"c": "4", "d": ""}, None) == {"c": "4"}


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("a", '"a"'),
        ('"', r'"\""'),
        ("\n\t\\", r'"\n\t\\"'),
        ("\x00\x7f", r'"\x00\x7f"'),
        ("ä €", '"ä €"'),
        ("\u200b", r'"\u200b"'),
        ("\udcff", r'"\xff"'),
        ("\U000e0001", r'"\U000e0001"'),
    ],
)
def test_quote(text, quoted):
    assert quote(text) == quoted


@pytest.mark.parametrize(
    "literal", ["", '"', '"a', "'ab'", r'"\q"', r'"\xz1"', r'"\'"', '"a"b"', r'"\uZZZZ"', '"\n"', "`a`"]
)
def test_no_quoted_text(literal):
    with pytest.raises(QuoteSyntaxError):
        unquote(literal)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_quoting_can_be_undone(text):
    assert unquote(quote(text)) == text
