"""Archives that want out of their root, or in somebody's way: each attack by its name."""

import contextlib
import os
import stat

import pytest

from orlop.core.diff.errors import ArchiveError, LimitError
from orlop.core.diff.extract import Limits
from tests.hostile.tarballs import (
    base256,
    device,
    directory,
    hardlink,
    header,
    long_name,
    member,
    old_sparse,
    pax,
    symlink,
)
from tests.unit.core.diff.extraction import Place

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="making devices and giving files away needs root")


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


# -- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lands_at"),
    [
        (b"../escape", "escape"),
        (b"../../../../../../escape", "escape"),
        (b"a/../../escape", "escape"),
        (b"./../escape", "escape"),
        (b"/escape", "escape"),
        (b"//escape", "escape"),
        (b"/../escape", "escape"),
        (b"a/./b//c/../escape", "a/b/escape"),
        (b"...", "..."),
        (b"..a/..", ""),
        (b"a/.../b", "a/.../b"),
        (b"\\..\\escape", "\\..\\escape"),
        (b"a\nb", "a\nb"),
        (b" ", " "),
        (b"-rf", "-rf"),
    ],
)
def test_a_climbing_or_absolute_name_stays_inside(place, name, lands_at):
    place.extract(member(name, b"x"))
    files = [path for path, kind in place.names().items() if kind == "file"]
    assert files == ([lands_at] if lands_at else [])


@pytest.mark.parametrize("name", [b"", b".", b"./", b"/", b"..", b"a/..", b"../../"])
@pytest.mark.parametrize("make", [member, directory, lambda name: symlink(name, b"/outside")])
def test_a_name_that_is_the_root_changes_nothing(place, name, make):
    before = place.root.stat()
    place.extract(make(name))
    assert place.names() == {}
    after = place.root.stat()
    assert (after.st_mode, after.st_uid, after.st_ino) == (before.st_mode, before.st_uid, before.st_ino)


def test_a_name_that_is_not_utf8_is_kept_byte_for_byte(place):
    names = [b"latin-\xe9", b"\xff\xfe", b"\xed\xa0\x80", b"half-\xc3", b"\xf0\x9f\x92\xa9"]
    place.extract(*(member(name) for name in names))
    assert sorted(os.listdir(os.fsencode(place.root))) == sorted(names)


def test_a_zero_byte_ends_a_name_in_a_header(place):
    place.extract(member(b"seen\0/../../hidden"), long_name(b"long\0../hidden"), member(b"x"))
    assert place.names() == {"seen": "file", "long": "file"}


def test_a_zero_byte_in_an_extended_name_is_refused(place):
    with pytest.raises(ArchiveError, match="zero byte"):
        place.extract(pax([(b"path", b"a\0b")]), member())


def test_a_component_longer_than_a_name_can_be_is_the_archives_fault(place):
    with pytest.raises(ArchiveError, match="too long"):
        place.extract(pax([(b"path", b"n" * 256)]), member())


def test_a_path_longer_than_a_path_can_be_is_refused(place):
    with pytest.raises(ArchiveError, match="a path of 4999 bytes"):
        place.extract(pax([(b"path", b"d/" * 2500)]), member())


# -- symbolic links -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", [b"/outside", b"../outside", b"../../../../outside", b"/../outside", b"./../outside"]
)
def test_a_link_out_and_a_write_through_it_stays_inside(place, target):
    place.extract(symlink(b"door", target), member(b"door/secret", b"changed"))
    assert place.names() == {"door": f"-> {target.decode()}", "outside": "dir", "outside/secret": "file"}
    assert (place.root / "outside/secret").read_bytes() == b"changed"


def test_a_chain_of_links_out_stays_inside(place):
    place.extract(
        symlink(b"a", b".."),
        symlink(b"b", b"a/.."),
        symlink(b"c", b"b/../outside"),
        member(b"c/secret", b"changed"),
    )
    assert place.names()["outside/secret"] == "file"


def test_a_link_is_replaced_and_not_written_through(place):
    place.extract(symlink(b"secret", b"../outside/secret"), member(b"secret", b"changed"))
    assert place.names() == {"secret": "file"}


def test_a_directory_takes_the_place_of_a_link_to_a_directory(place):
    place.extract(directory(b"real"), symlink(b"d", b"real"), directory(b"d", mode=0o700), member(b"d/f"))
    assert place.names() == {"real": "dir", "d": "dir", "d/f": "file"}
    assert stat.S_IMODE((place.root / "real").stat().st_mode) == 0o755


