"""What the restart labels decide."""

import pytest

from orlop.base.errdefs import InvalidArgumentError
from orlop.core.runtime.restart import COUNT_LABEL, POLICY_LABEL, STOPPED_LABEL, Policy, shall_start


@pytest.mark.parametrize(
    ("labels", "exit_status", "expected"),
    [
        ({}, 0, True),
        ({POLICY_LABEL: "always"}, 1, True),
        ({POLICY_LABEL: "no"}, 1, False),
        ({POLICY_LABEL: "on-failure"}, 0, False),
        ({POLICY_LABEL: "on-failure"}, 3, True),
        ({POLICY_LABEL: "on-failure:0", COUNT_LABEL: "99"}, 3, True),
        ({POLICY_LABEL: "on-failure:2", COUNT_LABEL: "1"}, 3, True),
        ({POLICY_LABEL: "on-failure:2", COUNT_LABEL: "2"}, 3, False),
        ({POLICY_LABEL: "unless-stopped"}, 0, True),
        ({POLICY_LABEL: "unless-stopped", STOPPED_LABEL: "true"}, 0, False),
        ({POLICY_LABEL: "unless-stopped", STOPPED_LABEL: "false"}, 0, True),
    ],
)
def test_labels_and_exit_decide(labels: dict[str, str], exit_status: int, expected: bool):
    assert shall_start(labels, exit_status) is expected


@pytest.mark.parametrize("text", ["sometimes", "always:3", "on-failure:x", "on-failure:-1", "on-failure:"])
def test_what_is_no_policy_is_refused(text: str):
    with pytest.raises(InvalidArgumentError, match="restart policy"):
        Policy.parse(text)


def test_a_count_that_is_no_number_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"restart\.count"):
        shall_start({POLICY_LABEL: "on-failure:2", COUNT_LABEL: "x"}, 1)
