"""The rows of images.

Functions that write take a `Transaction`, so that a service can publish its event with them.

Source: containerd's core/metadata/images.go, its rules and its texts.
"""

import dataclasses
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Final

from orlop.base import fieldmask
from orlop.base import filters as filter_language
from orlop.base import labels as label_rules
from orlop.base.errdefs import AlreadyExistsError, InvalidArgumentError, NotFoundError
from orlop.base.quoting import quote
from orlop.core.images import Image, Target
from orlop.core.metadata import leases
from orlop.core.metadata.database import Database, Transaction
from orlop.core.metadata.rows import PAGE_SIZE, check_key, decode_map, encode_map
from orlop.oci.digest import Digest, InvalidDigestError

_FIELDS: Final = ("labels", "target", "annotations")
_PAGE: Final = "SELECT * FROM images WHERE namespace = ? AND name > ? ORDER BY name LIMIT ?"
_BY_NAME: Final = "SELECT * FROM images WHERE namespace = ? AND name = ?"


class ImageStore:
    """The images of all namespaces."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def get(self, namespace: str, name: str) -> Image:
        """An image. Raises NotFoundError."""
        row = self._db.one(_BY_NAME, (namespace, name))
        if row is None:
            raise NotFoundError(f"image {quote(name)}")
        return _image(row)

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Image]:
        """Images in the order of their names; fields are `name`, `target.digest`, `target.mediatype`, `labels.<key>`
        and `annotations.<key>`.

        Raises:
            InvalidArgumentError: a filter cannot be parsed.
        """
        return [image for page in self.pages(namespace, filters) for image in page]

    def pages(self, namespace: str, filters: Sequence[str] = ()) -> Iterator[Sequence[Image]]:
        """`list` in parts, so that other work can come between them; each part is read when it is asked for.

        Raises:
            InvalidArgumentError: a filter cannot be parsed; at once, not when iterating.
        """
        return self._pages(namespace, filter_language.parse_all(filters))

    def _pages(self, namespace: str, matches: filter_language.Filter) -> Iterator[Sequence[Image]]:
        after = ""
        while True:
            rows = self._db.all(_PAGE, (namespace, after, PAGE_SIZE))
            found = (_image(row) for row in rows)
            yield [image for image in found if matches.always or matches(_adapt(image))]
            if len(rows) < PAGE_SIZE:
                return
            after = rows[-1]["name"]

    def create(
        self,
        tx: Transaction,
        namespace: str,
        image: Image,
        *,
        at: int | None = None,
        lease: str = "",
        owner_uid: int | None = None,
    ) -> Image:
        """Add an image; returns it with its times.

        Args:
            at: nanoseconds since the epoch to take as the time of creation, for reproducible builds.

        Raises:
            AlreadyExistsError, InvalidArgumentError
            NotFoundError: the lease does not exist.
        """
        _validate(image)
        tx.ensure_namespace(namespace)
        _hold_expiring(tx, namespace, image, lease)
        now = tx.now if at is None else at
        created = dataclasses.replace(_kept(image), created_at=now, updated_at=now)
        try:
            tx.execute(
                "INSERT INTO images (namespace, name, media_type, digest, target_size, annotations, owner_uid,"
                " created_at, updated_at, used_at, labels) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (namespace, image.name, *_target(image.target), owner_uid, now, now, tx.now, encode_map(image.labels)),
            )
        except sqlite3.IntegrityError:
            raise AlreadyExistsError(f"image {quote(image.name)}") from None
        tx.mutated()
        return created

    def update(
        self,
        tx: Transaction,
        namespace: str,
        given: Image,
        paths: Sequence[str] = (),
        *,
        at: int | None = None,
        lease: str = "",
    ) -> Image:
        """Take over what `paths` name (`labels`, `labels.<key>`, `target`, `annotations`, `annotations.<key>`), or all.

        Raises:
            NotFoundError, InvalidArgumentError
        """
        if not given.name:
            raise InvalidArgumentError("image name is required for update")
        row = tx.one(_BY_NAME, (namespace, given.name))
        if row is None:
            raise NotFoundError(f"image {quote(given.name)}")
        current = _image(row)
        merged = _merge(current, given, paths) if paths else given
        _validate(merged)
        _hold_expiring(tx, namespace, merged, lease)
        updated = dataclasses.replace(
            _kept(merged),
            created_at=current.created_at,
            updated_at=tx.now if at is None else at,
        )
        tx.execute(
            "UPDATE images SET media_type = ?, digest = ?, target_size = ?, annotations = ?, labels = ?, updated_at = ?"
            " WHERE namespace = ? AND name = ?",
            (*_target(updated.target), encode_map(updated.labels), updated.updated_at, namespace, updated.name),
        )
        tx.mutated()
        return updated

    def delete(self, tx: Transaction, namespace: str, name: str, *, target: str = "", lease: str = "") -> None:
        """Remove an image, only if its target has the digest `target` when that is given.

        Raises:
            NotFoundError: there is no such image, or it has another target.
        """
        row = tx.one(_BY_NAME, (namespace, name))
        if row is None:
            raise NotFoundError(f"image {quote(name)}")
        if target and row["digest"] != target:
            raise NotFoundError(f"image {quote(name)} has target {row['digest']}, not {target}")
        tx.execute("DELETE FROM images WHERE namespace = ? AND name = ?", (namespace, name))
        leases.release(tx, namespace, lease, leases.IMAGES, name)
        tx.mutated(deletion=True)


def _merge(current: Image, given: Image, paths: Sequence[str]) -> Image:
    labels, target = current.labels, current.target
    what = f"image {quote(current.name)}"
    for path in fieldmask.parse(paths, fields=_FIELDS, maps=("labels", "annotations"), what=what):
        match path.field:
            case "labels":
                labels = fieldmask.merge(labels, given.labels, path.key)
            case "target":
                target = given.target
            case "annotations":
                annotations = fieldmask.merge(target.annotations, given.target.annotations, path.key)
                target = dataclasses.replace(target, annotations=annotations)
    return dataclasses.replace(current, labels=labels, target=target)


def _hold_expiring(tx: Transaction, namespace: str, image: Image, lease: str) -> None:
    """An image that expires is collectible, and so goes into the call's lease; others need none."""
    if label_rules.GC_EXPIRE in image.labels:
        leases.hold(tx, namespace, lease, leases.IMAGES, image.name)