def test_a_directory_swapped_for_a_link_between_two_of_its_files(place):
    """The first file opens the directory; what the second is written through must be looked up anew."""
    place.extract(
        directory(b"d"),
        member(b"d/one"),
        symlink(b"d", b"../outside"),
        member(b"d/secret", b"changed"),
    )
    assert place.names() == {"d": "-> ../outside", "outside": "dir", "outside/secret": "file"}


def test_a_parent_swapped_for_a_link_deep_above(place):
    place.extract(
        member(b"a/b/c/one"),
        symlink(b"a/b", b"../../../outside"),
        member(b"a/b/c/two"),
        member(b"a/b/secret"),
    )
    assert place.names() == {
        "a": "dir",
        "a/b": "-> ../../../outside",
        "outside": "dir",
        "outside/c": "dir",
        "outside/c/two": "file",
        "outside/secret": "file",
    }


def test_links_in_a_ring_end(place):
    with pytest.raises(ArchiveError, match="too many links"):
        place.extract(symlink(b"a", b"b"), symlink(b"b", b"a"), member(b"a/f"))


def test_links_that_multiply_end(place):
    """Each goes twice through the one before: 2^30 steps if nobody counted."""
    links = [symlink(b"l0", b".")]
    links += [symlink(b"l%d" % number, b"l%d/l%d" % (number - 1, number - 1)) for number in range(1, 30)]
    with pytest.raises(ArchiveError, match="too many links"):
        place.extract(*links, member(b"l29/f"))


def test_a_link_to_a_file_is_no_parent(place):
    with pytest.raises(ArchiveError, match="not a directory"):
        place.extract(member(b"f"), symlink(b"l", b"f"), member(b"l/x"))


@pytest.mark.parametrize("target", [b"", b"\0"])
def test_a_link_without_a_target_is_refused(place, target):
    with pytest.raises(ArchiveError, match="without a target"):
        place.extract(symlink(b"l", target))


def test_a_link_with_an_endless_target_is_refused(place):
    with pytest.raises(ArchiveError, match="too long"):
        place.extract(long_name(b"t" * 5000, b"K"), symlink(b"l", b""))


# -- hard links ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [b"../outside/secret", b"/../outside/secret", b"../../outside/secret"])
def test_a_hard_link_out_finds_nothing(place, target):
    with pytest.raises(ArchiveError, match="does not exist"):
        place.extract(hardlink(b"l", target))


def test_a_hard_link_through_a_link_out_finds_nothing(place):
    with pytest.raises(ArchiveError, match="does not exist"):
        place.extract(symlink(b"door", b"/outside"), hardlink(b"l", b"door/secret"))


def test_a_hard_link_to_a_link_out_and_a_write_through_its_name(place):
    """The link itself gets the second name; a file of that name replaces it and never follows it."""
    place.extract(
        symlink(b"l", b"../outside/secret"),
        hardlink(b"again", b"l", mode=0o777),
        member(b"again", b"changed"),
    )
    assert place.names() == {"again": "file", "l": "-> ../outside/secret"}


def test_a_hard_link_to_a_link_changes_nothing_through_it(place):
    """Owner, mode and times of such an entry are the link's, not its target's."""
    place.extract(
        member(b"target", b"x", mode=0o600),
        symlink(b"l", b"target"),
        hardlink(b"again", b"l", mode=0o4777, mtime=5),
    )
    status = (place.root / "target").stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_mtime == 1_500_000_000
    assert (place.root / "again").lstat().st_mtime == 5


def test_a_hard_link_to_itself_is_refused(place):
    with pytest.raises(ArchiveError, match="links to itself"):
        place.extract(member(b"f"), hardlink(b"./f", b"/f"))


def test_a_hard_link_to_itself_that_is_not_there_is_refused(place):
    with pytest.raises(ArchiveError, match="does not exist"):
        place.extract(hardlink(b"f", b"f"))


def test_a_hard_link_to_itself_by_another_path_is_refused(place):
    with pytest.raises(ArchiveError, match="links to itself"):
        place.extract(directory(b"d"), symlink(b"e", b"d"), member(b"d/f"), hardlink(b"e/f", b"d/f"))


@pytest.mark.parametrize("target", [b"d", b"/", b"", b".", b"d/.."])
def test_a_hard_link_to_a_directory_is_refused(place, target):
    with pytest.raises(ArchiveError, match=r"is a directory|does not exist"):
        place.extract(directory(b"d"), hardlink(b"l", target))


