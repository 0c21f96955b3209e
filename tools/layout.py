"""Write OCI image layouts: layers from tar members, configs, manifests, indexes, and archives of them.

Independent of `orlop` on purpose: what is made here is the input that orlop is tested with.

Source: image-layout.md, layer.md, manifest.md, image-index.md and config.md of the OCI image specification.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal, cast

Compression = Literal["none", "gzip", "zstd"]

INDEX: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final[Mapping[str, str]] = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
CREATED: Final = "2024-01-01T00:00:00Z"
MTIME: Final = 1704067200


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer in a layout: its descriptor and the digest of its uncompressed tar."""

    descriptor: dict[str, Any]
    diff_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What an image says it runs on, in the words of image-spec."""

    architecture: str
    os: str = "linux"
    variant: str = ""

    def fields(self) -> dict[str, str]:
        given = {"architecture": self.architecture, "os": self.os, "variant": self.variant}
        return {name: value for name, value in given.items() if value}


def host_platform() -> Platform:
    """The platform of this machine, in Go's words."""
    machine = os.uname().machine
    names = {"x86_64": Platform(architecture="amd64"), "aarch64": Platform(architecture="arm64", variant="v8")}
    return names.get(machine) or Platform(architecture=machine)


@dataclass(slots=True)
class Layout:
    """An OCI image layout in a directory, written blob by blob; `finish()` writes its index.

    `files` and `unpacked_bytes` count the members and the size of all layers' tars.
    """

    directory: Path
    manifests: list[dict[str, Any]] = field(default_factory=list)
    files: int = 0
    unpacked_bytes: int = 0

    def __post_init__(self) -> None:
        (self.directory / "blobs" / "sha256").mkdir(parents=True)
        (self.directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        """Store bytes; their descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        (self.directory / "blobs" / "sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def document(self, value: Mapping[str, Any], media_type: str) -> dict[str, Any]:
        return self.blob(json.dumps(value, separators=(",", ":")).encode(), media_type)

    def layer(self, fill: Callable[[tarfile.TarFile], None], compression: Compression = "gzip") -> Layer:
        """Store what `fill` writes into a tar as a layer."""
        scratch = self.directory / "blobs" / "layer.tmp"
        with open(scratch, "wb") as file:
            stored = _Hashing(file)
            with _compressor(stored, compression) as compressor:
                plain = _Hashing(compressor)
                with tarfile.open(fileobj=cast("IO[bytes]", plain), mode="w|", format=tarfile.PAX_FORMAT) as tar:
                    fill(tar)
                    self.files += len(tar.getnames())
        self.unpacked_bytes += plain.size
        digest = stored.state.hexdigest()
        scratch.rename(self.directory / "blobs" / "sha256" / digest)
        descriptor = {"mediaType": LAYER[compression], "digest": f"sha256:{digest}", "size": stored.size}
        return Layer(descriptor, f"sha256:{plain.state.hexdigest()}")

    def manifest(self, layers: Sequence[Layer], config: Mapping[str, Any], platform: Platform) -> dict[str, Any]:
        """Store config and manifest of an image of these layers; the manifest's descriptor, with its platform."""
        settings = {
            "created": CREATED,
            **platform.fields(),
            "config": dict(config),
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created": CREATED, "created_by": f"orlop layer {n}"} for n, _ in enumerate(layers)],
        }
        body = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.document(settings, CONFIG),
            "layers": [layer.descriptor for layer in layers],
        }
        return {**self.document(body, MANIFEST), "platform": platform.fields()}

    def index(self, manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Store an index of manifests, as multi-platform images have; its descriptor."""
        return self.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(manifests)}, INDEX)

    def name(self, target: Mapping[str, Any], reference: str) -> None:
        """Enter `target` under a name: the tag for skopeo and umoci, the whole reference for containerd's import."""
        annotations = {
            "org.opencontainers.image.ref.name": reference.rsplit(":", 1)[-1],
            "io.containerd.image.name": reference,
        }
        self.manifests.append({**target, "annotations": annotations})

    def finish(self) -> None:
        body = {"schemaVersion": 2, "mediaType": INDEX, "manifests": self.manifests}
        (self.directory / "index.json").write_text(json.dumps(body))

    def archive(self, path: Path) -> Path:
        """Write the finished layout as one tar, as `ctr images import` takes it."""
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for name in ["oci-layout", "index.json", *sorted(self._blobs())]:
                tar.add(self.directory / name, name, filter=_anonymous)
        return path

    def _blobs(self) -> Iterator[str]:
        return (f"blobs/sha256/{path.name}" for path in (self.directory / "blobs" / "sha256").iterdir())


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tar member, written by hand: a file with data, a link with a target, else a directory."""

    name: str
    data: bytes | None = None
    symlink: str | None = None
    hardlink: str | None = None
    mode: int | None = None
    uid: int = 0
    gid: int = 0

    def add(self, tar: tarfile.TarFile) -> None:
        member = tarfile.TarInfo(self.name)
        member.uid, member.gid, member.mtime = self.uid, self.gid, MTIME
        body = None
        if self.data is not None:
            member.size, member.mode, body = len(self.data), 0o644, io.BytesIO(self.data)
        elif self.symlink is not None:
            member.type, member.linkname, member.mode = tarfile.SYMTYPE, self.symlink, 0o777
        elif self.hardlink is not None:
            member.type, member.linkname, member.mode = tarfile.LNKTYPE, self.hardlink, 0o644
        else:
            member.type, member.mode = tarfile.DIRTYPE, 0o755
        if self.mode is not None:
            member.mode = self.mode
        tar.addfile(member, body)


def entries(given: Iterable[Entry]) -> Callable[[tarfile.TarFile], None]:
    """A layer's content from entries, for `Layout.layer()`."""
    listed = list(given)

    def fill(tar: tarfile.TarFile) -> None:
        for entry in listed:
            entry.add(tar)

    return fill


class _Hashing:
    """A writable file that counts and hashes what passes through."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.state = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.state.update(data)
        self.size += len(data)
        self.file.write(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


@contextmanager
def _compressor(into: _Hashing, compression: Compression) -> Iterator[IO[bytes]]:
    target = cast("IO[bytes]", into)
    if compression == "none":
        yield target
    elif compression == "gzip":
        with gzip.GzipFile(filename="", fileobj=target, mode="wb", compresslevel=6, mtime=0) as file:
            yield cast("IO[bytes]", file)
    else:
        from backports import zstd  # only some images need it

        with zstd.ZstdFile(target, mode="w") as file:
            yield cast("IO[bytes]", file)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = MTIME
    return member
