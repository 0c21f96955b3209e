"""Measure orlopd beside Debian's containerd, on this machine, in one run: `make bench`.

Both daemons run at the same time, one of them idle; the same client program drives both, with the same images and the
same OCI runtime; runs alternate A B A B, so that what changes on the machine changes for both. Only ratios and medians
are worth comparing, and only within one run.

    rows.py      what is measured: a row is a name, a unit and a function from an engine to a number
    layers.py    rows about importing, pulling and unpacking, with the images of images.py
    metadata.py  rows about metadata, and their clients
    many.py      rows about thousands of objects, hundreds of containers, and a daemon's start
    pair.py      the two engines, and the alternation
    report.py    table and JSON
    store.py     the file system that both keep their state on
    hugetlb.py   what makes crun accept a hybrid host
    memory.py    proportional memory of a daemon and its helpers
    scale.py     orlopd alone, as its store grows: `make bench-scale`
    profile.py   where the time of one `ctr run --rm` goes
    machine.py   what the figures were taken on
"""
