"""When a container that has ended is started again, by its labels. Pure: labels and an exit in, a decision out.

    containerd.io/restart.status               running or stopped: what shall be; without it nobody looks
    containerd.io/restart.policy               always (default), on-failure[:N], unless-stopped, no
    containerd.io/restart.count                how often it was started again; written by the monitor
    containerd.io/restart.explicitly-stopped   true after a client's stop, for unless-stopped
    containerd.io/restart.loguri               where output goes from the second start on

Source: core/runtime/restart of containerd.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from orlop.base.errdefs import InvalidArgumentError

STATUS_LABEL: Final = "containerd.io/restart.status"
POLICY_LABEL: Final = "containerd.io/restart.policy"
COUNT_LABEL: Final = "containerd.io/restart.count"
STOPPED_LABEL: Final = "containerd.io/restart.explicitly-stopped"
LOG_LABEL: Final = "containerd.io/restart.loguri"

POLICIES: Final = ("always", "no", "on-failure", "unless-stopped")

# What strconv.ParseBool of Go takes for true.
_TRUE: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One of `POLICIES`; `retries` bounds on-failure, 0 is no bound."""

    name: str
    retries: int = 0

    @classmethod
    def parse(cls, text: str) -> "Policy":
        """The policy that a label names; an empty one is always.

        Raises:
            InvalidArgumentError: no such policy, or a bound that is no whole number.
        """
        name, separator, bound = text.partition(":")
        if name not in POLICIES and text:
            raise InvalidArgumentError(f'restart policy "{text}": must be one of {", ".join(POLICIES)}')
        if separator and (name != "on-failure" or not bound.isascii() or not bound.isdigit()):
            raise InvalidArgumentError(f'restart policy "{text}": only on-failure has a bound, which is a whole number')
        return cls(name=name or "always", retries=int(bound) if separator else 0)


def shall_start(labels: Mapping[str, str], exit_status: int) -> bool:
    """Whether a container that shall run, and does not, is started again.

    Raises:
        InvalidArgumentError: a label makes no sense.
    """
    policy = Policy.parse(labels.get(POLICY_LABEL, ""))
    match policy.name:
        case "always":
            return True
        case "on-failure":
            return exit_status != 0 and (policy.retries == 0 or count(labels) < policy.retries)
        case "unless-stopped":
            return labels.get(STOPPED_LABEL, "") not in _TRUE
    return False


def count(labels: Mapping[str, str]) -> int:
    """How often it was started again. Raises InvalidArgumentError for a label that is no number."""
    text = labels.get(COUNT_LABEL, "") or "0"
    try:
        return int(text)
    except ValueError:
        raise InvalidArgumentError(f'label {COUNT_LABEL}: "{text}" is no number') from None
