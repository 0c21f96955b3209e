"""How images are called that come from archives.

Source: AddRefPrefix, FilterRefPrefix and DigestTranslator in containerd's core/images/archive/reference.go; Import in
client/import.go.
"""

import time
from dataclasses import dataclass
from typing import Final

from orlop.base.errdefs import NotFoundError
from orlop.core.transfer.ends import ImageReference, ImageStore
from orlop.oci.image import Descriptor

NAME_ANNOTATION: Final = "io.containerd.image.name"
REF_ANNOTATION: Final = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How images of an archive are named here.

    Attributes:
        base_name: prefix for names that are only tags; with `only_prefixed` other full names are passed over.
        digests: also make `base@digest` names; `skip_named` leaves those out that have a name.
        index_name: also keep the archive's whole index, under this name.
    """

    base_name: str = ""
    digests: bool = False
    skip_named: bool = False
    index_name: str = ""

    def name(self, descriptor: Descriptor) -> str:
        """The name of an entry of the archive's index, or an empty string."""
        full = descriptor.annotations.get(NAME_ANNOTATION, "")
        if full:
            return full
        ref = descriptor.annotations.get(REF_ANNOTATION, "")
        if not ref:
            return ""
        return with_prefix(self.base_name or today(), ref, overwrite=not self.base_name)

    def digest_name(self, descriptor: Descriptor) -> str:
        """The name by digest, or an empty string where none is wanted."""
        if not self.digests or (self.skip_named and self.name(descriptor)):
            return ""
        return f"{self.base_name or today()}@{descriptor.digest}"


def with_prefix(prefix: str, ref: str, *, overwrite: bool) -> str:
    """A whole reference out of what an archive calls an image, or an empty string where it is to be passed over.

    Args:
        overwrite: a reference that is whole already is taken as it is; else only one that begins with `prefix`.
    """
    if not any(mark in ref for mark in "/:@"):
        return f"{prefix}:{ref}" if prefix else ""
    # The prefix may also be a short name, such as `nginx` for `docker.io/library/nginx:latest`.
    return ref if overwrite or _begins(ref, prefix, "/:@") or _begins(ref.rpartition("/")[2], prefix, ":@") else ""


def _begins(ref: str, prefix: str, marks: str) -> bool:
    rest = ref.removeprefix(prefix)
    return bool(prefix) and rest != ref and (not rest or rest[0] in marks)


def today() -> str:
    """The prefix where none is given."""
    return time.strftime("import-%Y-%m-%d")


def names_in_store(store: ImageStore, target: Descriptor, *, from_archive: bool) -> list[str]:
    """What an image store calls a target that comes in.

    Args:
        from_archive: it is an entry of an archive's index, whose annotations name it; whole names are for the index.

    Raises:
        NotFoundError: nothing names it.

    Source: Store in containerd's core/transfer/image/imagestore.go.
    """
    names: list[str] = []
    if from_archive:
        for reference in store.extra_references:
            if reference.is_prefix:
                names += _prefixed(reference, target)
    else:
        names += [store.name] if store.name else []
        for reference in store.extra_references:
            if not reference.is_prefix:
                names.append(f"{reference.name}@{target.digest}" if reference.add_digest else reference.name)
    if not names:
        raise NotFoundError("no image name found")
    return names


def _prefixed(reference: ImageReference, target: Descriptor) -> list[str]:
    by_digest = f"{reference.name}@{target.digest}"
    name = _annotated(reference, target)
    if not name:
        return [by_digest] if reference.add_digest else []
    return [name, by_digest] if reference.add_digest and not reference.skip_named_digest else [name]


def _annotated(reference: ImageReference, target: Descriptor) -> str:
    full = target.annotations.get(NAME_ANNOTATION, "")
    if full:
        # It is whole, and so not to be changed: one that would be is not used.
        return full if with_prefix(reference.name, full, overwrite=reference.allow_overwrite) == full else ""
    tag = target.annotations.get(REF_ANNOTATION, "")
    return with_prefix(reference.name, tag, overwrite=reference.allow_overwrite) if tag else ""
