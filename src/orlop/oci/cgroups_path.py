"""The cgroup that a runtime spec asks for. Imports next to nothing: supervisors need it, too."""

import json
import os


def cgroups_path(spec: bytes) -> str:
    """Its path, as /proc/PID/cgroup would have it; empty if there is none, if systemd makes it, or if it is no name.

    Source: linux.cgroupsPath in runtime-spec's config-linux.md.
    """
    try:
        path = (json.loads(spec).get("linux") or {}).get("cgroupsPath") or ""
    except (ValueError, AttributeError):
        return ""
    if not isinstance(path, str) or not path.startswith("/") or ".." in path.split("/"):
        return ""
    clean = os.path.normpath(f"/{path.lstrip('/')}")
    return "" if clean == "/" else clean
