"""What the supervisor must know of a config.json and changes in it, and the files beside it that a runtime reads."""

import json
import os
from typing import Any, Final

from orlop.base import failpoints, json_text
from orlop.base.errdefs import InvalidArgumentError

_CAP_SYS_RESOURCE: Final = 24
_Spec = dict[str, Any]  # JSON of somebody else's making


def read(bundle: str) -> _Spec:
    """The spec of a bundle.

    Raises:
        InvalidArgumentError: there is none, or it is no JSON object of the kinds of values that a spec has.
    """
    path = f"{bundle}/config.json"
    try:
        with open(path, "rb") as file:
            spec = json_text.loads(file.read())
        _check(spec)
    except (OSError, ValueError, TypeError) as error:
        raise InvalidArgumentError(f"spec {path}: {error}") from error
    return spec  # type: ignore[no-any-return]  # checked


def shares_pids(spec: _Spec) -> bool:
    """Whether the container has no Linux pid namespace of its own."""
    namespaces = (spec.get("linux") or {}).get("namespaces") or ()
    return not any(one.get("type") == "pid" and not one.get("path") for one in namespaces)


def maps_mounts(spec: _Spec) -> bool:
    """Whether a mount wants ids mapped: a runtime that does not know that would mount it unmapped without a word.

    Source: usesIDMapMounts in containerd's core/runtime/v2/task_manager.go.
    """
    return any(
        one.get("uidMappings") or one.get("gidMappings") or {"idmap", "ridmap"} & set(one.get("options") or ())
        for one in spec.get("mounts") or ()
    )


def clamp_oom_score(bundle: str, spec: _Spec) -> None:
    """Let the container's oom_score_adj be no lower than ours where this process may not lower it.

    Source: restrict_oom_score_adj of containerd, which is a setting there.
    """
    process = spec.get("process") or {}
    wanted = process.get("oomScoreAdj")
    if not isinstance(wanted, int) or _may_lower_scores():
        return
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        least = int(file.read())
    if wanted < least:
        process["oomScoreAdj"] = least
        path = f"{bundle}/config.json"
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump(spec, file)
        failpoints.reach("shim.spec.written")
        os.rename(f"{path}.new", path)
        failpoints.reach("shim.spec.renamed")


def process(exec_id: str, spec: bytes, *, terminal: bool) -> bytes:
    """What an exec is to run, for the runtime.

    Raises:
        InvalidArgumentError: it is no JSON object.
    """
    try:
        document = json_text.loads(spec)
        document["terminal"] = terminal
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(f"process spec of exec {exec_id}: {error}") from error
    return json.dumps(document).encode()


def write_private(path: str, data: bytes) -> None:
    """Write a file that only we read. Raises OSError, with the path."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _may_lower_scores() -> bool:
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)
    return True


def _check(spec: object) -> None:
    """Raises TypeError where something is not of the kind that the functions above rely on."""
    if not isinstance(spec, dict):
        raise TypeError("no JSON object")
    linux = spec.get("linux") or {}
    for name, value, kind in (
        ("linux", linux, dict),
        ("process", spec.get("process") or {}, dict),
        ("mounts", spec.get("mounts") or [], list),
        ("linux.namespaces", (linux.get("namespaces") if isinstance(linux, dict) else None) or [], list),
    ):
        if not isinstance(value, kind) or (kind is list and not all(isinstance(one, dict) for one in value)):
            raise TypeError(f"{name} is not what it must be")
    for mount in spec.get("mounts") or []:
        options = mount.get("options") or []
        if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
            raise TypeError("options of a mount are not what they must be")
