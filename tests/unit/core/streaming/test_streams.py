"""The manager of streams, and bytes over one: windows both ways, ends, and what a hostile end may send."""

import asyncio
import contextlib

import pytest

from orlop.api.types.transfer import streaming_pb2 as api
from orlop.base.errdefs import AlreadyExistsError, NotFoundError, UnavailableError
from orlop.core.streaming import Buffer, Manager, Packed
from orlop.core.streaming.proxy import PIECE, WINDOW, Sender, is_a, pack, received


class End:
    """One of two connected ends."""

    def __init__(self, incoming, outgoing):
        self.incoming, self.outgoing = incoming, outgoing

    async def send(self, message):
        await self.outgoing.put(message)

    async def receive(self):
        return await self.incoming.get()

    async def close(self):
        self.outgoing.end()


def ends(limit=100):
    there: Buffer[Packed] = Buffer(limit)
    back: Buffer[Packed] = Buffer(limit)
    return End(back, there), End(there, back)


def run(scenario):
    async def timed():
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(timed())


def test_a_buffer_is_bounded_and_ends():
    async def scenario():
        buffer: Buffer[int] = Buffer(1)
        await buffer.put(1)
        putting = asyncio.create_task(buffer.put(2))
        await asyncio.sleep(0)
        assert not putting.done()
        assert await buffer.get() == 1
        await putting
        buffer.end()
        with pytest.raises(UnavailableError):
            await buffer.put(3)
        assert [await buffer.get(), await buffer.get()] == [2, None]
        dropped: Buffer[int] = Buffer(1)
        await dropped.put(1)
        waiting = asyncio.create_task(dropped.put(2))
        await asyncio.sleep(0)
        dropped.end(drop=True)
        with pytest.raises(UnavailableError):
            await waiting
        assert await dropped.get() is None

    run(scenario)


def test_a_manager_knows_streams_by_namespace_and_name():
    async def scenario():
        manager = Manager()
        one, _ = ends()
        other, far = ends()
        manager.register("a", "s", one)
        manager.register("b", "s", other, lease="held")
        with pytest.raises(AlreadyExistsError):
            manager.register("a", "s", other)
        assert (manager.get("a", "s"), manager.get("b", "s")) == (one, other)
        await manager.collect(lambda _namespace, lease: lease == "held")
        assert manager.get("b", "s") is other
        await manager.collect(lambda _namespace, _lease: False)
        assert manager.get("a", "s") is one
        with pytest.raises(NotFoundError):
            manager.get("b", "s")
        assert await far.receive() is None
        manager.remove("a", "s")
        manager.remove("a", "s")
        with pytest.raises(NotFoundError):
            manager.get("a", "s")

    run(scenario)


def test_bytes_arrive_as_they_were_sent():
    async def scenario():
        data = bytes(range(256)) * 20_000
        near, far = ends()

        async def send():
            sender = Sender(near)
            for start in range(0, len(data), 700_001):
                await sender.write(data[start : start + 700_001])
            await sender.close()

        sending = asyncio.create_task(send())
        async with contextlib.aclosing(received(far)) as chunks:
            got = [chunk async for chunk in chunks]
        await sending
        assert b"".join(got) == data
        assert max(map(len, got)) <= PIECE

    run(scenario)


def test_a_sender_waits_for_room_and_believes_no_nonsense():
    async def scenario():
        near, far = ends()
        writing = asyncio.create_task(Sender(near).write(b"12345"))
        for nonsense in (api.WindowUpdate(update=-5), api.WindowUpdate(), api.Data(data=b"x")):
            await far.send(pack(nonsense))
        await far.send(pack(api.WindowUpdate(update=2)))
        assert api.Data.FromString((await far.receive()).value).data == b"12"
        assert not writing.done()
        await far.send(pack(api.WindowUpdate(update=(1 << 31) - 1)))
        assert api.Data.FromString((await far.receive()).value).data == b"345"
        await writing
        await far.close()
        with pytest.raises(UnavailableError, match="the receiver has gone"):
            await Sender(near).write(b"x")

    run(scenario)


def test_a_receiver_opens_its_window_as_it_empties_and_passes_over_what_it_does_not_know():
    async def scenario():
        near, far = ends()
        chunks = received(near)
        first = asyncio.create_task(anext(chunks))
        message = await far.receive()
        assert is_a(message, api.WindowUpdate)
        assert api.WindowUpdate.FromString(message.value).update == WINDOW
        await far.send(pack(api.WindowUpdate(update=1)))
        await far.send(pack(api.Data()))
        await far.send(pack(api.Data(data=b"x" * (WINDOW // 2))))
        assert len(await first) == WINDOW // 2
        second = asyncio.create_task(anext(chunks, None))
        message = await far.receive()
        assert api.WindowUpdate.FromString(message.value).update == WINDOW // 2
        await far.close()
        assert await second is None
        await chunks.aclose()
        assert await far.receive() is None

    run(scenario)
