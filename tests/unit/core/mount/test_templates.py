"""Templates in mounts, and which mounts a manager performs.

Expected results: containerd's core/mount/manager/{format_test,plan_test}.go, read as facts.
"""

import pytest

from orlop.base.errdefs import InvalidArgumentError
from orlop.core.mount import Mount, plans
from orlop.core.mount.activation import ActiveMount
from orlop.core.mount.templates import expand, format_mount

ACTIVE = [
    ActiveMount(mount=Mount(type="t", source=f"/s{n}", target=f"t{n}"), mount_point=f"/m{n}", mounted_at=1)
    for n in range(3)
]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain", "plain"),
        ("{{ source 0 }}", "/s0"),
        ("{{target 1}}", "t1"),
        ("x={{ mount 2 }},", "x=/m2,"),
        ("lowerdir={{ overlay 0 2 }}", "lowerdir=/m0:/m1:/m2"),
        ("lowerdir={{ overlay 2 0 }}", "lowerdir=/m2:/m1:/m0"),
        ("{{ overlay 1 1 }}", "/m1"),
        ("{{ mount 0 }}/up:{{ mount 1 }}/{{ source 1 }}", "/m0/up:/m1//s1"),
        ("a {{- mount 0 -}} b", "a/m0b"),
        ("a {{ mount 0 -}}  b", "a /m0b"),
        ("}} and {", "}} and {"),
    ],
)
def test_what_an_action_becomes(text, result):
    assert expand(text, ACTIVE) == result


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{{ mount 3 }}", "index out of bounds: 3, has 3 active mounts: invalid argument"),
        ("{{ mount -1 }}", "index out of bounds: -1, has 3 active mounts: invalid argument"),
        ("{{ overlay 0 3 }}", "invalid range: 0-3, has 3 active mounts: invalid argument"),
        ("{{ overlay 3 0 }}", "invalid range: 3-0, has 3 active mounts: invalid argument"),
        ("{{ nothing 0 }}", "mount template '{{ nothing 0 }}': function 'nothing' not defined: invalid argument"),
        ("{{}}", "mount template '{{}}': function '' not defined: invalid argument"),
        ("{{ mount 0", "mount template '{{ mount 0': unclosed action: invalid argument"),
        ("{{ mount }}", "mount template '{{ mount }}': mount wants 1 whole number(s): invalid argument"),
        ("{{ mount x }}", "mount template '{{ mount x }}': mount wants 1 whole number(s): invalid argument"),
        ("{{ mount 0 0 }}", "mount template '{{ mount 0 0 }}': mount wants 1 whole number(s): invalid argument"),
        ("{{ mount 99999999999999999999 }}", None),
        ("{{" + "x" * 500 + "}}", None),
    ],
)
def test_what_is_no_action(text, why):
    with pytest.raises(InvalidArgumentError) as caught:
        expand(text, ACTIVE)
    if why:
        assert str(caught.value) == why


def test_long_texts_are_read_at_once():
    blank = " " * 3_000_000
    assert expand(f"{blank}{{{{ mount 0 }}}}{blank}", ACTIVE) == f"{blank}/m0{blank}"
    with pytest.raises(InvalidArgumentError) as caught:
        expand("{{" + "{{ " * 1_000_000, ACTIVE)
    assert len(str(caught.value)) < 400


def test_every_text_of_a_mount_is_done():
    mount = Mount(type="ext4", source="{{ source 0 }}", target="{{ target 1 }}", options=("a={{ mount 2 }}", "ro"))
    assert format_mount(mount, ACTIVE) == Mount(type="ext4", source="/s0", target="t1", options=("a=/m2", "ro"))


def plan(*types, **options):
    made = plans.make([Mount(type=kind, source="s") for kind in types], handled={"loop", "erofs"}, **options)
    return None if made is None else (len(made.performed), len(made.left))


@pytest.mark.parametrize(
    ("types", "result"),
    [
        ([], None),
        (["overlay"], None),
        (["bind", "overlay"], None),
        (["unknown/overlay"], None),
        (["loop"], (1, 0)),
        (["erofs", "overlay"], (1, 1)),
        (["loop", "format/ext4", "overlay"], (1, 2)),
        (["loop", "format/ext4", "format/overlay"], (2, 1)),
        (["bind", "loop", "overlay"], (2, 1)),
        (["mkdir/overlay"], (0, 1)),
        (["format/mkdir/overlay"], (0, 1)),
        (["mkfs/loop", "format/ext4"], (1, 1)),
        (["format/loop"], (1, 0)),
    ],
)
def test_what_is_performed_and_what_is_left(types, result):
    assert plan(*types) == result


def test_what_the_caller_does_by_itself():
    assert plan("erofs", "overlay", claimed={"erofs"}) is None
    assert plan("erofs", "format/overlay", claimed={"erofs"}) == (1, 1)
    assert plan("erofs", "format/overlay", claimed={"erofs", "format"}) is None
    assert plan("erofs", "format/mkdir/overlay", claimed={"erofs", "format"}) == (1, 1)
    assert plan("erofs", "format/mkdir/overlay", claimed={"erofs", "format/mkdir/overlay"}) is None


def test_all_is_performed_for_a_while():
    assert plan("bind", temporary=True) == (1, 0)
    assert plan("erofs", "format/overlay", temporary=True) == (2, 0)
    assert plan(temporary=True) is None
