"""Garbage collection: what nothing refers to any more goes.

    roots        leases that have not expired, and what they hold; images that have not expired; containers; what is
                 labelled `containerd.io/gc.root`; ingests that are being written, or were lately and by no lease
    references   image → its target; container → its snapshot; snapshot → its parent; ingest → the blob that it claims;
                 the labels `containerd.io/gc.ref.content[.<x>]`, `.ref.image[.<x>]`, `.ref.mount[.<x>]`,
                 `.ref.snapshot.<snapshotter>[/<x>]`, and turned around `.bref.container`, `.bref.content`,
                 `.bref.image`, `.bref.snapshot.<snapshotter>`; lease → the activations of mounts made under it
    for now      unsynced snapshot → the blob that it was unpacked from; once it is synced, the blob can go
    collectible  leases, images, content records, ingests, snapshots, activations of mounts

`mark` is a pure function over these; `Graph` reads them out of the database; `Collector` removes, in one write
transaction, what was not marked, and puts its bytes into the trash; `Scheduler` says when.

Source: containerd's docs/garbage-collection.md, core/metadata/gc.go, pkg/gc/gc.go and plugins/gc/scheduler.go.
"""

from orlop.core.gc.collector import Collector, Stats
from orlop.core.gc.graph import Graph
from orlop.core.gc.mark import Kind, Node, mark
from orlop.core.gc.scheduler import Policy, Scheduler

__all__ = ["Collector", "Graph", "Kind", "Node", "Policy", "Scheduler", "Stats", "mark"]
