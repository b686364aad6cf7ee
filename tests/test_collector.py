"""What users subclass: handlers and batches, replies from the right socket, errors that stop nothing, bad classes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest
import structlog.testing

from aiolb import AiolbError, Collector, ConfigurationError, testing
from aiolb.address import Address
from aiolb.base_collector import check_class
from aiolb.builtin import Echo
from aiolb.config import ServeConfig
from aiolb.receive import choose
from aiolb.server import ApplicationError, Server
from aiolb.testing import SOURCE

LOCAL, LOCAL_V6 = Address("127.0.0.1", 0), Address("::1", 0)

pytestmark = pytest.mark.usefixtures("nothing_left")


@contextlib.asynccontextmanager
async def started(app, *bind, **settings):
    """A server of the collector, started, and stopped at the end."""
    server = Server(app, ServeConfig(bind=bind or (LOCAL,), balancer="none", **settings))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class Client:
    """A connected socket: it takes answers only from the very address that it sends to."""

    def __init__(self, address):
        self._sock = socket.socket(address.family, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        self._sock.connect((address.host, address.port))
        self.address = self._sock.getsockname()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._sock.close()

    def send(self, *datagrams):
        """Send them all."""
        for datagram in datagrams:
            self._sock.send(datagram)

    async def receive(self):
        """The next answer."""
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        loop.add_reader(self._sock, lambda: readable.done() or readable.set_result(None))
        try:
            await readable
        finally:
            loop.remove_reader(self._sock)
        return self._sock.recv(65536)


def clients(stack, server):
    """A client for each address of the server."""
    return [stack.enter_context(Client(listener.address)) for listener in server.listeners]


async def until(condition):
    """Wait until the condition holds; the deadline is that of the run."""
    while not condition():  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0.001)


def test_replies_leave_from_where_the_datagram_came_in(run):
    """With several addresses of both families every client is answered from the one that it sent to."""

    async def live():
        async with started(Echo(), LOCAL, LOCAL, LOCAL_V6) as server:
            with contextlib.ExitStack() as stack:
                for number, client in enumerate(clients(stack, server)):
                    client.send(b"%d" % number)
                    assert await client.receive() == b"%d" % number
        return server.statistics()

    statistics = run(live())
    assert [(sock.sent, sock.sent_bytes, sock.send_errors) for sock in statistics.sockets] == [(1, 1, 0)] * 3


def test_replies_of_a_task(run):
    """A task that a handler started answers from the socket of that handler's datagram."""

    class Later(Collector):
        def __init__(self):
            self.tasks = []

        async def handle(self, datagram, addr):
            self.tasks.append(asyncio.create_task(self.answer(datagram, addr)))

        async def answer(self, datagram, addr):
            await asyncio.sleep(0)
            self.reply(datagram, addr)

        async def shutdown(self):
            await asyncio.gather(*self.tasks)

    async def live():
        async with started(Later(), LOCAL, LOCAL) as server:
            with contextlib.ExitStack() as stack:
                for client in reversed(clients(stack, server)):
                    client.send(b"x")
                    assert await client.receive() == b"x"
        return [sock.sent for sock in server.statistics().sockets]

    assert run(live()) == [1, 1]


def test_reply_outside_of_a_handler(run):
    """Outside of handlers reply() works with one address, and is refused with several, and before the start."""

    async def live():
        app = Echo()
        with pytest.raises(AiolbError, match="this collector has 0 sockets"):
            app.reply(b"x", ("127.0.0.1", 9))
        async with started(app) as server:
            with Client(server.listeners[0].address) as client:
                app.reply(b"unasked", client.address)
                assert await client.receive() == b"unasked"
        app = Echo()
        async with started(app, LOCAL, LOCAL):
            with pytest.raises(AiolbError, match="this collector has 2 sockets") as caught:
                app.reply(b"x", ("127.0.0.1", 9))
        assert caught.value.hint == "call it in handle(), or in a task that handle() started"

    run(live())


