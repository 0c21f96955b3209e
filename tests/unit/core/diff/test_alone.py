"""Layers extracted before those below them are known: refused, or what they would have been."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orlop.core.diff.errors import ArchiveError
from tests.hostile.tarballs import directory, hardlink, member, symlink
from tests.unit.core.diff.extraction import Place

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="making whiteouts and giving files away needs root")
NAMES = (b"a", b"b", b"a/a", b"a/b", b"b/a", b"a/a/a")


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.mark.parametrize(
    "members",
    [
        (member(b"usr/file", b"x"),),
        (directory(b"usr"), member(b"usr/bin/file", b"x")),
        (directory(b"etc"), hardlink(b"etc/again", b"etc/below")),
        (member(b"usr/.wh.gone", b""),),
        (member(b".wh..wh..opq", b""),),
        (symlink(b"lib", b"usr/lib"), member(b"lib/file", b"x")),
    ],
    ids=["parent", "grandparent", "link", "whiteout's parent", "opaque root", "behind a link"],
)
def test_what_depends_on_the_layers_below_is_refused(place, members):
    with pytest.raises(ArchiveError):
        place.extract(*members, layered=True, alone=True)


@root_only
def test_a_layer_with_all_its_directories_is_extracted(place):
    place.extract(
        directory(b"usr"),
        member(b"usr/file", b"x"),
        hardlink(b"usr/again", b"usr/file"),
        directory(b"usr/lib"),
        symlink(b"lib", b"usr/lib"),
        member(b"lib/inside", b"x"),
        member(b"usr/.wh.gone", b""),
        member(b"usr/lib/.wh..wh..opq", b""),
        layered=True,
        alone=True,
    )
    names = place.names()
    assert names["usr/gone"] == "char 0:0"
    assert names["usr/lib/inside"] == "file"
    assert place.tree is not None
    assert place.tree.opaque == {b"usr/lib"}


def _path(draw) -> bytes:
    return draw(st.sampled_from(NAMES))


@st.composite
def entries(draw) -> list[bytes]:
    made = []
    for _ in range(draw(st.integers(1, 7))):
        name = _path(draw)
        head, slash, base = name.rpartition(b"/")
        made.append(
            draw(
                st.sampled_from(
                    [
                        member(name, b"x"),
                        directory(name),
                        directory(name),
                        symlink(name, _path(draw)),
                        hardlink(name, _path(draw)),
                        member(head + slash + b".wh." + base, b""),
                        member(head + slash + b".wh..wh..opq", b""),
                    ]
                )
            )
        )
    return made


@root_only
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(below=entries(), layer=entries())
def test_what_is_not_refused_comes_out_the_same(tmp_path_factory, below, layer):
    base = tmp_path_factory.mktemp("alone")
    lower, upper, alone = (_place(base / name) for name in ("below", "upper", "alone"))
    try:
        lower.extract(*below)
    except ArchiveError:
        return
    try:
        unknown = alone.extract(*layer, layered=True, alone=True)
    except ArchiveError:
        return
    known = upper.extract(*layer, layered=True, lower=lower.root)
    assert alone.names() == upper.names()
    assert unknown.opaque == known.opaque
    assert [path.lstat().st_mode for path in sorted(alone.root.rglob("*"))] == [
        path.lstat().st_mode for path in sorted(upper.root.rglob("*"))
    ]


def _place(base) -> Place:
    base.mkdir()
    return Place(base)
