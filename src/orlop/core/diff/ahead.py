"""Unpacking ahead: layers that will be asked for next are unpacked beside the one that is asked for now.

Clients unpack an image layer by layer, each on top of the one before. But most layers can be unpacked without knowing
what is below them (see `Tree.alone`; the others are refused and done in their turn). So as soon as one layer of an
image is applied, those above it begin, as many at once as there are cores, in spare directories beside the snapshots:

    <snapshotter's root>/.ahead-<token>-<number>      named by no number, so no snapshot; swept after a start
           root, image                                inside it, if the layer becomes an image

When their turn comes, what is in the spare directory is renamed into the snapshot's, and is then what it would have
been; of a layer that is an image instead of a tree, that is one file. There is no snapshot above a missing one, so
whoever applies a layer needs all above it: little is done in vain. Which layers those are is known from the labels by
which clients keep a manifest's children.

Spare directories that nobody asks for are removed after a while. `arriving` has some more made, of layers whose image
is not known yet. Belongs to one event loop.
"""

import asyncio
import contextlib
import errno
import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orlop.base import errdefs, failpoints
from orlop.base.labels import GC_REF_CONTENT
from orlop.base.settling import settle
from orlop.core import trees
from orlop.core.diff import Applied, LayerBlob
from orlop.oci.media_types import OCI_LAYER

log: Final = logging.getLogger(__name__)

PREFIX: Final = ".ahead-"
PATIENCE_S: Final = 60.0
"""Seconds without a call for an image after which what was unpacked ahead for it is removed."""
WINDOW: Final = 8
"""Layers above the one that was asked for last that may have been begun."""

CLOSING_S: Final = 1.0
"""Seconds that removals get when the daemon stops."""

_ROOT: Final = "root"
_IMAGE: Final = "image"
_LAYER_LABEL: Final = f"{GC_REF_CONTENT}.l."
_ARRIVED: Final = ""
"""In the place of a manifest's digest: what was adopted."""
_KNOWN: Final = 4096

Unpack = Callable[[str, LayerBlob, Path], Awaitable[Applied]]
"""Unpacks a layer of a namespace, alone, into an empty directory."""

Layers = Callable[[str, str], Awaitable[Sequence[LayerBlob]]]
"""The layers of a namespace's manifest, the lowest first; none if it cannot be read."""

Move = Callable[[Path], bool]
"""Moves what is in a spare directory to where it belongs, in a thread; False if it does not belong there."""

Here = Callable[[str, LayerBlob], bool]
"""Whether a layer's blob is in the content store, and is one to unpack ahead."""


@dataclass(slots=True)
class Spare:
    """A layer that is unpacked, or will be."""

    directory: Path
    task: "asyncio.Task[Applied]"

    @property
    def failed(self) -> bool:
        """Whether it cannot be had any more."""
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)


@dataclass(slots=True)
class _Image:
    """An image that is being unpacked, or what has come for one that is not known yet: layers without an order.

    Attributes:
        reached: position of the layer that was asked for last.
        begun: positions that are not to be begun (again).
    """

    namespace: str
    root: Path
    layers: list[LayerBlob]
    reached: int = -1
    begun: set[int] = field(default_factory=set)
    spares: dict[int, Spare] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None

    def above(self, digest: str) -> int | None:
        """The lowest position of a layer above what is reached."""
        rest = range(self.reached + 1, len(self.layers))
        return next((position for position in rest if self.layers[position].digest == digest), None)


