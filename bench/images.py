"""The images that the rows about layers take: synthetic, the same on every machine, built once.

    large     one gzip layer: 900 MB, 60,000 files
    large-run the same with a program in it
    ten-gzip  ten gzip layers of 100 MB with 6,000 files each; `ten-zstd` is the same in zstd
    twenty    twenty gzip layers of 20 MB
    plain     ten uncompressed layers of 100 MB that do not compress: 1 GB of content

Files are cut from seeded text that gzip takes down to about a third, as it does a distribution's files; their sizes are
log-normal. A layer has an entry for every directory in it, as builders write them.
"""

import random
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, Final

from tools import images, layout, peers
from tools.images import Image
from tools.layout import Compression, Entry, Layout

CACHE: Final = peers.ROOT / ".cache" / "bench-images-2"  # the number changes with what is built here
FILES_PER_DIRECTORY: Final = 12

_POOL_BYTES: Final = 32 << 20
_SPREAD: Final = 1.2  # of the sizes' logarithms


def image(name: str) -> Image:
    """Get an image, building it first if need be (the large ones take a minute)."""
    return images.built(name, RECIPES[name], CACHE, repository=f"bench-{name}")


def _layers(
    target: Layout,
    *,
    count: int,
    size: int,
    files: int,
    compression: Compression,
    text: bool = True,
    program: bool = False,
) -> Mapping[str, Any]:
    def filled(number: int) -> Callable[[tarfile.TarFile], None]:
        def fill(tar: tarfile.TarFile) -> None:
            if program:
                Entry(name="bin").add(tar)
                _busybox().add(tar)
            for entry in _content(number, size, files, _pool(text)):
                entry.add(tar)

        return fill

    made = [target.layer(filled(number), compression) for number in range(count)]
    return target.manifest(made, {"Cmd": ["/none"]}, layout.host_platform())


def _busybox() -> Entry:
    found = peers.locate("busybox")
    if found is None:
        raise peers.PeerError("busybox is not in .peers: run `make setup`")
    return Entry(name="bin/busybox", data=found.read_bytes(), mode=0o755)


def _content(number: int, size: int, files: int, pool: bytes) -> Iterator[Entry]:
    dice = random.Random(number)
    yield Entry(name="usr")
    yield Entry(name=f"usr/layer-{number}")
    for position, length in enumerate(_sizes(dice, size, files)):
        directory = f"usr/layer-{number}/d{position // FILES_PER_DIRECTORY}"
        if position % FILES_PER_DIRECTORY == 0:
            yield Entry(name=directory)
        yield Entry(name=f"{directory}/file-{position}", data=_cut(dice, pool, length))


def _sizes(dice: random.Random, total: int, count: int) -> Sequence[int]:
    drawn = [dice.lognormvariate(0, _SPREAD) for _ in range(count)]
    scale = total / sum(drawn)
    return [int(one * scale) for one in drawn]


def _cut(dice: random.Random, pool: bytes, length: int) -> bytes:
    start = dice.randrange(len(pool))
    data = pool[start : start + length]
    while len(data) < length:
        data += pool[: length - len(data)]
    return data


@cache
def _pool(text: bool) -> bytes:
    dice = random.Random(1)
    if not text:
        return dice.randbytes(_POOL_BYTES)
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    words = ["".join(dice.choices(letters, k=dice.randint(2, 11))) for _ in range(20_000)]
    weights = [(rank + 4) ** -1.25 for rank in range(len(words))]
    chosen = dice.choices(words, weights, k=_POOL_BYTES // 6)
    return " ".join(chosen).encode()[:_POOL_BYTES]


RECIPES: Final[Mapping[str, Callable[[Layout], Mapping[str, Any]]]] = {
    "large": partial(_layers, count=1, size=900_000_000, files=60_000, compression="gzip"),
    "large-run": partial(_layers, count=1, size=900_000_000, files=60_000, compression="gzip", program=True),
    "ten-gzip": partial(_layers, count=10, size=100_000_000, files=6_000, compression="gzip"),
    "ten-zstd": partial(_layers, count=10, size=100_000_000, files=6_000, compression="zstd"),
    "twenty": partial(_layers, count=20, size=20_000_000, files=1_200, compression="gzip"),
    "plain": partial(_layers, count=10, size=100_000_000, files=50, compression="none", text=False),
}
