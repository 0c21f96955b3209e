"""Where our daemon is known to answer otherwise than Debian's containerd, and why.

Keyed by scenario and the words of the step. A row here must really differ: a step that answers the same fails.
"""

from dataclasses import dataclass

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


Release = tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one step of a program of the API.

    Attributes:
        whole: the class of the error or the answer differs too, not only the text.
        since, until: containerd's releases in which it is so; None for all from the first or up to the newest.
    """

    reason: str
    whole: bool = False
    since: Release = None
    until: Release = None

    def applies(self, version: tuple[int, int]) -> bool:
        """Whether that release of containerd answers otherwise than we do."""
        return (self.since is None or version >= self.since) and (self.until is None or version <= self.until)

    def covers(self, version: tuple[int, int], *, only_text: bool) -> bool:
        """Whether a difference that was found is the listed one."""
        return self.applies(version) and (only_text or self.whole)


LENGTH = "1.6 does not say how long the label is; 1.7 does, as we"
NO_KEY = "a label, key or id that is empty is the caller's mistake; containerd passes its database's error on"
NO_CLASS = "containerd forgets the class of this error on its way out"
WHO_ASKS = "our error names the object as the client named it; containerd by a key of its own, or not at all"
BOUNDED = "what is too long is not shown at full length"
KEPT = "we answer what is stored: extensions that are not given stay, in containerd too, whose answer leaves them out"
ADDED = "answers with the namespace as it is now, which the message has a field for"
VALIDATED = "a name that can be none is refused, not taken and forgotten"
LATER = "later releases do as we do"


def _api(
    program: str, reason: str, *labels: str, whole: bool = False, since: Release = None, until: Release = None
) -> dict[tuple[str, str], Difference]:
    difference = Difference(reason, whole, since, until)
    return {(program, label): difference for label in labels}


def _numbered(method: str, *numbers: int) -> list[str]:
    return [method if number == 1 else f"{method} #{number}" for number in numbers]


API: dict[tuple[str, str], Difference] = {
    **_api("containers: ids", BOUNDED, "Containers.Create #14"),
    **_api(
        "containers: labels' sizes",
        LENGTH,
        *_numbered("Containers.Create", 2, 3, 4),
        *_numbered("Containers.Update", 1, 2),
        until=(1, 6),
    ),
    **_api(
        "containers: labels' sizes",
        "the key is cut at 64 characters, of which containerd shows as many bytes",
        "Containers.Create #6",
    ),
    **_api("containers: labels' sizes", NO_KEY, "Containers.Create #5", whole=True),
    **_api("containers: update by masks", NO_KEY, "Containers.Update #7", whole=True),
    **_api("containers: update by masks", KEPT, "Containers.Update #17", whole=True),
    **_api("containers: update without a mask", KEPT, *_numbered("Containers.Update", 2, 4), whole=True),
    **_api(
        "containers: what is missing",
        "1.7 takes a container without a spec, which cannot be run",
        *_numbered("Containers.Create", 4, 5),
        "Containers.Get",
        whole=True,
        since=(1, 7),
    ),
    **_api(
        "sandboxes: they keep their namespace",
        "1.7 keeps sandboxes beside the namespaces, not in them; 2.x does as we do",
        *_numbered("Namespaces.Delete", 1, 2),
        "events",
        whole=True,
        until=(1, 7),
    ),
    **_api("sandboxes: update without a mask", KEPT, "SandboxStore.Update #2", whole=True),
    **_api(
        "sandboxes: what is missing",
        "1.7 takes its database's word for an error of its own; 2.x answers as we do",
        "SandboxStore.Delete #2",
        whole=True,
        until=(1, 7),
    ),
    **_api("content: a life", LATER, "Content.List", whole=True),
    **_api("content: labels come with the commit", LATER, "Content.List", whole=True),
    **_api("content: order of lists", LATER, *_numbered("Content.List", 1, 2), whole=True),
    **_api("filters: content", LATER, *_numbered("Content.List", 1, 2, 3, 4, 6, 7, 8), whole=True),
    **_api(
        "content: reads",
        "the offset is that in the blob, as its field is documented; containerd counts from where the read began",
        *_numbered("Content.Read", 2, 3, 6, 14),
        whole=True,
    ),
    **_api("content: update by masks", NO_KEY, "Content.Update #7", whole=True),
    **_api("content: update by masks", LENGTH, *_numbered("Content.Update", 15, 16), until=(1, 6)),
    **_api("content: writes in one message", LENGTH, "Content.Write #10", until=(1, 6)),
    **_api(
        "content: writes in one message",
        "a ref that is opened with another total begins anew; containerd keeps the old bytes behind the new beginning",
        "Content.ListStatuses",
        "left",
        whole=True,
    ),
    **_api(
        "content: another total opens the ref anew",
        "begins anew; containerd finds the old bytes again when it is asked once more",
        "Content.Write #4",
        "left",
        whole=True,
    ),
    **_api(
        "content: a blob that another namespace has",
        "an ingest that claims a blob has a status; containerd looks for a file that is not there",
        "Content.Status",
        "Content.ListStatuses",
        whole=True,
    ),
    **_api("content: one writer per ref", WHO_ASKS, *_numbered("Content.Write", 2, 3)),
    **_api(
        "content: other algorithms",
        "the bytes are hashed by the algorithm of the expected digest, as in later releases",
        "Content.Write",
        "Content.Write #2",
        whole=True,
    ),
    **_api("diff: what cannot be applied", "the text is ours", "Diff.Apply"),
    **_api("diff: what cannot be applied", "what is no digest cannot be found", "Diff.Apply #2", whole=True),
    **_api("events: subscriptions that cannot be", NO_CLASS, *_numbered("Events.Subscribe", 1, 2), whole=True),
    **{
        key: row
        for text in ("event.id", "event.container_id==web")
        for key, row in _api(
            f"events: filter {text}",
            "a type's name is known with a host before it too, as in later releases",
            "Events.Subscribe",
            whole=True,
            until=(1, 6),
        ).items()
    },
    **_api(
        "events: what is missing",
        "1.7 takes an event without a time",
        "Events.Forward #2",
        "events",
        whole=True,
        since=(1, 7),
    ),
    **_api(
        "filters: the language",
        "an error shows whole characters; containerd cuts them into bytes, and counts a null as the end",
        *_numbered("Containers.List", 53, 54),
    ),
    **_api("filters: snapshots", NO_CLASS, "Snapshots.List #18", whole=True),
    **_api("filters: metrics", NO_CLASS, "Tasks.Metrics #2", whole=True),
    **_api(
        "gc: roots by a label that only begins so",
        "later releases look at the beginning of the label's key, and so do we: it keeps more",
        "left",
        whole=True,
    ),
    **_api("images: labels' sizes", LENGTH, "Images.Create #2", *_numbered("Images.Update", 1, 2), until=(1, 6)),
    **_api("images: labels' sizes", NO_KEY, "Images.Create #3", whole=True),
    **_api("images: leases", "images in leases are of 2.x", "left", whole=True),
    **_api("leases: ids and labels", NO_KEY, "Leases.Create #6", whole=True),
    **_api("leases: resources that are added", NO_KEY, *_numbered("Leases.AddResource", 8, 14, 16), whole=True),
    **_api(
        "leases: resources that are added",
        "images in leases are of 2.x",
        *_numbered("Leases.AddResource", 10, 11),
        "left",
        whole=True,
    ),
    **_api(
        "leases: resources that are taken off",
        "images in leases are of 2.x",
        *_numbered("Leases.DeleteResource", 10, 11),
        whole=True,
    ),
    **_api("leases: resources that are taken off", NO_KEY, "Leases.DeleteResource #16", whole=True),
    **_api(
        "namespaces: no header is needed",
        "in 1.6 the event needs one",
        "Namespaces.Create",
        "events",
        whole=True,
        until=(1, 6),
    ),
    **_api("namespaces: no header is needed", ADDED, "Namespaces.Update", whole=True),
    **_api("namespaces: names", BOUNDED, "Namespaces.Create #11"),
    **_api("namespaces: names", VALIDATED, *_numbered("Namespaces.Update", 1, 2, 3), whole=True),
    **_api("namespaces: names", VALIDATED, "events", whole=True, until=(1, 6)),
    **_api("namespaces: update by masks", ADDED, *_numbered("Namespaces.Update", 1, 2, 3, 5, 8), whole=True),
    **_api("namespaces: update without a mask", ADDED, *_numbered("Namespaces.Update", 1, 2, 3), whole=True),
    **_api(
        "namespaces: update without a mask",
        "an event of a namespace comes in it, as in later releases",
        "events",
        whole=True,
        until=(1, 6),
    ),
    **_api("namespaces: labels' sizes", LENGTH, "Namespaces.Create", until=(1, 6)),
    **_api("namespaces: labels' sizes", NO_KEY, "Namespaces.Create #2", whole=True),
    **_api("namespaces: labels' sizes", NO_CLASS, *_numbered("Namespaces.Update", 1, 2), whole=True),
    **_api(
        "namespaces: labels' sizes",
        "an event of a namespace comes in it, as in later releases",
        "events",
        whole=True,
        until=(1, 6),
    ),
    **_api(
        "snapshots: a life on native", WHO_ASKS, "Snapshots.Mounts of a committed one", "Snapshots.Remove of a parent"
    ),
    **_api(
        "snapshots: a life on overlayfs",
        WHO_ASKS,
        "Snapshots.Mounts of a committed one",
        "Snapshots.Remove of a parent",
    ),
    **_api(
        "snapshots: a life on overlayfs",
        INDEX_LAST,
        *_numbered("Snapshots.Prepare", 3, 4),
        "Snapshots.Mounts #2",
        "Snapshots.View #3",
        whole=True,
    ),
    **_api("snapshots: namespaces that are none", NO_CLASS, "Snapshots.List", whole=True),
    **_api("snapshots: namespaces that are none", "our snapshotters clean up", "Snapshots.Cleanup", whole=True),
    **_api(
        "snapshots: what is missing",
        NO_KEY,
        "Snapshots.Prepare",
        "Snapshots.View",
        "Snapshots.Commit",
        whole=True,
    ),
    **_api("snapshots: what is missing", WHO_ASKS, "Snapshots.Update"),
    **_api("snapshots: names", NO_KEY, "Snapshots.Commit", whole=True),
    **_api(
        "snapshots: parents that cannot be",
        WHO_ASKS,
        *_numbered("Snapshots.Prepare", 3, 4),
        "Snapshots.View",
    ),
    **_api(
        "snapshots: commits that cannot be",
        "what is no active snapshot is refused before its files are looked for",
        "Snapshots.Commit #2",
        whole=True,
    ),
    **_api("snapshots: commits that cannot be", WHO_ASKS, "Snapshots.Commit #3"),
    **_api("snapshots: commits that cannot be", NO_KEY, "Snapshots.Commit #7", whole=True),
    **_api("snapshots: commits that cannot be", LENGTH, "Snapshots.Commit #8", until=(1, 6)),
    **_api(
        "snapshots: labels' sizes",
        LENGTH,
        *_numbered("Snapshots.Prepare", 1),
        "Snapshots.View",
        *_numbered("Snapshots.Update", 1, 2),
        until=(1, 6),
    ),
    **_api("snapshots: labels' sizes", NO_KEY, "Snapshots.Prepare #3", whole=True),
    **_api("snapshots: cleanup", "our snapshotters clean up", *_numbered("Snapshots.Cleanup", 1, 2), whole=True),
    **_api("version: no header is needed", "who we are", *_numbered("Version.Version", 1, 2), whole=True),
    **_api("tasks: without a namespace", NO_CLASS, "Tasks.Metrics", whole=True),
    **_api("tasks: runtimes that are none", "the example of a runtime's name is today's", "Tasks.Create #2"),
}
"""Differences of the programs in `api/programs/`, by the program's name and the step's label (see `run.Peer.run`)."""

# Layers that Diff makes of the same two trees (test_diff.py).
LAYERS: dict[str, str] = {
    "whiteout times": "whiteouts are of 1970, as in containerd 2.x (HandleChange in pkg/archive/tar.go), so that the"
    " same trees give the same digest; 1.6 gives them the time of their making",
    "attributes": "user.* attributes and access lists are compared and kept, or a commit would lose them; containerd"
    " keeps security.capability only",
    "names": "a file `.wh.x` in the upper tree is refused: in a layer it would delete x; containerd writes it",
    "compression": "gzip by isal: faster and a little larger; the archive inside is the same",
}