def test_replies_before_the_end_leave(run):
    """What a handler replies while the collector stops still leaves."""

    class Slow(Echo):
        async def handle(self, datagram, addr):
            await gate.wait()
            self.reply(datagram, addr)

    gate = asyncio.Event()

    async def live():
        async with started(Slow()) as server:
            with Client(server.listeners[0].address) as client:
                client.send(b"x")
                await until(lambda: server.statistics().in_flight)
                stopping = asyncio.create_task(server.stop())
                await asyncio.sleep(0)
                gate.set()
                await stopping
                assert await client.receive() == b"x"

    run(live())


def test_batches(run):
    """A collector that overrides handle_batch gets every datagram in order, and handle() is never called."""

    class Bulk(Collector):
        def __init__(self):
            self.batches = []

        async def handle(self, _datagram, _addr):
            raise AssertionError

        async def handle_batch(self, batch):
            self.batches.append([datagram for datagram, _ in batch])

    sent = [b"%d" % number for number in range(500)]

    async def live():
        async with testing.collector(Bulk) as member:
            for datagram in sent:
                member.put(datagram)
            await member.drained()
            assert member.statistics().handled == 500
        return member.collector.batches

    batches = run(live())
    assert [datagram for batch in batches for datagram in batch] == sent
    assert len(batches) < 500


def test_the_default_batch_calls_handle():
    """A collector's own handle_batch() can leave the datagrams to handle()."""
    seen = []

    class Both(Collector):
        async def handle(self, datagram, addr):
            seen.append((datagram, addr))

        async def handle_batch(self, batch):
            await super().handle_batch(batch)

    asyncio.run(Both().handle_batch([(b"1", 1), (b"2", 2)]))
    assert seen == [(b"1", 1), (b"2", 2)]


def test_errors_stop_nothing(run):
    """What a handler raises is counted, logged and given to on_error; the next datagram is handled."""

    class Failing(Collector):
        def __init__(self):
            self.handled, self.errors = [], []

        async def handle(self, datagram, _addr):
            if datagram.startswith(b"bad"):
                raise ValueError(datagram)
            self.handled.append(datagram)

        def on_error(self, error, datagram, addr):
            self.errors.append((repr(error), datagram, addr))

    async def live():
        async with testing.collector(Failing, raise_errors=False) as member:
            for datagram in (b"bad1", b"good", b"bad2", b"fine"):
                await member.feed(datagram)
        return member

    with structlog.testing.capture_logs() as logged:
        member = run(live())
    app, statistics = member.collector, member.statistics()
    assert app.handled == [b"good", b"fine"]
    assert app.errors == [("ValueError(b'bad1')", b"bad1", SOURCE), ("ValueError(b'bad2')", b"bad2", SOURCE)]
    assert (statistics.handled, statistics.errors) == (2, 2)
    errors = [event for event in logged if event["event"] == "handler_error"]
    assert (errors[0]["log_level"], errors[0]["error"]) == ("error", "ValueError(b'bad1')")


def test_before_the_start():
    """Statistics and stop() need a collector that was started."""
    for method in (Echo().statistics, Echo().stop):
        with pytest.raises(AiolbError, match="Echo has not been started"):
            method()


def test_serve_in_a_running_loop(run):
    """Collector.serve() serves until the collector stops itself."""

    class Once(Collector):
        def __init__(self):
            made.append(self)

        async def handle(self, _datagram, _addr):
            self.stop()

    made = []

    async def live():
        serving = asyncio.create_task(Once.serve(bind="127.0.0.1:0", balancer="none"))
        await until(lambda: made and made[0]._server and made[0]._server.listeners)
        with Client(made[0]._server.listeners[0].address) as client:
            client.send(b"x")
        await serving
        return made[0].statistics()

    assert run(live()).handled == 1


def test_a_class_that_cannot_be_made():
    """What the constructor raises becomes an ApplicationError; an aiolb error is passed on as it is."""

    class Picky(Echo):
        def __init__(self, wanted):
            pass

    class Configured(Echo):
        def __init__(self):
            raise ConfigurationError("no file")

    with pytest.raises(ApplicationError, match=r"^Picky\(\) failed: TypeError: .*'wanted'") as caught:
        asyncio.run(Picky.serve(bind="127.0.0.1:0"))
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(ConfigurationError, match="no file"):
        asyncio.run(Configured.serve(bind="127.0.0.1:0"))


class NoHandler(Collector):
    """Overrides nothing."""


