"""The crash matrix: a daemon is killed at each fail point of each operation, comes back, and is asked what is true.

    stage.py        a daemon of its own with fail points, and what its calls have promised
    elsewhere.py    another daemon, in which the bytes of that one lie
    picture.py      what rows and files say; the invariants
    operations.py   what is done: its preparation, the doing (again after a crash), what must be so afterwards
    layers.py       the same for snapshots, unpacking, pulling, containers
    tasks.py        the same for tasks, with supervisors
    runtimes.py     the same for other runtimes and shims
    plan.py         all of them
    matrix.py       which points an operation passes, a crash at each, and what came of it

`python -m tools.crash` is `make crash`; `tests/crash` plays a part of it.
"""