def test_a_hard_link_onto_a_directory_that_holds_its_target(place):
    with pytest.raises(ArchiveError, match="takes the place of"):
        place.extract(member(b"d/f"), hardlink(b"d", b"d/f"))


def test_a_hard_link_to_what_comes_later_finds_nothing(place):
    with pytest.raises(ArchiveError, match="does not exist"):
        place.extract(hardlink(b"l", b"f"), member(b"f"))


@root_only
def test_a_hard_link_to_a_device_is_the_device(place):
    place.extract(device(b"null", 1, 3, mode=0o600), hardlink(b"again", b"null", mode=0o600))
    assert place.names() == {"null": "char 1:3", "again": "char 1:3"}
    assert (place.root / "again").stat().st_nlink == 2


def test_a_hard_link_has_no_data_whatever_its_size_says(place):
    """As in Go's archive/tar: the next header follows at once."""
    place.extract(member(b"f", b"x"), hardlink(b"l", b"f", size=512), member(b"g"))
    assert place.names() == {"f": "file", "l": "file", "g": "file"}


# -- whiteouts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh...", b"d/.wh..", b"d/.wh..."])
@pytest.mark.parametrize("how", ["layered", "merging", "empty"])
def test_a_whiteout_of_dots_or_of_nothing_is_refused(place, name, how):
    with pytest.raises(ArchiveError, match="no valid name"):
        place.extract(member(b"d/f"), member(name), layered=how == "layered", merging=how == "merging")


@pytest.mark.parametrize("name", [b".wh..", b".wh...", b"d/.wh..."])
def test_a_whiteout_cannot_delete_the_root_or_above(place, name):
    (place.root / "kept").touch()
    with pytest.raises(ArchiveError, match="no valid name"):
        place.extract(member(name), merging=True)
    assert place.names()["kept"] == "file"


def test_a_whiteout_of_a_link_deletes_the_link(place):
    (place.root / "door").symlink_to("../outside")
    (place.root / "also").symlink_to("../outside/secret")
    place.extract(member(b".wh.door"), member(b".wh.also"), merging=True)
    assert place.names() == {}


def test_a_whiteout_through_a_link_out_stays_inside(place):
    (place.root / "door").symlink_to("../outside")
    place.extract(member(b"door/.wh.secret"), merging=True)
    assert place.names() == {"door": "-> ../outside", "outside": "dir"}


def test_an_opaque_mark_through_a_link_out_stays_inside(place):
    (place.root / "door").symlink_to("../outside")
    place.extract(member(b"door/.wh..wh..opq"), merging=True)
    assert place.names() == {"door": "-> ../outside", "outside": "dir"}


def test_an_opaque_mark_on_the_root_empties_it_of_lower_layers_only(place):
    (place.root / "old").mkdir()
    (place.root / "old/file").touch()
    place.extract(member(b"new"), member(b".wh..wh..opq"), member(b"newer"), merging=True)
    assert place.names() == {"new": "file", "newer": "file"}


@root_only
def test_an_opaque_mark_on_the_root_of_a_layer_hides_each_name_below(place):
    """overlayfs knows no such mark on a root."""
    lower = place.base / "lower"
    for name in ("old", "d", "e"):
        (lower / name).mkdir(parents=True)
    result = place.extract(member(b"d/f"), member(b".wh..wh..opq"), member(b"e"), lower=lower)
    assert place.names() == {"d": "dir", "d/f": "file", "e": "file", "old": "char 0:0"}
    assert result.opaque == [b"d"]


@pytest.mark.parametrize("kind", [b"5", b"2", b"1", b"3", b"6"])
def test_a_whiteout_is_one_whatever_its_type(place, kind):
    (place.root / "f").touch()
    place.extract(member(b".wh.f", kind=kind, link=b"nowhere"), merging=True)
    assert place.names() == {}


@root_only
@pytest.mark.parametrize("first", ["whiteout", "entry"])
@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_a_whiteout_never_deletes_what_its_own_layer_brings(place, first, kind):
    entry = {"file": member(b"x"), "directory": directory(b"x"), "link": symlink(b"x", b"y")}[kind]
    members = [member(b".wh.x"), entry] if first == "whiteout" else [entry, member(b".wh.x")]
    for layered in (False, True):
        result = place.extract(*members, layered=layered, merging=not layered)
        assert place.names()["x"] == {"file": "file", "directory": "dir", "link": "-> y"}[kind]
        assert result.opaque == ([b"x"] if layered and kind == "directory" else [])


