"""A member's life on both event loops: start, serve, stop, report; with the kernel's own choice of socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from ipaddress import ip_address

import pytest
from recording import Recording

from aiolb import Collector, sockets
from aiolb.address import Address
from aiolb.config import ServeConfig
from aiolb.datagram_listener import DatagramListener
from aiolb.errors import ConfigurationError, KernelError, StartError
from aiolb.server import ApplicationError, Server

LOCAL = Address("127.0.0.1", 0)
LOCAL_V6 = Address("::1", 0)

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def send():
    """Send datagrams from one source: ``send(server, b"a", b"b", to=0)``."""
    with socket.socket(type=socket.SOCK_DGRAM) as four, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six:

        def send(server, *datagrams, to=0):
            address = server.listeners[to].address
            for datagram in datagrams:
                (six if ip_address(address.host).version == 6 else four).sendto(datagram, (address.host, address.port))

        yield send


class Recorder(Recording, Collector):
    """Notes what happens to it; a handler of ``wait`` waits for ``gate``."""

    async def handle(self, datagram, _addr):
        """Note it, and wait when it says so."""
        self.calls.append(datagram)
        if datagram == b"wait":
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.calls.append("cancelled")
                raise
            self.calls.append("waited")


async def until(condition):
    """Wait until the condition holds; the deadline is that of the run."""
    while not condition():  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0.001)


def config(*bind, **settings):
    """Settings that need no privilege."""
    return ServeConfig(**{"bind": bind or (LOCAL,), "balancer": "none"} | settings)


def can_be_bound(address):
    """Whether a socket that shares nothing gets the address."""
    with socket.socket(address.family, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.bind((address.host, address.port))
        return True
    return False


@contextlib.asynccontextmanager
async def started(app, *bind, **settings):
    """A started server, stopped at the end."""
    server = Server(app, config(*bind, **settings))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def named(logged, event):
    """The log events of that name."""
    return [entry for entry in logged if entry["event"] == event]


def test_start_and_stop(run, logged, send):
    """A server starts, handles what comes, and stops; then its port can be bound again."""

    async def live():
        app = Recorder()
        async with started(app) as server:
            address = server.listeners[0].address
            assert not can_be_bound(address)
            send(server, b"1", b"2")
            await until(lambda: server.statistics().handled == 2)
        assert can_be_bound(address)
        assert app.calls == ["startup", b"1", b"2", "shutdown"]
        return server.statistics()

    statistics = run(live())
    assert (statistics.received, statistics.handled, statistics.received_bytes) == (2, 2, 2)
    assert [event["event"] for event in logged] == ["ready", "stopping", "stopped"]
    assert (logged[0]["balancer"], logged[0]["pid"]) == ("none", os.getpid())
    assert logged[-1] == {
        "event": "stopped",
        "log_level": "info",
        "received": 2,
        "handled": 2,
        "errors": 0,
        "abandoned": 0,
        "kernel_drops": 0,
    }


def test_stop_drains_the_queue(run, send):
    """What waits in the kernel's queue when the stop begins is handled."""

    async def live():
        app = Recorder()
        async with started(app) as server:
            send(server, *[b"x"] * 500)
        return app.calls, server.statistics()

    calls, statistics = run(live())
    assert calls == ["startup", *[b"x"] * 500, "shutdown"]
    assert (statistics.handled, statistics.kernel_drops, statistics.abandoned) == (500, 0, 0)


def test_stop_waits_for_handlers(run, send):
    """A handler in flight finishes before shutdown() is called."""

    async def live():
        app = Recorder()
        async with started(app) as server:
            send(server, b"wait", b"behind")
            await until(lambda: b"wait" in app.calls)
            stopping = asyncio.create_task(server.stop())
            await until(lambda: not server.listeners[0].transport.is_reading() or server._stopped)
            assert not stopping.done()
            app.gate.set()
            await stopping
        return app.calls

    assert run(live()) == ["startup", b"wait", "waited", b"behind", "shutdown"]


