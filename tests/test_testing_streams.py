"""Connections without a socket, and of a whole group: what a test sees of handlers, what they wrote, errors, ends."""

from __future__ import annotations

import asyncio

import pytest
from recording import Recording

from aiolb import AiolbError, ConfigurationError, StreamCollector, StreamStatistics
from aiolb.builtin_streams import EchoStream
from aiolb.testing import SOURCE, UnhandledError, collector, group

A, B = ("192.0.2.1", 1), ("192.0.2.2", 2)

pytestmark = pytest.mark.usefixtures("logged", "nothing_left")


class Lines(Recording, StreamCollector):
    """Notes lines and answers with their number; ``wait`` waits for ``gate``, ``raise`` raises, ``bye`` ends."""

    async def handle_stream(self, reader, writer):
        """Note each line, and do what it says."""
        host = writer.get_extra_info("peername")[0]
        async for line in reader:
            self.calls.append((host, line))
            if line == b"wait\n":
                await self.gate.wait()
            if line.startswith(b"raise"):
                raise ValueError(line.decode().strip())
            if line == b"cancel\n":
                raise asyncio.CancelledError
            if line == b"bye\n":
                return
            writer.write(b"%d\n" % len(self.calls))


def told(statistics):
    """Accepted, open, closed, errors, abandoned."""
    assert isinstance(statistics, StreamStatistics)
    return tuple(getattr(statistics, name) for name in ("accepted", "open", "closed", "errors", "abandoned"))


def test_the_life_of_a_collector(run):
    """A connection comes, is answered and ends, between startup() and shutdown(), and all of it is counted."""

    async def live():
        async with collector(Lines, index=2, count=5) as member:
            assert member.collector.calls == ["startup"]
            assert await member.feed(b"one\ntwo\nrest", A) == b"2\n3\n4\n"
            assert told(member.statistics()) == (1, 0, 1, 0, 0)
            assert (member.stopping, member.collector.statistics()) == (False, member.statistics())
            assert await member.feed(b"") == b""
        return member

    member = run(live())
    assert member.collector.calls == ["startup", *((A[0], line) for line in (b"one\n", b"two\n", b"rest")), "shutdown"]
    statistics = member.statistics()
    assert (statistics.index, statistics.count, statistics.received_bytes) == (2, 5, len("one\ntwo\nrest"))
    assert told(statistics) == (2, 0, 2, 0, 0)
    assert member.stopping


def test_a_dialogue(run):
    """feed() returns when the handler asks for more, with pieces as they come; several connections go on together."""

    async def live():
        async with collector(Lines) as member:
            first, second = member.connect(A), member.connect(B)
            await first.feed(b"on")
            assert (first.written, member.collector.calls[1:]) == (b"", [])
            await first.feed(b"e\ntwo\nth")
            assert first.written == b"2\n3\n"
            await second.feed(b"other\n")
            assert (second.written, first.closed) == (b"4\n", False)
            assert told(member.statistics()) == (2, 2, 0, 0, 0)
            assert await first.end(b"ree\n") == b"2\n3\n5\n"
            assert (first.closed, second.closed) == (True, False)
            second.put(b"bye\n")
            await member.drained()
            assert second.closed
            with pytest.raises(AiolbError, match="the connection is closed"):
                second.put(b"more\n")
            assert told(member.statistics()) == (2, 0, 2, 0, 0)

    run(live())


def test_large_data(run):
    """More than a reader holds arrives whole, for what does not fit waits as in a socket's buffer."""
    data = bytes(range(256)) * 40_000

    async def live():
        async with collector(EchoStream()) as member:
            connection = member.connect()
            for start in range(0, len(data), 1_000_000):
                await connection.feed(data[start : start + 1_000_000])
            assert await connection.end() == data
            assert await member.feed(data, B) == data
            assert member.statistics().received_bytes == 2 * len(data)

    run(live())


def test_pieces(run):
    """What is put arrives in pieces, as it was put."""

    class Reads(StreamCollector):
        async def handle_stream(self, reader, writer):
            assert writer.get_extra_info("peername") == SOURCE
            assert writer.get_extra_info("nothing", "here") == "here"
            while piece := await reader.read(100):
                writer.writelines([b"<", memoryview(piece), bytearray(b">")])
                await writer.drain()
            assert writer.can_write_eof()
            writer.write_eof()
            with pytest.raises(RuntimeError, match="after write_eof"):
                writer.write(b"x")
            with pytest.raises(TypeError, match="not str"):
                writer.write("text")

    async def live():
        async with collector(Reads) as member:
            connection = member.connect()
            for piece in (b"ab", b"c"):
                await connection.feed(piece)
            return await connection.end(b"d" * 101)

    assert run(live()) == b"<ab><c><" + b"d" * 100 + b"><d>"


