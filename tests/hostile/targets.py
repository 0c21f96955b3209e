"""What bad input is fed to in this process: each parser, with what may come of it and what may not.

A target returns whether its input was refused. It raises for anything that is neither a result nor the parser's own
error: that is a finding.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from orlop.base import filters, identifiers, labels, references
from orlop.base.errdefs import InvalidArgumentError
from orlop.core import trees
from orlop.core.diff.erofs import Node
from orlop.core.diff.errors import ArchiveError, UnsuitableError
from orlop.core.diff.extract import Extractor, Limits
from orlop.core.diff.indexing import Builder
from orlop.core.diff.stream import uncompressed
from orlop.core.diff.tar import Reader
from orlop.core.diff.tree import Tree
from orlop.core.remotes.challenges import parse_challenges
from orlop.oci import image, spec
from orlop.oci.digest import Digest

Target = Callable[[bytes], bool]

LIMITS = Limits(size=64 << 20, entries=2000)


def refused(parse: Callable[[], object], error: type[Exception] = InvalidArgumentError) -> bool:
    """Whether `parse` refuses, with nothing but that class of error."""
    try:
        parse()
    except error:
        return True
    return False


def archive(blob: bytes) -> bool:
    """Unpack into a directory that has a neighbour; the neighbour, its times included, must not change.

    What the archive is refused for, its index must be refused for too.
    """
    with _place() as (root, outside):
        before = _stock(outside)
        faulty = False
        try:
            outcome = refused(lambda: unpack(blob, root), OSError)
        except ArchiveError:
            outcome = faulty = True
        assert _stock(outside) == before, "something outside was changed"
        indexed = refused(lambda: make_image(blob, outside.parent / "image"), (ArchiveError, UnsuitableError))  # type: ignore[arg-type]  # a tuple works
    assert indexed or not faulty, "an index was made of what cannot be unpacked"
    return outcome


def make_image(blob: bytes, path: Path) -> None:
    """Make an EROFS image as a worker does, in this process."""
    source = io.BytesIO(blob)
    with open(path, "wb") as file:
        Builder(uncompressed(source.read), file.fileno(), Node(0o40755, 0, 0, 0), limits=LIMITS).run()


def unpack(blob: bytes, root: Path, *, layered: bool = False) -> None:
    """Unpack as a worker does, in this process."""
    source = io.BytesIO(blob)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    umask = os.umask(0)
    tree = Tree(fd, layered=layered)
    try:
        Extractor(Reader(uncompressed(source.read)), tree, limits=LIMITS).run()
    finally:
        tree.close()
        os.umask(umask)
        os.close(fd)


def manifest(blob: bytes) -> bool:
    return refused(lambda: image.decode_manifest(blob))


def index(blob: bytes) -> bool:
    refused(lambda: image.decode_shape(blob))
    return refused(lambda: image.decode_index(blob))


def config(blob: bytes) -> bool:
    return refused(lambda: image.decode_image(blob))


def runtime_spec(blob: bytes) -> bool:
    return refused(lambda: spec.decode(blob))


def name(blob: bytes) -> bool:
    """As every thing that has a name of its own."""
    text = blob.decode("utf-8", "surrogateescape")
    refused(lambda: Digest.parse(text))
    refused(lambda: labels.validate(text, text))
    parse_challenges([text])
    return refused(lambda: identifiers.validate(text))


def reference(blob: bytes) -> bool:
    text = blob.decode("utf-8", "surrogateescape")
    refused(lambda: references.normalize(text))
    refused(lambda: references.Named.parse(text))
    return refused(lambda: references.Spec.parse(text))


def filter_(blob: bytes) -> bool:
    """Parsed, and if it is one, applied to what it was not made for."""
    text = blob.decode("utf-8", "surrogateescape")
    try:
        found = filters.parse(text)
    except InvalidArgumentError:
        return True
    found(filters.adapt({"id": "x" * 200, "labels": {"x": "ab" * 500, "": ""}}))
    return False


@contextlib.contextmanager
def _place() -> Iterator[tuple[Path, Path]]:
    base = Path(tempfile.mkdtemp(prefix="hostile."))
    try:
        root, outside = base / "root", base / "outside"
        root.mkdir()
        outside.mkdir()
        (outside / "secret").write_text("secret")
        yield root, outside
    finally:
        trees.remove(base)  # shutil.rmtree would recurse into as deep a tree as was asked for


def _stock(directory: Path) -> list[tuple[object, ...]]:
    return [
        (str(path), status.st_mode, status.st_nlink, status.st_mtime_ns, status.st_uid)
        for path in (directory, *directory.iterdir())
        for status in (path.lstat(),)
    ]


TARGETS: dict[str, Target] = {
    "archive": archive,
    "manifest": manifest,
    "index": index,
    "config": config,
    "spec": runtime_spec,
    "name": name,
    "reference": reference,
    "filter": filter_,
}
