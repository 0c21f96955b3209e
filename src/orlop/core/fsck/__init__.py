"""Checking what the daemon knows against what there is, while it is used.

Who owns something checks it: the content store its blobs, the stores of snapshots their directories, and so on. Each
such `Check` is a plug-in; `Fsck` runs them one after the other and hands on what they find.

A live daemon changes all the time, so that a look at rows and a look at files never fit together. Hence the rule for
every check: what looks wrong is a suspect. It is looked at again where nobody can change it (in a write transaction,
under the owner's lock) and only then told, and once more before it is mended.

What is mended is never worse off when the daemon dies in between: a record goes only after what replaces it is there,
and bytes go into the trash, from where a lost transaction gets them back.
"""

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        kind: a word of the list in docs/fsck.md.
        object: what it is of: a digest, a snapshot's name, a path.
        namespaces: whose it is; empty if nobody's, or not known.
        wrong: what is wrong.
        mends: what mends it or, if `mended`, what has mended it.
    """

    kind: str
    object: str
    namespaces: tuple[str, ...] = ()
    wrong: str
    mends: str
    mended: bool = False

    def after(self, mended: bool, mends: str = "") -> Self:
        """The same after an attempt to mend it."""
        return replace(self, mended=mended, mends=mends or self.mends)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchecked:
    """Something that could not be looked at, and why."""

    what: str
    why: str