@pytest.mark.parametrize(("line", "error"), [(b"raise 1\n", ValueError), (b"cancel\n", AiolbError)])
def test_errors(run, line, error):
    """What a handler raises is raised by who waits for it, or by the end, and counted; the others go on."""

    async def live():
        async with collector(Lines) as member:
            other = member.connect(B)
            connection = member.connect(A)
            with pytest.raises(error, match=r"raise 1|cancelled, and not by its server"):
                await connection.feed(line)
            with pytest.raises(error):
                await member.feed(line, A)
            await other.feed(b"still\n")
            assert other.written
            assert await other.end()
            assert told(member.statistics()) == (3, 0, 1, 2, 0)
            assert len(member.errors) == 2
            member.connect(A).put(b"raise 2\n")

    with pytest.raises(ValueError, match="raise 2"):
        run(live())


def test_errors_that_are_not_raised(run):
    """With raise_errors=False they are kept, and what was written before is there."""

    async def live():
        async with collector(Lines, raise_errors=False) as member:
            assert await member.feed(b"one\nraise x\n") == b"2\n"
            assert [str(error) for error in member.errors] == ["raise x"]
            return member.statistics()

    assert told(run(live())) == (1, 0, 0, 1, 0)


def test_a_connection_that_breaks(run):
    """A handler gets the error that it gets from a socket, also when nobody had accepted the connection yet."""

    async def live():
        async with collector(Lines, concurrency=1, raise_errors=False) as member:
            first, second = member.connect(A), member.connect(B)
            await first.feed(b"part")
            second.reset()
            first.reset()
            await member.drained()
            assert (first.closed, second.closed) == (True, True)
            assert [type(error) for error in member.errors] == [ConnectionResetError] * 2
            return member.statistics()

    assert told(run(live())) == (2, 0, 0, 2, 0)


def test_concurrency(run):
    """With as many connections open as may be, one more waits to be accepted."""

    async def live():
        async with collector(Lines, concurrency=2) as member:
            connections = [member.connect((f"192.0.2.{number}", 1)) for number in range(3)]
            for connection in connections:
                connection.put(b"hello\n")
            await connections[1].feed(b"again\n")
            assert told(member.statistics())[:2] == (2, 2)
            assert (member.statistics().waiting, connections[2].written) == (1, b"")
            await connections[0].end()
            assert await connections[2].end() == b"5\n"
            assert await connections[1].end() != b""
            assert member.statistics().waiting == 0

    run(live())


def test_a_handler_that_does_not_go_on(run):
    """feed() and end() raise after the deadline; the stop cancels what does not end, and counts it."""

    async def live():
        async with collector(Lines, deadline=0.05, graceful_timeout=0) as member:
            connection = member.connect()
            with pytest.raises(UnhandledError, match=r"^the handler asks for no more after 0\.05 s"):
                await connection.feed(b"wait\n")
            with pytest.raises(UnhandledError, match=r"^the handler does not end after 0\.05 s"):
                await connection.end()
            with pytest.raises(UnhandledError, match=r"^1 of 1 connections not handled after 0\.05 s"):
                await member.drained()
            await member.stop()
            with pytest.raises(UnhandledError, match="the collector stopped before the connection was handled"):
                await connection.end()
            return member.statistics()

    assert told(run(live())) == (1, 0, 0, 0, 1)


def test_a_graceful_stop(run):
    """What is open when the collector stops is handled to its end, and nothing new is accepted."""

    async def live():
        async with collector(Lines, concurrency=1) as member:
            connection, waiting = member.connect(), member.connect(B)
            await connection.feed(b"one\n")
            stopping = asyncio.create_task(member.stop())
            await connection.feed(b"two\n")
            assert not stopping.done()
            assert await connection.end() == b"2\n3\n"
            assert await waiting.end(b"three\n") == b"4\n"
            await stopping
            with pytest.raises(AiolbError, match="Lines has stopped, and accepts nothing"):
                member.connect()
            return member.statistics()

    assert told(run(live())) == (2, 0, 2, 0, 0)


