"""How images are called that come from archives.

Source: AddRefPrefix, FilterRefPrefix and DigestTranslator in containerd's core/images/archive/reference.go; Import in
client/import.go.
"""

import time
from dataclasses import dataclass
from typing import Final

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
