"""Messages arrive whole and in order; the end of the other side is known, and survived."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiolb.channel import Channel

pytestmark = pytest.mark.usefixtures("nothing_left")

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), lambda inner: st.lists(inner, max_size=3)
)
contents = st.dictionaries(st.text(min_size=1).filter(lambda name: name not in ("name", "self")), values, max_size=4)


@asynccontextmanager
async def pair():
    """Both ends of a channel."""
    ends = [await Channel.over(sock) for sock in socket.socketpair()]
    try:
        yield ends
    finally:
        for end in ends:
            await end.close()


@asynccontextmanager
async def raw():
    """One end of a channel, and the socket at the other."""
    ours, theirs = socket.socketpair()
    channel = await Channel.over(ours)
    with theirs:
        try:
            yield channel, theirs
        finally:
            await channel.close()


async def all_of(channel):
    """Everything that the other end sent until it went."""
    return [message async for message in channel.messages()]


@settings(max_examples=25)
@given(sent=st.lists(st.tuples(st.text(min_size=1), contents), max_size=6))
def test_messages(sent):
    """Whatever JSON can say arrives as it was sent, in order, followed by the end."""

    async def live():
        async with pair() as (one, other):
            for name, content in sent:
                one.send(name, **content)
            await one.close()
            return await all_of(other)

    assert asyncio.run(live()) == [{"name": name, **content} for name, content in sent]


def test_both_ways(run):
    """Each end sends and hears."""

    async def live():
        async with pair() as (one, other):
            one.send("question", number=1)
            assert await anext(other.messages()) == {"name": "question", "number": 1}
            other.send("answer")
            assert await anext(one.messages()) == {"name": "answer"}

    run(live())


def test_more_than_the_socket_takes(run):
    """A message of megabytes leaves piece by piece, and nothing behind it overtakes it."""

    async def live():
        async with pair() as (one, other):
            one.send("report", text="x" * (4 << 20))
            one.send("after")
            closing = asyncio.create_task(one.close())
            report, after = await all_of(other)
            await closing
            assert (len(report["text"]), after) == (4 << 20, {"name": "after"})

    run(live())


def test_half_a_message(run):
    """What was cut off by the death of the other end is no message."""

    async def live():
        async with raw() as (channel, theirs):
            theirs.sendall(b'{"name": "whole"}\n{"name": "ha')
            theirs.close()
            assert await all_of(channel) == [{"name": "whole"}]

    run(live())


def test_sending_to_nobody(run):
    """Sending to an end that has gone is survived, before that is known and after."""

    async def live():
        async with raw() as (channel, theirs):
            theirs.close()
            for _ in range(3):
                channel.send("order", text="x" * 1000)
                await asyncio.sleep(0)
            assert await all_of(channel) == []
            channel.send("order")
            await channel.close()
            channel.send("order")

    run(live())


def test_closed_with_something_unread(run):
    """An end that goes without reading what it was sent resets the connection, which is an end like any other."""

    async def live():
        async with raw() as (channel, theirs):
            channel.send("unread")
            theirs.sendall(b'{"name": "last"}\n')
            theirs.close()
            assert [message["name"] for message in await all_of(channel)] in (["last"], [])

    run(live())


def test_closed_twice(run):
    """Closing is idempotent."""

    async def live():
        async with pair() as (one, other):
            await one.close()
            await one.close()
            assert await all_of(other) == []

    run(live())