def test_stop_drains_what_backpressure_left(run, send):
    """What stayed in the kernel's queue because handlers were busy is handled once they have room."""

    async def live():
        app = Recorder()
        async with started(app, concurrency=1, backlog=1) as server:
            send(server, b"wait", *[b"x"] * 500)
            await until(lambda: b"wait" in app.calls)
            stopping = asyncio.create_task(server.stop())
            late = 0
            while not server.listeners[0].memory().drops:  # until the drain has begun
                send(server, b"late")
                late += 1
                await asyncio.sleep(0)
            app.gate.set()
            await stopping
        return late, server.statistics()

    late, statistics = run(live())
    assert (statistics.handled + statistics.kernel_drops, statistics.abandoned) == (501 + late, 0)
    assert statistics.kernel_drops <= late


def test_graceful_timeout(run, logged, send):
    """When the time is over, handlers are cancelled, and all that was not handled counts as abandoned."""

    async def live():
        app = Recorder()
        async with started(app, concurrency=1, backlog=1, graceful_timeout=0.05) as server:
            send(server, b"wait", *[b"x"] * 200)
            await until(lambda: b"wait" in app.calls)
        return app.calls, server.statistics()

    calls, statistics = run(live())
    assert calls == ["startup", b"wait", "cancelled", "shutdown"]
    assert (statistics.handled, statistics.errors, statistics.kernel_drops) == (0, 0, 0)
    assert (statistics.received, statistics.abandoned) == (201, 201)
    assert [event["datagrams"] for event in named(logged, "abandoned")] == [201]


def test_a_handler_that_will_not_be_cancelled(run, logged, monkeypatch, send):
    """A handler that goes on after it was cancelled does not stop the stop: it is told of, and left behind."""
    monkeypatch.setattr("aiolb.listener.CANCEL_TIMEOUT", 0.05)

    class Stubborn(Recorder):
        async def handle(self, datagram, _addr):
            self.calls.append(datagram)
            while not self.gate.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await self.gate.wait()
            self.calls.append("ended")

    async def live():
        app = Stubborn()
        async with started(app, graceful_timeout=0.05) as server:
            send(server, b"x")
            await until(lambda: b"x" in app.calls)
        app.gate.set()
        await until(lambda: "ended" in app.calls)
        return app.calls, can_be_bound(server.listeners[0].address)

    assert run(live()) == (["startup", b"x", "shutdown", "ended"], True)
    assert len(named(logged, "handlers_stuck")) == 1


def test_no_graceful_time_at_all(run, send):
    """With a timeout of 0 nothing is waited for, and still everything is counted."""

    async def live():
        app = Recorder()
        async with started(app, graceful_timeout=0) as server:
            send(server, *[b"x"] * 300)
        return server.statistics()

    statistics = run(live())
    assert statistics.handled + statistics.abandoned == 300
    assert statistics.kernel_drops == 0


def test_what_comes_while_a_lone_member_stops(run, send):
    """A member that the kernel goes on selecting refuses what comes while handlers finish; the kernel counts it."""

    async def live():
        app, sent = Recorder(), 1
        async with started(app) as server:
            send(server, b"wait")
            await until(lambda: b"wait" in app.calls)
            stopping = asyncio.create_task(server.stop())
            while not server.listeners[0].memory().drops:
                send(server, b"late")
                sent += 1
                await asyncio.sleep(0)
            app.gate.set()
            await stopping
        return sent, server.statistics()

    sent, statistics = run(live())
    assert statistics.kernel_drops > 0
    assert (statistics.handled + statistics.kernel_drops, statistics.abandoned) == (sent, 0)


def test_slow_handlers(run, logged, send):
    """Datagrams for which there is no room are dropped and counted by the kernel, and all others are handled."""

    async def live():
        app = Recorder()
        async with started(app, concurrency=1, backlog=16, rcvbuf=8192) as server:
            send(server, b"wait")
            await until(lambda: b"wait" in app.calls)
            send(server, *[b"x"] * 1000)
            await until(lambda: server.statistics().kernel_drops)
            app.gate.set()
        return server.statistics()

    statistics = run(live())
    assert statistics.kernel_drops > 500
    assert (statistics.handled + statistics.kernel_drops, statistics.abandoned) == (1001, 0)
    drops = named(logged, "kernel_drops")
    assert sum(event["packets"] for event in drops) == drops[-1]["total"] == statistics.kernel_drops
    assert drops[0]["log_level"] == "warning"


def test_stop_is_idempotent(run, logged):
    """Stopping twice, or before a start, does nothing more."""

    async def live():
        app = Recorder()
        server = Server(app, config())
        await server.stop()
        async with started(app) as server:
            await server.stop()
            server.request_stop()
        return app.calls

    assert run(live()) == ["startup", "shutdown"]
    assert len(named(logged, "stopped")) == 1


