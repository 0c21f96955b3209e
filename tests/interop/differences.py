"""Where our daemon is known to answer otherwise than Debian's containerd, and why.

Keyed by scenario and the words of the step. A row here must really differ: a step that answers the same fails.
"""

INDEX_LAST = "index=off comes last, as in containerd 2.x; 1.6 puts it first"
NAMES = "our error names the object as the client named it, not by an internal key or not at all"

ONCE = "our error says its class once"

DIFFERENCES: dict[tuple[str, str], str] = {
    ("images", "images ls name="): ONCE,
    ("snapshots", "snapshots prepare --target {scratch} active layer"): INDEX_LAST,
    ("snapshots", "snapshots mounts /mnt active"): INDEX_LAST,
    ("snapshots", "snapshots mounts /mnt layer"): NAMES,
    ("snapshots", "snapshots remove layer"): NAMES,
    ("snapshots", "snapshots commit x look"): NAMES,
}
