"""Where our `ctr` on orlopd is known to answer otherwise than Debian's on containerd, and why; see differences.py."""

from tests.interop.differences import INDEX_LAST, NAMES, OWN_WORDS

PHASE = "the phase is not said, for there is one alone"
OWN_TEXT = "our error names what was given and what is wrong with it"
SAYS_DONE = "our import says what it has brought, as containerd 2.x does"
NEWER = "the version of the runtime's specification is the newer one"
SHOWS = "without labels, ours shows those that are there"
MOVES = "the transfer service moves a name that exists, and so does today's ctr by default"
SMART = "an id is made up where none is given, and Debian's panics without a terminal"

OUR_DIFFERENCES: dict[tuple[str, str], str] = {
    ("images", "images import --digests=true --no-unpack {archive}"): SAYS_DONE,
    ("images", "images ls name="): PHASE,
    ("images", "images tag --force=false {image} example.org/other:1"): MOVES,
    (
        "content",
        "content ingest --expected-digest sha256:0000000000000000000000000000000000000000000000000000000000000000"
        " three <<< hello",
    ): PHASE,
    ("content", "content ingest --expected-size 9 four <<< hello"): OWN_TEXT,
    ("content", "content ingest --expected-digest nonsense five <<< hello"): OWN_TEXT,
    ("content", "content get nonsense"): OWN_TEXT,
    ("snapshots", "snapshots prepare --target {scratch} active layer"): INDEX_LAST,
    ("snapshots", "snapshots mounts /mnt active"): INDEX_LAST,
    ("snapshots", "snapshots mounts /mnt layer"): NAMES,
    ("snapshots", "snapshots remove layer"): NAMES,
    ("snapshots", "snapshots commit x look"): NAMES,
    ("run", "run --rm {image} one /no/such/program"): OWN_WORDS,
    ("run", "run --rm --mount type=bind,src=/no/such/dir,dst=/mnt,options=rbind:ro {image} two true"): OWN_WORDS,
    ("tasks", "tasks exec --exec-id e1 one /no/such/program"): OWN_WORDS,
    ("tasks", "tasks rm one"): NAMES,
    ("tasks", "containers rm one"): NAMES,
    ("labels", "content label nonsense a=b"): OWN_TEXT,
    ("images more", "images convert --platform nonsense/x/y/z {image} x/y:1"): PHASE,
    ("images more", "images mount {image} {scratch}/nowhere"): OWN_TEXT,
    ("oci", "oci spec"): NEWER,
    ("containers more", "containers create --mount type=bind,nonsense {image} one"): OWN_TEXT,
    ("containers more", "containers create --env-file {scratch}/none {image} one"): OWN_TEXT,
    ("containers more", "containers label one"): SHOWS,
    ("run more", "run --rm --device /dev/none {image} one true"): OWN_TEXT,
    ("run more", "run --rm --uidmap nonsense --gidmap 0:0:1 {image} one true"): OWN_TEXT,
    ("run more", "run --rm --rootfs /no/such/directory one true"): OWN_WORDS,
    ("run more", "run --rm --tty --null-io {image} one true"): SMART,
    ("run more", "tasks exec one"): SMART,
}