class Ahead:
    """Args:
        atonce: layers that may be unpacked ahead at the same time; what is asked for does not count.

    Attributes:
        on_reached: told the namespace, the digest and `root` of each layer that is asked for.
        adopted: digests of layers that are kept for whoever asks, and of some that were; to be looked at by any thread.
        on_unused: told the namespace if what was adopted for it was not asked for.
        is_expected: asked whether something has come for a namespace in so many seconds, after which what was adopted
            will be asked for.
    """

    def __init__(
        self, unpack: Unpack, layers: Layers, here: Here, *, atonce: int, patience_s: float = PATIENCE_S
    ) -> None:
        self._unpack = unpack
        self._layers = layers
        self._here = here
        self._atonce = atonce
        self._patience_s = patience_s
        self._manifests: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._images: dict[tuple[str, str, Path], _Image] = {}
        self._tidying: set[asyncio.Task[None]] = set()
        self.on_reached: Callable[[str, str, Path], None] = lambda *_: None
        self.adopted: frozenset[str] = frozenset()
        self.on_unused: Callable[[str], None] = lambda _: None
        self.is_expected: Callable[[str, float], bool] = lambda *_: False
        self._stop_at = math.inf
        self._token = os.urandom(4).hex()
        self._number = 0

    def labelled(self, namespace: str, digest: str, labels: Mapping[str, str]) -> None:
        """A blob has these labels now: if it is a manifest, remember its layers."""
        for key, value in labels.items():
            if key.startswith(_LAYER_LABEL):
                self._manifests[namespace, value] = digest
                self._manifests.move_to_end((namespace, value))
        while len(self._manifests) > _KNOWN:
            self._manifests.popitem(last=False)

    def arrived(self) -> None:
        """There is a new blob; it may be one that is waited for."""
        if self._images:
            self._go()

    async def reached(self, namespace: str, layer: LayerBlob, root: Path, *, stacked: bool) -> None:
        """A layer is applied to a snapshot below `root`: begin those above it.

        Args:
            stacked: onto the layers below it. Clients that apply every layer on its own do by themselves what is done
                here, so nothing is begun for them.
        """
        self.on_reached(namespace, layer.digest, root)
        if (adopted := self._images.get((namespace, _ARRIVED, root))) is not None:
            self._wait_for_call(adopted)
        manifest = self._manifests.get((namespace, layer.digest))
        if manifest is None:
            return
        key = (namespace, manifest, root)
        image = self._images.get(key)
        if image is not None and image.reached + 1 == len(image.layers):
            self._forget(image)  # it was done; this is the next time
            image = None
        if image is None:
            layers = list(await self._layers(namespace, manifest))
            image = self._images.setdefault(key, _Image(namespace, root, layers))
        position = image.above(layer.digest)
        if position is None:
            return  # a second client at the same image; the first has the spares
        if position and not stacked:
            self._drop(image)
            image.layers = []
        for passed in [at for at in image.spares if at < position]:
            self.discard(image.spares.pop(passed))
        image.reached = position
        image.begun.update(range(position + 1))
        self._wait_for_call(image)
        self._go()

    async def take(
        self, namespace: str, layer: LayerBlob, root: Path, move: Move, *, lowest: bool = False
    ) -> Applied | None:
        """Have what was unpacked ahead for a layer moved in its place; None if there is nothing to be had.

        Args:
            lowest: there is nothing below it, so that it is no layer of an overlay.

        Raises:
            ResourceExhaustedError: the file system is full; some of it may have been moved.
        """
        spare = self._pop(namespace, layer.digest, root)
        if spare is None:
            return None
        self._go()
        try:
            applied = await spare.task
            if lowest and applied.marked:
                return None
            # Nobody removes either directory under a thread that goes on.
            if await settle(asyncio.to_thread(move, spare.directory)):
                return applied
        except (errdefs.OrlopError, FileNotFoundError):
            pass  # done in the usual way, it either works or says what is wrong
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise errdefs.ResourceExhaustedError(f"layer {layer.digest}: {error.strerror}") from error
        finally:
            self.discard(spare)
        return None

    def failed(self, namespace: str, layer: LayerBlob) -> None:
        """A layer could not be applied: the space of those above it is free again, not only after a while."""
        manifest = self._manifests.get((namespace, layer.digest))
        for (whose, what, _root), image in list(self._images.items()):
            if whose == namespace and what in {manifest, _ARRIVED}:
                self._forget(image)

    # For `arriving`.

    def directory(self, root: Path) -> Path:
        """A name for another spare directory; whoever makes it hands it to `adopt` or `discard`."""
        self._number += 1
        return root / f"{PREFIX}{self._token}-{self._number}"

    def has(self, digest: str, root: Path, *, but: _Image | None = None) -> bool:
        """Whether a layer has been begun, or is unpacked and waits to be asked for; in another image than `but`."""
        return any(
            image.layers[position].digest == digest
            for image in self._images.values()
            if image is not but and image.root == root
            for position in image.spares
        )

    def adopt(self, namespace: str, digest: str, root: Path, spare: Spare) -> None:
        """Keep a layer for whoever asks; its blob is in the content store now."""
        image = self._images.setdefault((namespace, _ARRIVED, root), _Image(namespace, root, []))
        if not image.spares:
            image.layers.clear()
        position = len(image.layers)
        image.layers.append(LayerBlob(media_type=OCI_LAYER, digest=digest))
        image.begun.add(position)
        image.spares[position] = spare
        self.adopted = frozenset(self._adopted())
        self._wait_for_call(image)

    def discard(self, spare: Spare) -> None:
        """Stop it, and remove what it made, some time soon."""
        spare.task.cancel()
        tidying = asyncio.create_task(self._tidy(spare))
        self._tidying.add(tidying)
        tidying.add_done_callback(self._tidying.discard)

    def _adopted(self) -> Iterator[str]:
        for (_whose, what, _root), image in self._images.items():
            if what == _ARRIVED:
                yield from (image.layers[position].digest for position in image.spares)

    def drop(self, namespace: str, digest: str) -> None:
        """Discard what was adopted and is not going to be asked for: its blob has been removed."""
        for (whose, what, _root), image in self._images.items():
            if (whose, what) == (namespace, _ARRIVED):
                for position in [at for at in image.spares if image.layers[at].digest == digest]:
                    self.discard(image.spares.pop(position))
                    self.on_unused(namespace)

    # The end.

    async def close(self) -> None:
        """Stop everything. What it takes long to remove is left for the sweep after the next start."""
        self._stop_at = time.monotonic() + CLOSING_S
        for image in list(self._images.values()):
            self._forget(image)
        while self._tidying:
            await asyncio.wait(self._tidying)

    def sweep(self, roots: Sequence[Path]) -> None:
        """Remove what earlier processes have left below `roots`; blocks, and may run beside everything else."""
        for root in roots:
            with contextlib.suppress(FileNotFoundError), os.scandir(root) as entries:
                for entry in entries:
                    if entry.name.startswith(PREFIX) and not entry.name.startswith(f"{PREFIX}{self._token}-"):
                        _remove(Path(entry.path), self._must_stop)

    def _go(self) -> None:
        """Begin what may be begun."""
        running = sum(not spare.task.done() for image in self._images.values() for spare in image.spares.values())
        for image in self._images.values():
            for position in range(image.reached + 1, min(image.reached + 1 + WINDOW, len(image.layers))):
                if running >= self._atonce:
                    return
                # One that was begun for another namespace or image will do; see `_pop`.
                if position in image.begun or self.has(image.layers[position].digest, image.root, but=image):
                    continue
                if self._here(image.namespace, image.layers[position]):
                    self._begin(image, position)
                    running += 1

    def _begin(self, image: _Image, position: int) -> None:
        directory = self.directory(image.root)
        task = asyncio.create_task(self._run(image, position, directory))
        image.begun.add(position)
        image.spares[position] = Spare(directory, task)

    async def _run(self, image: _Image, position: int, directory: Path) -> Applied:
        try:
            await settle(asyncio.to_thread(directory.mkdir, 0o755))
            failpoints.reach("unpack.ahead.made")
            return await self._unpack(image.namespace, image.layers[position], directory)
        except OSError as error:
            raise errdefs.InternalError(f"unpack ahead: {error}") from error
        finally:
            asyncio.get_running_loop().call_soon(self._go)

    def _pop(self, namespace: str, digest: str, root: Path) -> Spare | None:
        """The lowest spare of that layer, the namespace's own if it has one; it is the caller's from now on.

        Another's is as good: whoever asks has the blob, and from outside nobody can write to a spare.
        """
        for image in sorted(self._images.values(), key=lambda one: one.namespace != namespace):
            if image.root != root:
                continue
            for position in sorted(image.spares):
                if image.layers[position].digest == digest:
                    return image.spares.pop(position)
        return None

    def _wait_for_call(self, image: _Image) -> None:
        """Forget the image if nothing is asked of it for a while, counted from now."""
        if image.timer is not None:
            image.timer.cancel()
        image.timer = asyncio.get_running_loop().call_later(self._patience_s, self._give_up, image)

    def _give_up(self, image: _Image) -> None:
        adopted = self._images.get((image.namespace, _ARRIVED, image.root)) is image
        if adopted and self.is_expected(image.namespace, self._patience_s):
            self._wait_for_call(image)
            return
        if adopted and any(not spare.failed for spare in image.spares.values()):
            self.on_unused(image.namespace)
        self._forget(image)

    def _forget(self, image: _Image) -> None:
        if image.timer is not None:
            image.timer.cancel()
        for key, known in list(self._images.items()):
            if known is image:
                del self._images[key]
        self._drop(image)

    async def _tidy(self, spare: Spare) -> None:
        await asyncio.wait([spare.task])
        if not spare.task.cancelled() and (error := spare.task.exception()) is not None:
            log.debug("layer is not unpacked ahead", extra={"reason": str(error)})
        await settle(asyncio.to_thread(_remove, spare.directory, self._must_stop))

    def _must_stop(self) -> bool:
        return time.monotonic() > self._stop_at

    def _drop(self, image: _Image) -> None:
        for spare in image.spares.values():
            self.discard(spare)
        image.spares.clear()


