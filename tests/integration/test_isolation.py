"""Namespaces kept apart, as a property: random programs in two namespaces on one daemon.

What one namespace is answered while another one works beside it is what it is answered alone, step by step: so the
other can neither read, list, alter, delete nor block what is its own. Both use the same names, labels, references and
digests. Under the policy `shared` there is one exception, which has its own test.
"""

import contextlib
import itertools
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orlop.base.errdefs import NotFoundError
from orlop.client.leases import Resource
from tests.integration.actors import NAMES, ROOT, STEPS, Actor, Place, data, digest
from tools.daemons import Orlopd

pytestmark = pytest.mark.root

STEP = st.tuples(st.sampled_from(sorted(STEPS)), st.sampled_from(NAMES), st.integers(0, 2))
FRESH = itertools.count()


WHO = ("alone", "mine", "other")
BOUND = ("full", "run")
WAYS = ("ttrpc", "grpc", *BOUND)


@pytest.fixture(scope="module")
def isolated(short_directory):
    """A daemon that collects only when it is told to, so that a program always ends in the same way."""
    home = Path(tempfile.mkdtemp(prefix="i.", dir=short_directory))
    sockets = "".join(
        f'[sockets.{role}-{who}]\naddress = "{home}/{role}-{who}"\nnamespace = "{role}-{who}"\nrole = "{role}"\n'
        for role in BOUND
        for who in WHO
    )
    config = f"""
[plugins."io.containerd.metadata.v1.bolt"]
content_sharing_policy = "isolated"
[plugins."io.containerd.gc.v1.scheduler"]
mutation_threshold = 0
{sockets}
"""
    with Orlopd(home, config=config) as daemon:
        yield daemon


def place(daemon, way, who):
    """A namespace of one's own on root's socket by either door, or a socket that is bound to one."""
    root = str(daemon.address)
    if way in BOUND:
        return Place(f"{way}-{who}", root, str(daemon.address.parent / f"{way}-{who}"))
    return Place(f"{who}-{next(FRESH)}", root, root, transport=way)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(program=st.lists(st.tuples(st.booleans(), STEP), min_size=25, max_size=60))
def test_another_namespace_changes_no_answer(isolated, way, program):
    with contextlib.ExitStack() as stack:
        alone, mine, other = (stack.enter_context(contextlib.closing(Actor(place(isolated, way, who)))) for who in WHO)
        expected = [alone.act(step) for theirs, step in program if not theirs]
        # Before the other one comes in, nothing of the first run may be in the way of the second.
        found = []
        for theirs, step in program:
            answer = (other if theirs else mine).act(step)
            if not theirs:
                found.append(answer)
        assert found == expected
        left = [one.client.contents for one in (mine, alone)] if way not in BOUND else []
        assert len({actor.plain(str(one())) for actor, one in zip((mine, alone), left, strict=False)}) <= 1


@pytest.mark.parametrize("way", ["ttrpc", "full"])
@settings(max_examples=5, suppress_health_check=list(HealthCheck))
@given(program=st.lists(STEP, min_size=25, max_size=40), theirs=st.lists(STEP, min_size=10, max_size=20))
def test_others_that_work_at_the_same_time_change_no_answer(isolated, way, program, theirs):
    """Two clients of the other namespace at once, in each other's way, for as long as it takes."""
    done = threading.Event()
    failures = []

    def disturb(actor, steps):
        try:
            while not done.is_set():
                for step in steps:
                    actor.act(step)
        except Exception as error:
            failures.append(error)

    with contextlib.ExitStack() as stack:
        alone, mine = (stack.enter_context(contextlib.closing(Actor(place(isolated, way, who)))) for who in WHO[:2])
        expected = [alone.act(step) for step in program]
        elsewhere = place(isolated, way, "other")
        others = [stack.enter_context(contextlib.closing(Actor(elsewhere))) for _ in range(2)]
        threads = [
            threading.Thread(target=disturb, args=(actor, steps))
            for actor, steps in zip(others, (theirs, theirs[::-1]), strict=True)
        ]
        for thread in threads:
            thread.start()
        try:
            found = [mine.act(step) for step in program]
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert found == expected
        assert failures == []


def test_under_isolated_a_digest_gives_nothing(isolated):
    address = str(isolated.address)
    with (
        contextlib.closing(Actor(Place("giver", address, address))) as giver,
        contextlib.closing(Actor(Place("taker", address, address))) as taker,
    ):
        giver.client.content.write("r", data(7), labels=ROOT)
        writer = taker.client.content.writer("r", expected=digest(7), size=len(data(7)))
        with contextlib.closing(writer):
            assert writer.offset == 0
        with pytest.raises(NotFoundError):
            taker.client.content.read(digest(7))
        taker.client.content.abort("r")
        # Nor does a label, a lease or an image that names it keep or show it.
        taker.client.leases.create("l")
        taker.client.leases.add("l", Resource(id=digest(7), type="content"))
        giver.client.content.delete(digest(7))
        taker.client.leases.delete("l", synchronous=True)
        for one in (giver, taker):
            with pytest.raises(NotFoundError):
                one.client.content.read(digest(7))


def test_under_shared_who_names_a_digest_has_it_without_sending(new_orlopd):
    """The one exception; and only by a write, which makes a record of one's own."""
    address = str(new_orlopd().address)
    with (
        contextlib.closing(Actor(Place("giver", address, address))) as giver,
        contextlib.closing(Actor(Place("taker", address, address))) as taker,
    ):
        giver.client.content.write("r", data(7), labels={**ROOT, "secret": "label"})
        for refused in (
            lambda: taker.client.content.read(digest(7)),
            lambda: taker.client.content.info(digest(7)),
            lambda: taker.client.content.delete(digest(7)),
            lambda: taker.client.content.label(digest(7), {"a": "b"}),
        ):
            with pytest.raises(NotFoundError):
                refused()
        writer = taker.client.content.writer("r", expected=digest(7), size=len(data(7)))
        with contextlib.closing(writer):
            assert writer.offset == len(data(7))
            writer.commit(labels=ROOT)
        assert taker.client.content.read(digest(7)) == data(7)
        assert dict(taker.client.content.info(digest(7)).labels) == ROOT
        taker.client.content.delete(digest(7))
        assert giver.client.content.read(digest(7)) == data(7)
        assert giver.client.content.info(digest(7)).labels["secret"] == "label"