def test_what_aufs_left_in_layers_is_passed_over(place):
    """containerd too leaves out names that begin with `.wh..wh.`, the opaque mark excepted."""
    place.extract(
        directory(b".wh..wh.plnk"), member(b".wh..wh.aufs"), member(b".wh..wh.plnk/12.34", b"x"), member(b"f")
    )
    assert place.names() == {"f": "file"}


@root_only
def test_a_device_that_is_no_whiteout_of_the_archives_own(place):
    """A character device 0:0 is overlayfs's whiteout; an archive has `.wh.` for that, but containerd lets it be."""
    place.extract(device(b"gone", 0, 0), layered=True)
    assert place.names() == {"gone": "char 0:0"}


# -- devices, modes, owners ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("major", "minor"),
    [
        (4096, 0),
        (0, 1 << 20),
        (b"7777777", b"7777777"),
        (base256(-1, 8), 0),
        (0, base256(-5, 8)),
        (base256(1 << 40, 8), 1),
    ],
)
def test_a_device_number_out_of_range_is_refused(place, major, minor):
    with pytest.raises(ArchiveError, match="device"):
        place.extract(device(b"d", major, minor))


@root_only
def test_set_uid_and_its_like_are_kept_with_the_owner_and_only_there(place):
    place.extract(
        member(b"su", mode=0o6755, uid=5, gid=6),
        directory(b"sg", mode=0o3777, gid=7),
        member(b"plain", mode=0o755, uid=5),
        member(b"type-bits", mode=0o120755),
    )
    mode = lambda name: stat.S_IMODE((place.root / name).stat().st_mode)  # noqa: E731
    assert (mode("su"), mode("sg"), mode("plain"), mode("type-bits")) == (0o6755, 0o3777, 0o755, 0o755)
    assert (place.root / "su").stat().st_uid == 5


@pytest.mark.parametrize("value", [-1, 0xFFFFFFFF, 1 << 32, (1 << 55) - 1])
def test_an_owner_that_chown_would_misunderstand_is_refused(place, value):
    with pytest.raises(ArchiveError, match="owner"):
        place.extract(member(uid=base256(value, 8)))
    with pytest.raises(ArchiveError, match="owner"):
        place.extract(pax([(b"gid", b"%d" % value)]), member())


@pytest.mark.parametrize("mtime", [base256(-1, 12), base256(1 << 62, 12), b"77777777777"])
def test_a_time_out_of_range_becomes_one_in_range(place, mtime):
    place.extract(member(mtime=mtime), symlink(b"l", b"x", mtime=mtime), directory(b"d", mtime=mtime))
    assert place.names() == {"file": "file", "l": "-> x", "d": "dir"}


def test_attributes_of_overlayfs_and_trusted_ones_are_never_the_archives(place):
    records = [
        (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
        (b"SCHILY.xattr.user.overlay.opaque", b"y"),
        (b"SCHILY.xattr.trusted.overlay.redirect", b"/../../outside"),
        (b"SCHILY.xattr.trusted.other", b"x"),
    ]
    result = place.extract(pax(records), directory(b"d"), pax(records), member(b"f"))
    assert os.listxattr(place.root / "d") == os.listxattr(place.root / "f") == []
    assert len(result.ignored) == 4


@pytest.mark.parametrize("name", [b"", b"user.", b"nonsense", b"user." + b"n" * 300, b"system.nonsense", b"\xff"])
def test_an_attribute_with_an_impossible_name(place, name):
    """Refused, or left out where the kernel says that it has no such attributes: never set, never a crash."""
    with contextlib.suppress(ArchiveError):
        assert place.extract(pax([(b"SCHILY.xattr." + name, b"x")]), member()).ignored
    assert os.listxattr(place.root / "file") == []


def test_privileged_attributes_cannot_fill_the_memory(place):
    """What the worker may not set is reported; that report is bounded."""
    big = pax([(b"SCHILY.xattr.security.%d" % number, b"x" * 60_000) for number in range(17)])
    if os.geteuid() == 0:
        pytest.skip("root may set them: see the test with real workers")
    with pytest.raises(LimitError, match="attributes"):
        place.extract(*((big + member(b"f%d" % number)) for number in range(40)))


# -- odd orders ---------------------------------------------------------------------------------------------------


def test_a_file_before_its_directory_gets_the_directorys_mode_and_times(place):
    place.extract(member(b"d/f"), directory(b"d", mode=0o711, mtime=7))
    status = (place.root / "d").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o711, 7)
    assert place.names() == {"d": "dir", "d/f": "file"}