def test_a_stop_that_does_not_wait(run):
    """Connections that nobody accepted are counted as abandoned, and broken."""

    async def live():
        async with collector(Lines, concurrency=1, graceful_timeout=0) as member:
            connections = [member.connect() for _ in range(3)]
            await connections[0].feed(b"one\n")
            await member.stop()
            assert [connection.closed for connection in connections] == [True] * 3
            return member.statistics()

    assert told(run(live())) == (3, 0, 0, 0, 3)


def test_before_the_start(run):
    """A member that was made by hand accepts nothing before it is started."""

    async def live():
        async with collector(Lines) as member:
            pass
        member._listener = None
        with pytest.raises(AiolbError, match="Lines has not been started"):
            member.connect()

    run(live())


def test_a_group(run):
    """Each source reaches one member, which the group names, and is answered."""
    sources = [f"127.0.{third}.{fourth}" for third in range(2) for fourth in range(1, 11)]

    async def live():
        async with group(Lines, members=4, balancer="classic", seed=1) as running:
            for _ in range(3):
                for source in sources:
                    assert (await running.send(b"x\n", source=source)).endswith(b"\n")
            owners = {source: running.members_of(source) for source in sources}
            statistics = running.statistics()
            assert sum(member.closed for member in statistics) == sum(member.accepted for member in statistics) == 60
        assert {len(owner) for owner in owners.values()} == {1}
        for source, (owner,) in owners.items():
            assert running.collectors[owner].calls.count((source, b"x\n")) == 3
        return running

    running = run(live())
    assert (running.balancer, running.errors) == ("classic", [])
    assert sum(len(one.calls) for one in running.collectors) == 60 + 2 * 4


@pytest.mark.parametrize(("host", "source"), [("0.0.0.0", "127.0.0.9"), ("::1", "::1")])
def test_a_dialogue_with_a_group(run, host, source):
    """connect() gives asyncio's reader and writer; at its end the handler has ended, and is counted."""

    async def live():
        async with group(Lines, members=2, host=host, balancer="none") as running:
            async with running.connect(source) as (reader, writer):
                writer.write(b"hello\n")
                assert await reader.readline() == b"2\n"
                assert sum(member.open for member in running.statistics()) == 1
            assert sum(member.closed for member in running.statistics()) == 1
            await running.drained()
            (owner,) = running.members_of(source)
            assert running.collectors[owner].calls[1:] == [(source, b"hello\n")]

    run(live())


@pytest.mark.parametrize("error", [None, ValueError("at once")])
def test_a_handler_that_ends_at_once(run, error):
    """The end of a handler that does not read is noticed, also before its client knows that it is connected."""

    class Ends(StreamCollector):
        async def handle_stream(self, _reader, _writer):
            if error is not None:
                raise error

    async def live():
        async with group(Ends, members=2, balancer="none", raise_errors=False) as running:
            for _ in range(20):
                async with running.connect("127.0.0.9"):
                    pass
            assert len(running.errors) == (0 if error is None else 20)
            return sum(member.accepted for member in running.statistics())

    assert run(live()) == 20


def test_nobody_accepts(run):
    """A connection that is refused is told as such, and nobody waits for it."""

    async def live():
        async with group(Lines, members=1, balancer="none") as running:
            await running.stop(0)
            with pytest.raises(ConnectionRefusedError):
                await running.send(b"x")
            await running.drained()

    run(live())


def test_errors_in_a_group(run):
    """What a handler raises is raised by its connection; a source that is not here is told."""

    async def live():
        async with group(Lines, balancer="none") as running:
            with pytest.raises(ValueError, match="raise me"):
                await running.send(b"raise me\n")
            with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1 cannot send to 127"):
                await running.send(b"x", source="192.0.2.1")
            assert sum(member.errors for member in running.statistics()) == 1
            assert await running.send(b"fine\n") in {b"2\n", b"3\n"}  # of another member, or of the same

    run(live())


def test_a_group_whose_handlers_wait(run):
    """send() raises after the deadline, and the end cancels the handler."""

    async def live():
        async with group(Lines, members=1, balancer="none", deadline=0.1, graceful_timeout=0) as running:
            with pytest.raises(UnhandledError, match=r"^the connection was not closed within 0\.1 s"):
                await running.send(b"wait\n")
        return running.statistics()[0]

    assert told(run(live())) == (1, 0, 0, 0, 1)