def _validate(image: Image) -> None:
    check_key(image.name, "image name")
    try:
        label_rules.validate_all(image.labels)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"image.Labels: {error.text}") from None
    try:
        Digest.parse(image.target.digest)
    except InvalidDigestError as error:
        raise InvalidArgumentError(f"Target.Digest {quote(image.target.digest)} invalid: {error.reason}") from None
    if image.target.size <= 0:
        raise InvalidArgumentError("Target.Size must be greater than zero")
    if not image.target.media_type:
        raise InvalidArgumentError("Target.MediaType must be set")


def _kept(image: Image) -> Image:
    """The image as it is stored: without labels and annotations that have no value."""
    annotations = {key: value for key, value in image.target.annotations.items() if value}
    labels = {key: value for key, value in image.labels.items() if value}
    return dataclasses.replace(image, labels=labels, target=dataclasses.replace(image.target, annotations=annotations))


def _target(target: Target) -> tuple[str, str, int, str]:
    return target.media_type, target.digest, target.size, encode_map(target.annotations)


def _image(row: sqlite3.Row) -> Image:
    return Image(
        name=row["name"],
        target=Target(
            media_type=row["media_type"],
            digest=row["digest"],
            size=row["target_size"],
            annotations=decode_map(row["annotations"]),
        ),
        labels=decode_map(row["labels"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _adapt(image: Image) -> filter_language.Adaptor:
    """Source: adaptImage in core/metadata/adaptors.go."""
    return filter_language.adapt(
        {
            "name": image.name,
            "target": {"digest": image.target.digest, "mediatype": image.target.media_type},
            "labels": image.labels,
            "annotations": image.target.annotations,
        }
    )
