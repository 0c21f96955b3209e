"""Manifests of Docker's registries of 2016, which call an image's config `application/octet-stream`.

Source: containerd's core/remotes/docker/converter.go; docker/distribution#1622.
"""

from typing import Final

import msgspec

from orlop.base.labels import GC_REF_CONTENT
from orlop.core.remotes import ref_key
from orlop.core.transfer import Content
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor, decode_manifest

_INDENT: Final = 3  # what containerd writes, so that the digests are the same


async def with_config_type(content: Content, target: Descriptor) -> Descriptor:
    """The target of a pull, or a manifest made from it that says what its config is.

    The one that came belongs to the lease only, and is collected after it. Manifests in an index stay as they are.

    Raises:
        NotFoundError: the manifest is not here.
    """
    if not media_types.is_manifest(target.media_type):
        return target
    blob = await content.read(target.digest)
    manifest = decode_manifest(blob, what=f"manifest {target.digest}")
    if manifest.config.media_type != media_types.OCTET_STREAM:
        return target
    from orlop.core.images.conversion import read_document, write_document

    document = read_document(blob, f"manifest {target.digest}")
    document["config"]["mediaType"] = media_types.DOCKER_CONFIG
    made = write_document(document, indent=_INDENT)
    named = msgspec.structs.replace(target, digest=Digest.of(made), size=len(made), data=None)
    children = (manifest.config, *manifest.layers)
    labels = {f"{GC_REF_CONTENT}.{number}": child.digest for number, child in enumerate(children)}
    await content.write(ref_key(named), made, expected=named.digest, labels=labels)
    return named