def test_startup_that_raises(run):
    """What startup() raises becomes an ApplicationError; nothing was bound and shutdown() is not called."""

    class Failing(Recorder):
        async def startup(self):
            raise RuntimeError("no database")

    async def live():
        app = Failing()
        server = Server(app, config())
        with pytest.raises(ApplicationError, match=r"^startup\(\) failed: RuntimeError: no database$") as caught:
            await server.serve()
        assert isinstance(caught.value.__cause__, RuntimeError)
        return app.calls, server.listeners

    assert run(live()) == ([], [])


def test_startup_that_raises_our_error(run):
    """An aiolb error that startup() raises is passed on as it is, with its hint."""

    class Failing(Recorder):
        async def startup(self):
            raise StartError("no database", hint="start it")

    with pytest.raises(StartError, match="no database") as caught:
        run(Server(Failing(), config()).serve())
    assert caught.value.hint == "start it"


def test_a_second_address_that_cannot_be_bound(run):
    """When one of the addresses cannot be bound, the others are let go, and shutdown() is called."""

    async def live():
        app = Recorder()
        with socket.socket(type=socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", 0))
            taken = Address(*other.getsockname())
            with sockets.reserved_port(LOCAL) as free:
                server = Server(app, config(free, taken))
                with pytest.raises(KernelError, match="without SO_REUSEPORT"):
                    await server.start()
        assert can_be_bound(free)
        return app.calls

    assert run(live()) == ["startup", "shutdown"]


def test_a_start_that_fails_late_loses_nothing(run, monkeypatch, send):
    """What the first address received before the second one failed is handled."""
    app = Recorder()
    server = Server(app, config(LOCAL, LOCAL_V6))
    genuine = DatagramListener.open

    def open_then_fail(address, *arguments):
        if server.listeners:
            send(server, b"early")
            raise StartError("no more")
        return genuine(address, *arguments)

    monkeypatch.setattr(DatagramListener, "open", open_then_fail)
    with pytest.raises(StartError, match="no more"):
        run(server.serve())
    assert app.calls == ["startup", b"early", "shutdown"]


def test_shutdown_that_raises(run, logged):
    """What shutdown() raises is logged, and the stop goes on."""

    class Failing(Recorder):
        async def shutdown(self):
            raise RuntimeError("no")

    async def live():
        async with started(Failing()) as server:
            pass
        return server.listeners[0].address

    assert can_be_bound(run(live()))
    assert [event["event"] for event in logged] == ["ready", "stopping", "shutdown_failed", "stopped"]


def test_several_addresses(run, send):
    """One collector serves all its addresses, and each is counted on its own."""

    async def live():
        app = Recorder()
        async with started(app, LOCAL, LOCAL, LOCAL_V6) as server:
            for to in range(3):
                send(server, *[b"x"] * (to + 1), to=to)
        return app.calls, server.statistics()

    calls, statistics = run(live())
    assert calls == ["startup", *[b"x"] * 6, "shutdown"]
    assert [sock.handled for sock in statistics.sockets] == [1, 2, 3]
    assert statistics.handled == 6
    assert statistics.sockets[2].bind.startswith("[::1]:")


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops(run, logged, send, number):
    """SIGTERM and SIGINT stop gracefully."""

    async def live():
        app = Recorder()
        server = Server(app, config())
        serving = asyncio.create_task(server.serve())
        await until(lambda: server.listeners)
        send(server, *[b"x"] * 100)
        os.kill(os.getpid(), number)
        await serving
        return app.calls

    assert run(live()) == ["startup", *[b"x"] * 100, "shutdown"]
    assert [event["event"] for event in logged] == ["ready", "signal", "stopping", "stopped"]
    assert logged[1]["name"] == number.name


def test_a_signal_stops_all(run):
    """Several collectors in one process all stop at one signal."""

    async def live():
        apps = Recorder(), Recorder()
        servers = [Server(app, config()) for app in apps]
        serving = [asyncio.create_task(server.serve()) for server in servers]
        await until(lambda: all(server.listeners for server in servers))
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.gather(*serving)
        return [app.calls for app in apps]

    assert run(live()) == [["startup", "shutdown"]] * 2


@pytest.mark.parametrize("reason", ["signal", "request"])
def test_sigint_while_stopping(run, send, reason):
    """SIGINT gives up what is still being handled, whatever the stop began with."""

    async def live():
        app = Recorder()
        server = Server(app, config())
        serving = asyncio.create_task(server.serve())
        await until(lambda: server.listeners)
        send(server, b"wait")
        await until(lambda: b"wait" in app.calls)
        if reason == "signal":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            server.request_stop()
        await until(lambda: server._stopped)
        os.kill(os.getpid(), signal.SIGINT)
        await serving
        return app.calls, server.statistics()

    calls, statistics = run(live())
    assert calls == ["startup", b"wait", "cancelled", "shutdown"]
    assert (statistics.handled, statistics.abandoned) == (0, 1)


def test_sigterm_while_stopping(run, send):
    """A second SIGTERM leaves handlers the time that they have."""

    async def live():
        app = Recorder()
        server = Server(app, config())
        serving = asyncio.create_task(server.serve())
        await until(lambda: server.listeners)
        send(server, b"wait")
        await until(lambda: b"wait" in app.calls)
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: server._stopped)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)
        app.gate.set()
        await serving
        return app.calls

    assert run(live()) == ["startup", b"wait", "waited", "shutdown"]


