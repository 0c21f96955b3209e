"""Loss of power, played: `make power`.

    life     one daemon on a disk that records, and calls of every kind, each with when it began and was answered
    state    what clients see of a daemon, as comparable data
    matrix   the power goes at each place of that life: what a machine that comes up again finds there

A call that was answered before the power went holds; one that was not may have happened or not, wholly, and succeeds
when it is made again. Whatever is there is whole.
"""