def move_tree(source: Path, target: str) -> bool:
    """Rename all that is in a directory into another, which must be empty: else nothing is done, and this is False."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    target_fd = os.open(target, flags)
    try:
        if os.listdir(target_fd):
            return False
        source_fd = os.open(source, flags)
        try:
            for name in os.listdir(source_fd):
                os.rename(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd)
                failpoints.reach("unpack.ahead.moved")
        finally:
            os.close(source_fd)
    finally:
        os.close(target_fd)
    return True


def room_for_image(directory: Path) -> tuple[Path, str]:
    """Inside a spare directory: an empty root for a layer that becomes an image, and the image's path."""
    root = directory / _ROOT
    root.mkdir()
    root.chmod(0o755)  # mkdir(2) has taken the umask off, and the image keeps what it is
    return root, os.fspath(directory / _IMAGE)


def move_image(source: Path, directory: str, image: str) -> bool:
    """Rename the image in a spare directory to `image`.

    False, and nothing is done, if something lies there or in the snapshot's `directory` already, or if that is not what
    the image shows as its root.
    """
    made, wanted = os.stat(source / _ROOT), os.stat(directory)
    if (made.st_mode, made.st_uid, made.st_gid) != (wanted.st_mode, wanted.st_uid, wanted.st_gid):
        return False
    if os.listdir(directory) or os.path.exists(image):
        return False
    os.rename(source / _IMAGE, image)
    return True


def _remove(directory: Path, stop: trees.Stop) -> None:
    try:
        trees.remove(directory, stop=stop)
        failpoints.reach("unpack.ahead.removed")
    except (FileNotFoundError, trees.StoppedError):
        pass
    except OSError as error:
        # The sweep after the next start finds it.
        log.warning("what was unpacked ahead cannot be removed", extra={"path": str(directory), "error": str(error)})
