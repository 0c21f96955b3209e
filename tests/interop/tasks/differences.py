"""Where a stand answers otherwise than the suite expects, and why. An entry that is no longer true fails its test."""

_NAMES = (
    "containerd 1.6 reads the options of runtimes that are called io.containerd.runc.* and of no others; 2.x of all"
)

# Test (without its parameters) and stand: reason.
DIFFERENCES = {
    ("test_options_reach_the_runtime", "containerd+orlop.v1"): _NAMES,
    ("test_options_of_another_kind", "containerd+orlop.v1"): _NAMES,
}
