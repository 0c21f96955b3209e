"""Building layer blobs for tests, and applying them with real workers."""

import asyncio
import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

from orlop.core.diff import Applied, LayerBlob
from orlop.core.diff.apply import Plan, apply
from orlop.core.diff.extract import Limits
from orlop.core.diff.workers import Pool
from orlop.core.mount import Mount, options

MTIME = 1_500_000_000


def entry(
    name: str | bytes, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields
) -> tuple[tarfile.TarInfo, bytes]:
    """One member; `fields` are TarInfo's."""
    info = tarfile.TarInfo(os.fsdecode(name))
    info.type = kind
    info.size = len(data)
    info.mtime = MTIME
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def file(name: str | bytes, data: bytes = b"data", **fields):
    return entry(name, tarfile.REGTYPE, data, **fields)


def directory(name: str | bytes, **fields):
    return entry(name, tarfile.DIRTYPE, **fields)


def symlink(name: str | bytes, target: str, **fields):
    return entry(name, tarfile.SYMTYPE, linkname=target, **fields)


def hardlink(name: str | bytes, target: str, **fields):
    return entry(name, tarfile.LNKTYPE, linkname=target, **fields)


def archive(*entries, dialect: int = tarfile.PAX_FORMAT) -> bytes:
    """An uncompressed archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=dialect, errors="surrogateescape") as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def apply_bytes(
    blob: bytes, mounts: list[Mount], scratch: Path, *, limits: Limits | None = None, image: str = ""
) -> Applied:
    """Apply a blob with a pool of its own."""
    path = scratch / "blob"
    path.write_bytes(blob)

    async def run() -> Applied:
        async with Pool(1) as pool:
            layer = LayerBlob(media_type="", digest=digest(blob))
            return await apply_file(pool, path, layer, Plan.of(mounts), limits=limits, image=image)

    return asyncio.run(run())


async def apply_file(
    pool: Pool, path: Path, layer: LayerBlob, plan: Plan, *, limits: Limits | None = None, image: str = ""
) -> Applied:
    """Apply a blob that is a file."""
    blob = File(path)
    try:
        return await apply(pool, blob, layer, plan, limits=limits, image=image)
    finally:
        blob.close()


class File:
    """See `orlop.core.content.Reader`."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.fd).st_size

    async def read_at(self, offset: int, length: int) -> bytes:
        return os.pread(self.fd, length, offset)

    def close(self) -> None:
        os.close(self.fd)


class Stack:
    """Layers of an overlay in a directory: apply on top, look at the whole."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.layers: list[Path] = []

    def lower(self) -> Path:
        """A new layer, written directly."""
        path = self.base / f"layer{len(self.layers)}"
        path.mkdir()
        self.layers.insert(0, path)
        return path

    def add(self, *entries, blob: bytes | None = None) -> Path:
        """A new layer, unpacked as the overlayfs snapshotter would have it; its upper directory."""
        path, work = self.base / f"layer{len(self.layers)}", self.base / f"work{len(self.layers)}"
        path.mkdir()
        work.mkdir()
        if self.layers:
            mount = Mount(
                type="overlay",
                source="overlay",
                options=("index=off", f"workdir={work}", f"upperdir={path}", f"lowerdir={self._lowerdir()}"),
            )
        else:
            mount = Mount(type="bind", source=str(path), options=("rw", "rbind"))
        apply_bytes(blob if blob is not None else archive(*entries), [mount], self.base)
        self.layers.insert(0, path)
        return path

    def view(self) -> list[Mount]:
        if len(self.layers) == 1:
            return [Mount(type="bind", source=str(self.layers[0]), options=("ro", "rbind"))]
        return [Mount(type="overlay", source="overlay", options=("index=off", f"lowerdir={self._lowerdir()}"))]

    def _lowerdir(self) -> str:
        return options.join_layers(map(str, self.layers))


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def tree(root: str | os.PathLike[str]) -> dict[str, tuple]:
    """What can be seen of a tree: path to type, mode, owner, size, device, link, attributes, content and times."""
    found: dict[str, tuple] = {}
    inodes: dict[tuple[int, int], str] = {}
    for parent, directories, files in os.walk(root):
        directories.sort()
        for name in sorted(directories + files):
            path = os.path.join(parent, name)
            relative = os.path.relpath(path, root)
            try:
                status = os.lstat(path)
            except FileNotFoundError:  # overlayfs lists the whiteouts of a directory that one layer alone has
                found[relative] = ("whiteout",)
                continue
            first = ""
            if status.st_nlink > 1 and not os.path.isdir(path):
                first = inodes.setdefault((status.st_dev, status.st_ino), relative)
            content: object = None
            if os.path.islink(path):
                content = os.readlink(path)
            elif os.path.isfile(path):
                with open(path, "rb") as opened:
                    content = hashlib.sha256(opened.read()).hexdigest()
            attributes = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
                if not key.startswith("trusted.overlay.")
            }
            found[relative] = (
                oct(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_rdev,
                status.st_mtime_ns,
                content,
                first,
                attributes,
            )
    return found
