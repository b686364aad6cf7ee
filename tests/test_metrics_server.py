"""Metrics over HTTP: where, until when, and what becomes of a port that is taken."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from supervision import until

from aiolb import metrics_server
from aiolb.address import Address
from aiolb.bpf.discovery import GroupName
from aiolb.errors import ConfigurationError, StartError
from aiolb.metrics_server import CLIENTS, MetricsServer
from aiolb.observed import Observed

FREE = Address("127.0.0.1", 0)

pytestmark = pytest.mark.usefixtures("nothing_left")


def read(url):
    """What a GET of the URL gives."""
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - it is ours
        return answer.read().decode()


def url_of(events):
    """Where the metrics are, as the log says."""
    (event,) = [event for event in events if event["event"] == "metrics"]
    return event["url"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_serves(run, logged, host):
    """The log has the real port, /metrics is there, and afterwards the port is free and its threads have ended."""

    async def scenario():
        async with MetricsServer(Address(host, 0), list):
            url = url_of(logged)
            assert "aiolb_build_info{" in await asyncio.to_thread(read, url)
        with pytest.raises(urllib.error.URLError, match="refused"):
            await asyncio.to_thread(read, url)

    run(scenario())
    assert [thread for thread in threading.enumerate() if thread.name == "metrics"] == []


def test_nothing_is_served_without_an_address(run):
    """Without --metrics there is no socket and no thread."""

    async def scenario():
        before = threading.active_count()
        async with MetricsServer(None, list):
            assert threading.active_count() == before

    run(scenario())


def test_a_port_in_use(run):
    """It is a start that failed, with the address and how to find who has it."""

    async def scenario():
        with socket.create_server(("127.0.0.1", 0)) as other:
            address = Address("127.0.0.1", other.getsockname()[1])
            with pytest.raises(StartError, match=f"cannot be served at {address}: Address already in use") as raised:
                async with MetricsServer(address, list):
                    pass
        assert f"ss -ltnp sport = {address.port}" in raised.value.hint

    run(scenario())


def test_waits_for_the_port_of_whom_it_takes_over_from(run, logged, monkeypatch):
    """A takeover goes on without the port, and serves as soon as the former process gives it up."""
    monkeypatch.setattr(metrics_server, "RETRY", 0.01)

    async def scenario():
        async with MetricsServer(FREE, list) as former:
            address = Address("127.0.0.1", former._server.server_port)
            async with MetricsServer(address, list, wait=True):
                assert [event["event"] for event in logged] == ["metrics", "metrics_wait"]
                await former.close()
                await until(lambda: len(logged) > 2, "the new one serves")
                assert logged[2] == {"event": "metrics", "url": f"http://{address}/metrics", "log_level": "info"}
                assert "aiolb_build_info{" in await asyncio.to_thread(read, logged[2]["url"])

    run(scenario())


def test_a_takeover_that_ends_first(run):
    """Whoever still waits for the port when it stops has left nothing behind."""

    async def scenario():
        with socket.create_server(("127.0.0.1", 0)) as other:
            async with MetricsServer(Address("127.0.0.1", other.getsockname()[1]), list, wait=True):
                pass

    run(scenario())


def test_without_prometheus_client(run, monkeypatch):
    """It is a mistake of usage, told with the command that mends it."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    async def scenario():
        with pytest.raises(ConfigurationError, match="--metrics needs the package prometheus-client") as raised:
            async with MetricsServer(FREE, list):
                pass
        assert raised.value.hint == "pip install prometheus-client"

    run(scenario())


def test_a_silent_client_holds_nobody_up(run, logged):
    """While one connection says nothing others are answered, and the end does not wait for it."""

    async def scenario():
        async with MetricsServer(FREE, list) as server:
            with socket.create_connection(("127.0.0.1", server._server.server_port)):
                assert "aiolb_build_info{" in await asyncio.to_thread(read, url_of(logged))

    run(scenario())


def test_no_more_clients_than_there_are_places(run, logged, monkeypatch):
    """A connection too many is closed at once and takes no thread; when another one ends there is a place again."""
    monkeypatch.setattr(metrics_server, "CLIENTS", 1)

    async def scenario():
        async with MetricsServer(FREE, list) as server:
            address = ("127.0.0.1", server._server.server_port)
            with socket.create_connection(address), socket.create_connection(address, timeout=10) as refused:
                assert await asyncio.to_thread(refused.recv, 1) == b""
            await until(lambda: server._server._places._value == 1)
            assert "aiolb_build_info{" in await asyncio.to_thread(read, url_of(logged))
        assert [event["client"] for event in logged if event["event"] == "metrics_refused"] == ["127.0.0.1"]

    run(scenario())


def test_a_client_that_does_not_read(run, logged, monkeypatch, capsys):
    """Its place is free after a while, and nobody is told of it."""
    monkeypatch.setattr(metrics_server, "TIMEOUT", 0.5)
    more_than_queues_hold = Observed(GroupName("udp", FREE), "none", None, key="x" * 20_000_000)
    looks = []

    def observe():
        looks.append(more_than_queues_hold)
        return looks

    async def scenario():
        async with MetricsServer(FREE, observe) as server:
            with socket.create_connection(("127.0.0.1", server._server.server_port)) as client:
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                await until(lambda: looks, "it is answered")
                await until(lambda: server._server._places._value == CLIENTS, "its place is free")
        assert [event["event"] for event in logged] == ["metrics"]

    run(scenario())
    assert capsys.readouterr() == ("", "")


def test_a_client_that_drips(run, monkeypatch):
    """Its request has a time to come in, however often a byte of it does; then its place is free."""
    monkeypatch.setattr(metrics_server, "TIMEOUT", 0.05)

    def drip(address):
        with socket.create_connection(address) as client:
            for _ in range(5000):
                client.sendall(b"x")
                time.sleep(0.002)

    async def scenario():
        async with MetricsServer(FREE, list) as server:
            with pytest.raises(ConnectionError):
                await asyncio.to_thread(drip, server._server.server_address)
            await until(lambda: server._server._places._value == CLIENTS, "its place is free")

    run(scenario())


def test_a_look_that_fails(run, logged, capsys):
    """It is logged once, whoever asked is told, and the next one is answered."""
    looks = [OSError("no group"), []]

    def observe():
        if isinstance(look := looks.pop(0), OSError):
            raise look
        return look

    async def scenario():
        async with MetricsServer(FREE, observe):
            url = url_of(logged)
            with pytest.raises(urllib.error.HTTPError, match="500") as raised:
                await asyncio.to_thread(read, url)
            raised.value.close()
            assert "aiolb_build_info{" in await asyncio.to_thread(read, url)
        assert [(event["event"], event["log_level"]) for event in logged[1:]] == [("metrics_request_failed", "error")]

    run(scenario())
    assert capsys.readouterr() == ("", "")
