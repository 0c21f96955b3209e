"""What of a spec, and of new resources, is a task's limit of memory."""

import json

import pytest

from orlop.core.runtime.memory import limit_in, limit_of

MIB = 1 << 20


@pytest.mark.parametrize(
    ("resources", "limit"),
    [
        ({}, None),
        ({"memory": {}}, None),
        ({"memory": {"limit": 5}}, 5),
        ({"memory": {"limit": -1}}, 0),
        ({"memory": {"limit": "5"}}, None),
        ({"memory": {"limit": 5}, "unified": {"memory.high": "7"}}, 5),
        # The OCI runtimes write these last.
        ({"memory": {"limit": 5}, "unified": {"memory.max": "max"}}, 0),
        ({"memory": {"limit": 5}, "unified": {"memory.max": "1M"}}, MIB),
        ({"unified": {"memory.max": "4096\n"}}, 4096),
        ({"unified": {"memory.max": "much"}}, 0),
        ({"unified": {"memory.max": 7}}, 0),
        ({"unified": ["memory.max"]}, None),
        ([], None),
    ],
)
def test_limits(resources, limit):
    assert limit_in(json.dumps(resources).encode()) == limit
    assert limit_of(json.dumps({"linux": {"resources": resources}}).encode()) == (limit or 0)


def test_what_is_no_json_has_none():
    assert limit_of(b"{") == 0
    assert limit_in(b"") is None
