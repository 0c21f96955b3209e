"""A client's options for the OCI runtime, out of the protobuf message that it sent."""

from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from orlop.api.types.runc.options import oci_pb2
from orlop.api.types.runtimeoptions.v1 import api_pb2
from orlop.base.errdefs import InvalidArgumentError, UnimplementedError

RUNC_OPTIONS: Final = "containerd.runc.v1.Options"
_GENERIC_OPTIONS: Final = ("runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options")
_CONFIG_LIMIT: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`containerd.runc.v1.Options` in plain words."""

    binary: str = ""
    root: str = ""
    systemd_cgroup: bool = False
    no_pivot: bool = False
    no_new_keyring: bool = False
    io_uid: int = 0
    io_gid: int = 0
    shim_cgroup: str = ""
    criu_image_path: str = ""
    criu_work_path: str = ""


def parse(message: AnyMessage | None) -> Options:
    """The options in `message`; defaults if it is empty.

    Raises:
        InvalidArgumentError: its bytes or the file it names are not what they must be.
        UnimplementedError: options for another kind of runtime.
    """
    if message is None or not message.type_url:
        return Options()
    kind = message.type_url.rpartition("/")[2]
    try:
        if kind == RUNC_OPTIONS:
            return _from_runc(oci_pb2.Options.FromString(message.value))
        if kind in _GENERIC_OPTIONS:
            return _from_generic(api_pb2.Options.FromString(message.value))
    except DecodeError as error:
        raise InvalidArgumentError(f"runtime options: no valid {kind}: {error}") from error
    raise UnimplementedError(f"runtime options of type {kind}")


def _from_runc(found: oci_pb2.Options) -> Options:
    return Options(
        binary=found.binary_name,
        root=found.root,
        systemd_cgroup=found.systemd_cgroup,
        no_pivot=found.no_pivot_root,
        no_new_keyring=found.no_new_keyring,
        io_uid=found.io_uid,
        io_gid=found.io_gid,
        shim_cgroup=found.shim_cgroup,
        criu_image_path=found.criu_image_path,
        criu_work_path=found.criu_work_path,
    )


def _from_generic(found: api_pb2.Options) -> Options:
    """TOML with the names that containerd's CRI configuration uses for runc, inline or in a file."""
    import tomllib  # late: hardly any client sends these

    text = found.config_body.decode("utf-8", "replace")
    try:
        if not text and found.config_path:
            with open(found.config_path, "rb") as file:
                text = file.read(_CONFIG_LIMIT).decode("utf-8", "replace")
        loaded: dict[str, Any] = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"runtime options {found.config_path or '(inline)'}: {error}") from error
    try:
        return Options(
            binary=str(loaded.get("BinaryName", "")),
            root=str(loaded.get("Root", "")),
            systemd_cgroup=bool(loaded.get("SystemdCgroup", False)),
            no_pivot=bool(loaded.get("NoPivotRoot", False)),
            no_new_keyring=bool(loaded.get("NoNewKeyring", False)),
            io_uid=int(loaded.get("IoUid", 0)),
            io_gid=int(loaded.get("IoGid", 0)),
            shim_cgroup=str(loaded.get("ShimCgroup", "")),
            criu_image_path=str(loaded.get("CriuImagePath", "")),
            criu_work_path=str(loaded.get("CriuWorkPath", "")),
        )
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"runtime options {found.config_path or '(inline)'}: {error}") from error
