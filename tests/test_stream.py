"""StreamCollector: a life, what is refused before it, and what it tells of itself."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket

import pytest
import structlog.testing
from events import until
from streams import LOCAL, ask, connected

from aiolb import Address, Collector, ServeConfig, Server, StreamCollector, StreamStatistics, testing
from aiolb.base_collector import check_class, check_protocol
from aiolb.errors import AiolbError, ConfigurationError, StartError

pytestmark = pytest.mark.usefixtures("nothing_left")


class Upper(StreamCollector):
    """Answers each line in capitals; ``raise`` raises."""

    def __init__(self):
        self.calls = []
        self.errors = []

    async def startup(self):
        """Remember it."""
        self.calls.append("startup")

    async def handle_stream(self, reader, writer):
        """Answer."""
        async for line in reader:
            if line == b"raise\n":
                raise ValueError("as told")
            if line == b"stop\n":
                self.stop()
            writer.write(line.upper())

    async def shutdown(self):
        """Remember it."""
        self.calls.append("shutdown")

    def on_error(self, error, addr):
        """Remember it."""
        self.errors.append((type(error), addr))

    def report(self):
        """What was called."""
        return {"calls": self.calls}


class Datagrams(Collector):
    """Handles datagrams."""

    async def handle(self, datagram, addr):
        """Do nothing."""


class Nothing(StreamCollector):
    """Overrides nothing."""


class Plain(StreamCollector):
    """Its handler is no coroutine function."""

    def handle_stream(self, reader, writer):
        """Return nothing."""


def config(**settings):
    """Settings of one member without a balancer."""
    return ServeConfig(**{"protocol": "tcp", "bind": (LOCAL,), "balancer": "none", "graceful_timeout": 5.0} | settings)


def test_a_life(run, logged):
    """It begins, handles connections, drains and ends, and its statistics and its report say so exactly."""

    async def live():
        app = Upper()
        server = Server(app, config())
        await server.start()
        address = server.listeners[0].address
        async with connected(address) as client:
            assert await ask(*client, "hello") == "HELLO"
            statistics = app.statistics()
            assert isinstance(statistics, StreamStatistics)
            assert (statistics.accepted, statistics.open, statistics.closed) == (1, 1, 0)
        async with connected(address) as (reader, writer):
            addr = writer.get_extra_info("sockname")
            writer.write(b"raise\n")
            assert await reader.read() == b""
        await server.stop()
        assert app.errors == [(ValueError, addr)]
        with pytest.raises(ConnectionRefusedError):
            async with connected(address):
                pass
        return server.report()

    report = run(live())
    assert {name: report[name] for name in ("accepted", "open", "closed", "errors", "abandoned", "received_bytes")} == {
        "accepted": 2,
        "open": 0,
        "closed": 1,
        "errors": 1,
        "abandoned": 0,
        "received_bytes": len("hello\nraise\n"),
    }
    assert report["collector"] == {"calls": ["startup", "shutdown"]}
    assert [event["event"] for event in logged] == ["ready", "handler_error", "stopping", "stopped"]
    assert {name: logged[-1][name] for name in ("accepted", "closed", "errors", "abandoned", "kernel_drops")} == {
        "accepted": 2,
        "closed": 1,
        "errors": 1,
        "abandoned": 0,
        "kernel_drops": 0,
    }


def test_stopping_itself(run):
    """serve() returns when the collector stops itself, after the connection in hand has ended."""
    made = []

    class Stopping(Upper):
        def __init__(self):
            super().__init__()
            made.append(self)

    async def live():
        serving = asyncio.create_task(Stopping.serve(bind="127.0.0.1:0", balancer="none"))
        await until(lambda: made and made[0]._server and made[0]._server.listeners)
        async with connected(made[0]._server.listeners[0].address) as client:
            assert await ask(*client, "stop") == "STOP"
            assert await ask(*client, "more") == "MORE"
        await serving
        return made[0].calls

    assert run(live()) == ["startup", "shutdown"]


@pytest.mark.usefixtures("logs_as_before")
def test_run():
    """run() serves until a signal, in a loop of its own."""

    class Brief(Upper):
        async def startup(self):
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGTERM)

    Brief.run(bind="127.0.0.1:0", balancer="none")


def test_cancelled_at_the_end(run):
    """A handler that goes on beyond the graceful timeout is cancelled, and may clean up."""
    cleaned = []

    class Endless(StreamCollector):
        async def handle_stream(self, _reader, _writer):
            try:
                await asyncio.Event().wait()
            finally:
                cleaned.append(True)

    async def live():
        server = Server(Endless(), config(graceful_timeout=0.05))
        await server.start()
        async with connected(server.listeners[0].address):
            await until(lambda: server.statistics().open == 1)
            await server.stop()
        return server.statistics()

    with structlog.testing.capture_logs() as logged:
        statistics = run(live())
    assert (statistics.accepted, statistics.abandoned, statistics.open) == (1, 1, 0)
    assert cleaned == [True]
    assert [event["connections"] for event in logged if event["event"] == "abandoned"] == [1]


def test_a_handler_that_cannot_be_stopped(run, monkeypatch):
    """The stop does not wait for ever for a handler that goes on after it was cancelled."""
    monkeypatch.setattr("aiolb.listener.CANCEL_TIMEOUT", 0.05)

    class Stubborn(StreamCollector):
        def __init__(self):
            self.freedom = asyncio.Event()

        async def handle_stream(self, _reader, _writer):
            while not self.freedom.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await self.freedom.wait()

    async def live():
        app = Stubborn()
        server = Server(app, config(graceful_timeout=0.05))
        await server.start()
        async with connected(server.listeners[0].address):
            await until(lambda: server.statistics().open == 1)
            await server.stop()
            app.freedom.set()
            await until(lambda: not server.listeners[0].connections._given_up)

    with structlog.testing.capture_logs() as logged:
        run(live())
    assert "handlers_stuck" in [event["event"] for event in logged]


def test_before_the_start():
    """Without a server there is nothing to tell and nothing to stop."""
    with pytest.raises(AiolbError, match="Upper has not been started"):
        Upper().statistics()
    with pytest.raises(AiolbError, match="Upper has not been started"):
        Upper().stop()


@pytest.mark.parametrize(
    ("cls", "message", "hint"),
    [
        (Nothing, "Nothing does not override handle_stream", "add: async def handle_stream(self, reader, writer)"),
        (Plain, "Plain.handle_stream is not a coroutine function", "write it as: async def handle_stream"),
    ],
)
def test_bad_classes(cls, message, hint):
    """A class that cannot handle connections is refused, with what to write."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        check_class(cls)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("cls", "protocol", "message", "hint"),
    [
        (Upper, "udp", "Upper handles connections, and the protocol is udp", "--protocol tcp, or make it a subclass"),
        (Datagrams, "tcp", "Datagrams handles datagrams, and the protocol is tcp", "--protocol udp, or make it a"),
    ],
)
def test_another_protocol(run, cls, protocol, message, hint):
    """A collector of the other kind is refused before anything is started, also by a server of one's own."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        cls.run(bind="127.0.0.1:0", protocol=protocol)
    assert caught.value.hint.startswith(hint)
    with pytest.raises(ConfigurationError, match=message):
        run(Server(cls(), config(protocol=protocol)).start())


@pytest.mark.parametrize("base", [Datagrams, Upper])
def test_names_of_the_users_own(base):
    """A subclass may use the names by which our own classes say what they handle."""

    class Mine(base):
        protocol = "bmp"
        handlers = ("one", "another")

    check_class(Mine)
    check_protocol(Mine, base.protocol)


async def test_the_tools_for_tests_know_what_is_handled():
    """A collector of connections is refused there where the settings say datagrams."""
    for tool in (testing.collector, testing.group):
        with pytest.raises(ConfigurationError, match="Upper handles connections, and the protocol is udp"):
            async with tool(Upper, protocol="udp"):
                pass


def test_a_startup_that_fails(run):
    """What startup() raises stops the start; nothing listens then."""

    class Failing(Upper):
        async def startup(self):
            raise StartError("no database")

    server = Server(Failing(), config())
    with pytest.raises(StartError, match="no database"):
        run(server.start())
    assert server.listeners == []


def test_a_second_address_that_cannot_be_bound(run):
    """When one of the addresses cannot be bound the others are let go, and what came meanwhile was handled."""

    async def live():
        app = Upper()
        with socket.create_server(("127.0.0.1", 0)) as other:
            server = Server(app, config(bind=(LOCAL, Address(*other.getsockname()))))
            with pytest.raises(StartError, match="without SO_REUSEPORT"):
                await server.start()
        with pytest.raises(ConnectionRefusedError):
            async with connected(server.listeners[0].address):
                pass
        return app.calls

    assert run(live()) == ["startup", "shutdown"]
