"""When an overlay's layer tells where to look."""

import pytest

from orlop.core.diff.compare import Plan
from orlop.core.mount import Mount


def bind(path, *more):
    return [Mount(type="bind", source=path, options=("rbind", "ro", *more))]


def overlay(*options):
    return [Mount(type="overlay", source="overlay", options=("index=off", *options))]


ACTIVE = overlay("workdir=/w", "upperdir=/u", "lowerdir=/a:/b")


@pytest.mark.parametrize(
    ("lower", "upper", "changed"),
    [
        (overlay("lowerdir=/a:/b"), ACTIVE, "/u"),
        (bind("/a"), overlay("workdir=/w", "upperdir=/u", "lowerdir=/a"), "/u"),
        (bind("/a"), overlay("lowerdir=/u:/a"), "/u"),
        (overlay("lowerdir=/a:/b"), overlay(r"lowerdir=/u\:1:/a:/b"), "/u:1"),
        (overlay("upperdir=/a", "workdir=/w", "lowerdir=/b"), ACTIVE, "/u"),
        (bind("/b"), ACTIVE, None),  # two layers above it
        (overlay("lowerdir=/b:/a"), ACTIVE, None),
        (bind("/a"), bind("/b"), None),
        ([], bind("/b"), None),
        (bind("/a"), [], None),
        (bind("/a", "uidmap=0:1:2"), overlay("lowerdir=/u:/a"), None),
        (bind("/a"), overlay("lowerdir=/u::/a"), None),  # data-only layers
        ([*bind("/a"), *bind("/b")], ACTIVE, None),
        (bind("/a"), [Mount(type="ext4", source="/dev/x")], None),
    ],
)
def test_the_layer_that_was_changed(lower, upper, changed):
    assert Plan.of(lower, upper).changed == changed


def test_marks_of_unprivileged_overlays():
    assert Plan.of(bind("/a"), overlay("userxattr", "lowerdir=/u:/a")).marks == "user.overlay"
    assert Plan.of(bind("/a"), overlay("lowerdir=/u:/a")).marks == "trusted.overlay"