def test_a_directory_over_a_file_and_back(place):
    place.extract(
        member(b"x"), directory(b"x"), member(b"x/y"), member(b"x", b"again"), directory(b"x"), member(b"x/z")
    )
    assert place.names() == {"x": "dir", "x/z": "file"}


def test_a_file_below_a_file_is_refused(place):
    with pytest.raises(ArchiveError, match="not a directory"):
        place.extract(member(b"x"), member(b"x/y"))


def test_times_of_a_directory_that_was_replaced_touch_nothing_else(place):
    place.extract(directory(b"d", mtime=7), symlink(b"d", b"../outside"))
    place.extract(directory(b"e", mtime=7), member(b"e", mtime=9))
    assert (place.root / "e").stat().st_mtime == 9


def test_the_same_file_again_and_again_is_one(place):
    place.extract(*(member(b"f", b"%d" % number) for number in range(300)))
    assert (place.root / "f").read_bytes() == b"299"
    assert place.tree.inodes == 2


def test_a_directory_of_many_directories_is_replaced_in_time_that_grows_with_them(place):
    """Removing it must not list it anew for each."""
    count = 4000
    place.extract(*(directory(b"d/%d" % number) for number in range(count)), member(b"d", b"file now"))
    assert place.names() == {"d": "file"}
    assert place.tree.inodes == 2


@pytest.mark.parametrize("open_limit", [1, 2, 7, 1000])
def test_a_tree_as_deep_as_a_path_can_be(place, open_limit):
    deep = b"d/" * 1000
    place.extract(pax([(b"path", deep + b"f")]), member(), member(b"d", b"now a file"), open_limit=max(open_limit, 200))
    assert place.names() == {"d": "file"}


def test_a_tree_deeper_than_a_path_can_be_is_removed_again(place):
    """By links whose targets are long, a tree of any depth can be built; here 3,000 levels."""
    step = b"/".join([b"d"] * 1000)
    place.extract(
        pax([(b"path", step + b"/f")]),
        member(),
        pax([(b"linkpath", step)]),
        symlink(b"l1", b""),
        pax([(b"path", b"l1/" + step + b"/f")]),
        member(),
        symlink(b"l2", b"l1/" + b"d/" * 40),
        pax([(b"path", b"l2/" + step + b"/f")]),
        member(),
        member(b"d", b"now a file"),
    )
    assert place.names()["d"] == "file"
    assert place.tree.inodes == 4


# -- sizes --------------------------------------------------------------------------------------------------------


def test_sparse_bombs_are_bounded_by_their_full_length(place):
    limits = Limits(size=1 << 30)
    with pytest.raises(LimitError, match="files of more than"):
        place.extract(old_sparse(b"s", [(0, 0)], b"", real_size=1 << 31), limits=limits)
    with pytest.raises(LimitError, match="files of more than"):
        place.extract(
            pax(
                [(b"GNU.sparse.map", b"0,0"), (b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.size", b"%d" % (1 << 31))]
            ),
            member(),
            limits=limits,
        )
    with pytest.raises(LimitError, match="files of more than"):
        place.extract(
            *(old_sparse(b"s%d" % number, [(0, 0)], b"", real_size=1 << 28) for number in range(5)), limits=limits
        )


@pytest.mark.parametrize("size", [-1, -(1 << 40)])
def test_a_negative_sparse_size_is_refused(place, size):
    with pytest.raises(ArchiveError, match="sparse"):
        place.extract(old_sparse(b"s", [], b"", real_size=base256(size, 12)))
    with pytest.raises(ArchiveError, match="sparse"):
        place.extract(
            pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % size)]),
            member(data=b"0\n".ljust(512, b"\0")),
        )


def test_more_entries_than_allowed_are_refused(place):
    with pytest.raises(LimitError, match="more than 10 entries"):
        place.extract(*(member(b"%d" % number) for number in range(11)), limits=Limits(entries=10))


def test_extended_headers_without_an_entry_are_counted(place):
    """A million of them would keep the parser busy and never come to an entry."""
    with pytest.raises(LimitError, match="more than 10 entries"):
        place.extract(pax([(b"comment", b"x")]) * 11, limits=Limits(entries=10))


def test_a_file_of_almost_eight_exabytes_ends_with_the_archive(place):
    with pytest.raises(ArchiveError):
        place.extract(header(size=base256((1 << 63) - 1, 12)))
