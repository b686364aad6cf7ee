"""The types that users see: mypy checks this file, and nobody runs it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Any, assert_type

import aiolb
from aiolb import (
    Address,
    AiolbError,
    Collector,
    CollectorStatistics,
    ConfigurationError,
    GroupStatistics,
    Location,
    Place,
    Publisher,
    PublisherStatistics,
    ServeConfig,
    Server,
    StartError,
    StreamCollector,
    StreamStatistics,
    testing,
)


class Echo(Collector):
    """A whole collector."""

    async def startup(self) -> None:
        """May be overridden."""

    async def handle(self, datagram: bytes, addr: Any) -> None:
        """Replies take what the socket module gives."""
        self.reply(datagram, addr)

    def on_error(self, error: BaseException, datagram: bytes, addr: Any) -> None:
        """May be overridden."""

    def report(self) -> Mapping[str, Any]:
        """A dict is a mapping."""
        return {"echoed": 1}


class Count(Collector):
    """A collector that takes batches."""

    received = 0

    async def handle_batch(self, batch: list[tuple[bytes, Any]]) -> None:
        """Each item is a datagram and its address."""
        for datagram, addr in batch:
            assert_type(datagram, bytes)
            self.reply(datagram, addr)
        self.received += len(batch)


class Lines(StreamCollector):
    """A collector of connections."""

    async def handle_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reader and writer are those of asyncio."""
        async for line in reader:
            assert_type(line, bytes)
            writer.write(line)

    def on_error(self, error: BaseException, addr: Any) -> None:
        """May be overridden."""


async def serve_connections() -> None:
    """It is served as every collector is, and tells of connections."""
    Lines.run(bind="127.0.0.1:9000", concurrency=1000)
    collector = Lines()
    server = Server(collector, ServeConfig(protocol="tcp", bind=(Address("127.0.0.1", 0),)))
    await server.start()
    assert_type(collector.statistics(), StreamStatistics)
    assert_type(collector.statistics().accepted, int)
    await server.stop()


def run_it() -> None:
    """Addresses are text, Address, or several of them."""
    Echo.run(bind="127.0.0.1:9000", index=0, count=1)
    Echo.run(bind=["127.0.0.1:9000", Address("::1", 9000)], log_format="json", graceful_timeout=5)


async def serve_it() -> None:
    """A server can be run by hand."""
    assert_type(await Count.serve(bind="127.0.0.1:9000"), None)
    collector = Count()
    server = Server(collector, ServeConfig(bind=(Address("127.0.0.1", 0),), balancer="classic"))
    await server.start()
    assert_type(server.statistics(), CollectorStatistics)
    assert_type(collector.statistics().received, int)
    assert_type(collector.statistics().as_dict(), dict[str, Any])
    collector.stop()
    await server.stop()


async def publish_it() -> None:
    """The publisher is an async context manager."""
    async with Publisher("127.0.0.1:9000", rate=100, count=10, sources=3, stamp=True) as publisher:
        await publisher.send(b"hello")
        sent = await publisher.run()
    assert_type(sent, PublisherStatistics)
    assert_type(sent.sent, int)
    assert_type(sent.rate_reached, float)
    assert_type(sent.sent_per_source, Mapping[str, int])


async def test_it() -> None:
    """Tests know the class of their collectors."""
    async with testing.collector(Count, index=1) as member:
        await member.feed(b"x")
        assert_type(member.collector, Count)
        assert_type(member.replies, list[tuple[bytes, Any]])
        assert_type(member.statistics(), CollectorStatistics)
    async with testing.collector(Echo()) as other:
        assert_type(other.collector, Echo)
    async with testing.group(Count, members=2, balancer="none") as group:
        await group.send(b"x", b"y", source="127.0.0.2")
        assert_type(group.collectors, list[Count])
        assert_type(await group.reply("127.0.0.2"), bytes)
    async with testing.collector(Lines) as lines:
        assert_type(await lines.feed(b"x\n"), bytes)
        assert_type(lines.collector, Lines)
        assert_type(lines.connect().written, bytes)
        assert_type(lines.statistics(), StreamStatistics)
    async with testing.group(Lines, members=2) as streams:
        assert_type(await streams.send(b"x\n", source="127.0.0.2"), bytes)
        assert_type(streams.collectors, list[Lines])
        async with streams.connect() as (reader, writer):
            assert_type((reader, writer), tuple[asyncio.StreamReader, asyncio.StreamWriter])


def catch_it() -> str | None:
    """One tree of errors."""
    try:
        run_it()
    except ConfigurationError as error:
        assert_type(error.hint, str | None)
        also: ValueError = error
        return str(also)
    except (StartError, AiolbError) as error:
        return error.hint
    return None


def join_it(sock: socket.socket) -> None:
    """Any server's socket joins, and its group is looked at."""
    with aiolb.join(sock, index=0, count=3, key="flow") as place:
        assert_type(place, Place)
        assert_type(place.leave(), bool)
        found = place.group.locate(("127.0.0.1", 9000))
        assert_type(found, Location)
        assert_type(found.member, int | None)
        assert_type(place.group.locate("127.0.0.1").alive, bool)
    with aiolb.open_group("tcp:127.0.0.1:9000") as group:
        assert_type(group.statistics(), GroupStatistics)
    assert_type(aiolb.bind("127.0.0.1:0", protocol="tcp"), socket.socket)
