"""Names of what comes in; the cases are those of Store in containerd's core/transfer/image/imagestore_test.go."""

import pytest

from orlop.base.errdefs import NotFoundError
from orlop.core.transfer.ends import ImageReference, ImageStore
from orlop.core.transfer.naming import NAME_ANNOTATION, REF_ANNOTATION, names_in_store, with_prefix
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor

DIGEST = Digest.of(b"")


def entry(name="", ref=""):
    annotations = {key: value for key, value in ((NAME_ANNOTATION, name), (REF_ANNOTATION, ref)) if value}
    return Descriptor(digest=DIGEST, size=1, annotations=annotations)


@pytest.mark.parametrize(
    ("prefix", "ref", "overwrite", "found"),
    [
        ("a/b", "1", False, "a/b:1"),
        ("a/b", "a/b:1", False, "a/b:1"),
        ("a/b", "a/b/c:1", False, "a/b/c:1"),
        ("a/b", "a/bc:1", False, ""),
        ("a/b", "x/y:1", False, ""),
        ("a/b", "x/y:1", True, "x/y:1"),
        ("nginx", "docker.io/library/nginx:1", False, "docker.io/library/nginx:1"),
        ("nginx", "docker.io/library/nginx2:1", False, ""),
        ("", "1", True, ""),
    ],
)
def test_a_prefix(prefix, ref, overwrite, found):
    assert with_prefix(prefix, ref, overwrite=overwrite) == found


@pytest.mark.parametrize(
    ("reference", "target", "names"),
    [
        (ImageReference(name="p", is_prefix=True), entry(ref="1"), ["p:1"]),
        (ImageReference(name="p", is_prefix=True), entry(name="q/r:1"), None),
        (ImageReference(name="p", is_prefix=True, allow_overwrite=True), entry(name="q/r:1"), ["q/r:1"]),
        (ImageReference(name="p", is_prefix=True, add_digest=True), entry(), [f"p@{DIGEST}"]),
        (ImageReference(name="p", is_prefix=True, add_digest=True), entry(ref="1"), ["p:1", f"p@{DIGEST}"]),
        (
            ImageReference(name="p", is_prefix=True, add_digest=True, skip_named_digest=True),
            entry(ref="1"),
            ["p:1"],
        ),
        (ImageReference(name="whole:1"), entry(ref="1"), None),
    ],
)
def test_entries_of_archives(reference, target, names):
    store = ImageStore(name="index", extra_references=(reference,))
    if names is None:
        with pytest.raises(NotFoundError, match="no image name found"):
            names_in_store(store, target, from_archive=True)
    else:
        assert names_in_store(store, target, from_archive=True) == names


def test_whole_targets():
    references = (
        ImageReference(name="more:1"),
        ImageReference(name="more", add_digest=True),
        ImageReference(name="p", is_prefix=True),
    )
    store = ImageStore(name="one:1", extra_references=references)
    assert names_in_store(store, entry(), from_archive=False) == ["one:1", "more:1", f"more@{DIGEST}"]
    with pytest.raises(NotFoundError, match="no image name found"):
        names_in_store(ImageStore(), entry(), from_archive=False)