def test_a_signal_during_startup(run, logged):
    """A signal while startup() runs cancels it: nothing is bound, and serve() returns."""

    class Slow(Recorder):
        async def startup(self):
            os.kill(os.getpid(), signal.SIGTERM)
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.calls.append("cancelled")
                raise

    async def live():
        app = Slow()
        server = Server(app, config())
        await server.serve()
        return app.calls, server.listeners

    assert run(live()) == (["cancelled"], [])
    assert [event["event"] for event in logged] == ["signal"]


def test_a_cancelled_serve_stops_gracefully(run, send):
    """Who cancels serve() gets a graceful stop, and the cancellation."""

    async def live():
        app = Recorder()
        server = Server(app, config())
        serving = asyncio.create_task(server.serve())
        await until(lambda: server.listeners)
        send(server, *[b"x"] * 50)
        serving.cancel()  # may come before serve() itself knows that the start is over
        with pytest.raises(asyncio.CancelledError):
            await serving
        return app.calls

    assert run(live()) == ["startup", *[b"x"] * 50, "shutdown"]


# The report


def test_report(run, send, tmp_path):
    """The report is the final statistics, and what the collector adds."""

    class Counting(Recorder):
        def report(self):
            return {"calls": len(self.calls)}

    file = tmp_path / "report.json"

    async def live():
        async with started(Counting(), report=file) as server:
            send(server, b"1", b"22")
        return server.statistics()

    statistics = run(live())
    report = json.loads(file.read_text())
    assert report == {**statistics.as_dict(), "collector": {"calls": 4}}
    assert (report["index"], report["count"], report["handled"], report["received_bytes"]) == (0, 1, 2, 3)
    assert report["pid"] == os.getpid()
    assert report["sockets"][0]["balancer"] == "none"


@pytest.mark.parametrize("result", [RuntimeError("no"), {"x": object()}, None])
def test_a_report_that_fails(run, logged, tmp_path, result):
    """A collector whose report() raises, or cannot be said in JSON, costs its own part only."""

    class Failing(Recorder):
        def report(self):
            if isinstance(result, Exception):
                raise result
            return result

    file = tmp_path / "report.json"

    async def live():
        async with started(Failing(), report=file):
            pass

    run(live())
    report = json.loads(file.read_text())
    assert (report["handled"], report["collector"]) == (0, None)
    assert len(named(logged, "report_failed")) == 1


def test_a_report_that_cannot_be_written(run, tmp_path):
    """A report that cannot be written is told before startup(), and leaves no file."""

    async def live(file):
        app = Recorder()
        with pytest.raises(ConfigurationError, match="cannot be written"):
            await Server(app, config(report=file)).start()
        return app.calls

    assert run(live(tmp_path)) == []
    assert run(live(tmp_path / "nowhere" / "report.json")) == []
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_in_the_end(run, logged, tmp_path):
    """A report that cannot be written at the end is logged, and the stop goes on."""
    file = tmp_path / "report.json"

    async def live():
        async with started(Recorder(), report=file):
            file.mkdir()

    run(live())
    assert [event["reason"] for event in named(logged, "report_failed")] == ["Is a directory"]
