"""Where a stand answers otherwise than the suite expects, and why. An entry that is no longer true fails its test."""

_MAPPED = "test_mounts_with_mapped_ids_are_refused_where_the_runtime_would_not_map_them"
_OURS = ("orlopd", "containerd+orlop.v1")
_NAMES = (
    "containerd 1.x reads the options of runtimes that are called io.containerd.runc.* and of no others; 2.x of all"
)

_IDMAP = "containerd 1.x does not ask what the runtime can, and runc 1.1 mounts unmapped without a word; 2.x refuses"

# Test (without its parameters) and stand: reason.
DIFFERENCES = {
    ("test_options_reach_the_runtime", "containerd+orlop.v1"): _NAMES,
    ("test_options_of_another_kind", "containerd+orlop.v1"): _NAMES,
    **{(_MAPPED, stand): _IDMAP for stand in ("orlopd+runc.v2", "containerd")},
}

_CHECKPOINT = "containerd's shim quotes the library that ran the runtime; ours names the phase, as for all other calls"
_SIGNAL = (
    "containerd's shim asks the runtime, which complains in its own words; ours knows that there is no such signal"
)
_EXEC = "containerd 1.6 asks the runtime, which refuses; 1.7 has the shim refuse, with this class and these words"
_PATH = "CRIU is reached, because " + _NAMES.partition(" and")[0]

OF_1_6 = frozenset({"start an exec"})
"""Calls that later releases of containerd answer as we do."""

# Stand, state (`*`: of all) and call: reason.
ANSWERS = {
    ("orlopd", "running", "checkpoint"): _CHECKPOINT,
    ("orlopd", "paused", "checkpoint"): _CHECKPOINT,
    ("containerd+orlop.v1", "running", "checkpoint"): _PATH,
    ("containerd+orlop.v1", "paused", "checkpoint"): _PATH,
    **{(stand, state, "start an exec"): _EXEC for stand in _OURS for state in ("stopped", "killed while paused")},
    **{(stand, state, "kill by 200"): _SIGNAL for stand in _OURS for state in ("created", "running", "paused")},
}
