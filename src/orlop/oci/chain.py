"""ChainIDs: names of a stack of layers, so that a snapshot can be found by what it contains.

Source: image-spec's config.md, "Layer ChainID"; github.com/opencontainers/image-spec/identity.
"""

from collections.abc import Iterable

from orlop.base.errdefs import InvalidArgumentError
from orlop.oci.digest import Digest


def chain_ids(diff_ids: Iterable[Digest]) -> list[Digest]:
    """The ChainID after each layer, from the lowest: the first is the first DiffID itself."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(Digest.of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain


def chain_id(diff_ids: Iterable[Digest]) -> Digest:
    """The ChainID of a whole stack.

    Raises:
        InvalidArgumentError: there is no layer.
    """
    chain = chain_ids(diff_ids)
    if not chain:
        raise InvalidArgumentError("chain id of no layers")
    return chain[-1]
