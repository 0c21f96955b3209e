"""Where our daemon is known to answer otherwise than Debian's containerd, and why.

Keyed by scenario and the words of the step. A row here must really differ: a step that answers the same fails.
"""

INDEX_LAST = "index=off comes last, as in containerd 2.x; 1.6 puts it first"
NAMES = "our error names the object as the client named it, not by an internal key or not at all"

ONCE = "our error says its class once"

OWN_WORDS = (
    "our error names the container; and what the OCI runtime prints itself reaches the client too, for the output of"
    " the runtime's child is not copied but its own"
)

DIFFERENCES: dict[tuple[str, str], str] = {
    ("images", "images ls name="): ONCE,
    ("run", "run --rm {image} one /no/such/program"): OWN_WORDS,
    ("run", "run --rm --mount type=bind,src=/no/such/dir,dst=/mnt,options=rbind:ro {image} two true"): OWN_WORDS,
    ("tasks", "tasks exec --exec-id e1 one /no/such/program"): OWN_WORDS,
    ("snapshots", "snapshots prepare --target {scratch} active layer"): INDEX_LAST,
    ("snapshots", "snapshots mounts /mnt active"): INDEX_LAST,
    ("snapshots", "snapshots mounts /mnt layer"): NAMES,
    ("snapshots", "snapshots remove layer"): NAMES,
    ("snapshots", "snapshots commit x look"): NAMES,
}