class PlainHandle(Collector):
    """Its handler cannot be awaited."""

    def handle(self, datagram, addr):
        """Do nothing."""


class PlainStartup(Echo):
    """Its startup cannot be awaited."""

    def startup(self):
        """Do nothing."""


class GeneratorHandle(Collector):
    """Its handler is a generator."""

    async def handle(self, datagram, _addr):
        """Yield it."""
        yield datagram


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (int, "<class 'int'> is no subclass of aiolb.Collector"),
        (Echo(), "is no subclass of aiolb.Collector"),
        (NoHandler, "NoHandler overrides neither handle nor handle_batch"),
        (PlainHandle, "PlainHandle.handle is not a coroutine function"),
        (GeneratorHandle, "GeneratorHandle.handle is not a coroutine function"),
        (PlainStartup, "PlainStartup.startup is not a coroutine function"),
    ],
)
def test_bad_classes(cls, message):
    """What is no usable collector is told with a hint."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        check_class(cls)
    assert caught.value.hint


def test_unknown_settings():
    """A setting that does not exist is told by its name."""
    with pytest.raises(ConfigurationError, match="unknown settings: colour, prot"):
        Echo.run(bind="127.0.0.1:0", prot=1, colour=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"index": 3, "count": 3}, "index 3 is outside of a group of 3"),
        ({"bind": "nonsense:nowhere"}, "'nowhere' in 'nonsense:nowhere' is no port"),
        ({"bind": ["127.0.0.1:1", "127.0.0.1:1"]}, "127.0.0.1:1 is given twice"),
        ({"bind": []}, "at least one address"),
        ({"loop": "trio"}, "'trio' is no loop"),
    ],
)
def test_bad_settings(settings, message):
    """Settings are checked before anything is started."""
    with pytest.raises(ConfigurationError, match=message):
        Echo.run(**settings)


@pytest.mark.parametrize("blocks", [False, True])
def test_a_handler_may_ask_when_its_datagram_arrived(run, parts, monkeypatch, blocks):
    """The time is that of the datagram in hand, also behind a wait and where it waited; elsewhere there is none."""
    monkeypatch.setattr(choose, "best", lambda: parts)
    found, elsewhere = {}, []

    class Timed(Collector):
        timestamps = True

        async def other(self):
            elsewhere.append(self.received_at)

        async def handle(self, datagram, addr):  # noqa: ARG002 - as handlers are
            before = self.received_at
            if blocks:
                await asyncio.create_task(self.other())
            assert self.received_at == before
            found[datagram] = before
            if len(found) == 20:
                complete.set()

    complete = asyncio.Event()

    async def live():
        app = Timed()
        async with started(app) as server:
            with contextlib.ExitStack() as stack:
                first, second = (stack.enter_context(Client(server.listeners[0].address)) for _ in range(2))
                for number in range(10):
                    first.send(b"1 %d" % number)
                    second.send(b"2 %d" % number)
                await complete.wait()
        assert app.received_at is None

    begin = time.time_ns()
    run(live())
    assert len(found) == 20
    assert begin <= min(found.values()) <= max(found.values()) <= time.time_ns()
    assert elsewhere == [None] * 20 * blocks


def test_the_datagrams_of_a_batch_know_when_they_arrived(run, parts, monkeypatch):
    """Each by itself; without timestamps they are plain pairs, and a handler has no time."""
    monkeypatch.setattr(choose, "best", lambda: parts)

    class Timed(Collector):
        timestamps = True

        async def handle_batch(self, batch):
            got.extend((datagram, item.received_at) for item in batch for datagram in item[:1])
            complete.set()

    class Untimed(Collector):
        async def handle(self, datagram, addr):  # noqa: ARG002 - as handlers are
            got.append((datagram, self.received_at))
            complete.set()

    async def live(app):
        async with started(app) as server:
            with Client(server.listeners[0].address) as client:
                client.send(b"x")
                await complete.wait()

    begin, got, complete = time.time_ns(), [], asyncio.Event()
    run(live(Timed()))
    ((datagram, received_at),) = got
    assert datagram == b"x"
    assert begin <= received_at <= time.time_ns()
    got, complete = [], asyncio.Event()
    run(live(Untimed()))
    assert got == [(b"x", None)]
