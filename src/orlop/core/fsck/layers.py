"""Which blob a committed snapshot was unpacked from: its name is a ChainID that an image here spells out.

The images are found by their manifests, which the label that keeps their configuration tells from other blobs; whether
an image of that name is there does not matter. A snapshot that nobody here knows the blob of (a client's own commit,
layers that were thrown away after they were unpacked) has nothing that it could be compared with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from orlop.base.errdefs import OrlopError
from orlop.base.labels import GC_REF_CONTENT
from orlop.core.content import Store as ContentStore
from orlop.core.diff import LayerBlob
from orlop.core.metadata import Database
from orlop.oci import media_types
from orlop.oci.chain import chain_ids
from orlop.oci.image import MAX_MANIFEST_SIZE, decode_image, decode_manifest

_MANIFESTS: Final = "SELECT namespace, digest FROM content WHERE instr(labels, ?) ORDER BY namespace, digest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a layer comes from.

    Attributes:
        namespace: one that has the blob.
        parent: ChainID of what is below, empty for nothing.
        diff_id: digest that the unpacked blob must have.
    """

    namespace: str
    blob: LayerBlob
    parent: str
    diff_id: str


class Sources:
    """The layers of all images that are here, by namespace and ChainID."""

    def __init__(self, found: Mapping[tuple[str, str], Source]) -> None:
        self._own = found
        self._any = {chain_id: source for (_namespace, chain_id), source in found.items()}

    def find(self, namespace: str, chain_id: str) -> Source | None:
        """Where a namespace's layer comes from; another namespace's blob is the same bytes."""
        return self._own.get((namespace, chain_id)) or self._any.get(chain_id)


async def sources(db: Database, content: ContentStore) -> Sources:
    """Read all manifests and configurations; what cannot be read is passed over, for the check of content tells it."""
    found: dict[tuple[str, str], Source] = {}
    for row in db.all(_MANIFESTS, (f'"{GC_REF_CONTENT}.config":',)):
        try:
            for chain_id, source in await _image(content, row["namespace"], row["digest"]):
                found[row["namespace"], chain_id] = source
        except (OrlopError, OSError):
            continue
    return Sources(found)


async def _image(content: ContentStore, namespace: str, digest: str) -> list[tuple[str, Source]]:
    manifest = decode_manifest(await _read(content, namespace, digest), what=digest)
    layers = manifest.layers
    if not media_types.may_be_config(manifest.config.media_type):
        return []
    config = decode_image(await _read(content, namespace, manifest.config.digest), what=manifest.config.digest)
    diff_ids = config.rootfs.diff_ids
    if len(layers) != len(diff_ids) or not all(media_types.is_layer(one.media_type) for one in layers):
        return []
    chain = [str(one) for one in chain_ids(diff_ids)]
    return [
        (
            chain_id,
            Source(
                namespace=namespace,
                blob=LayerBlob(
                    media_type=layer.media_type,
                    digest=str(layer.digest),
                    size=layer.size,
                    annotations=layer.annotations,
                ),
                parent=parent,
                diff_id=str(diff_id),
            ),
        )
        for chain_id, parent, layer, diff_id in zip(chain, ["", *chain], layers, diff_ids, strict=False)
    ]


async def _read(content: ContentStore, namespace: str, digest: str) -> bytes:
    reader = await content.reader(namespace, digest)
    try:
        return await reader.read_at(0, min(reader.size, MAX_MANIFEST_SIZE))
    finally:
        reader.close()
