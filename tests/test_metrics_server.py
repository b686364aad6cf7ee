"""Metrics over HTTP: where, until when, and what becomes of a port that is taken."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import urllib.error
import urllib.request

import pytest
from supervision import until

from aiolb import metrics_server
from aiolb.address import Address
from aiolb.errors import ConfigurationError, StartError
from aiolb.metrics_server import MetricsServer

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


def test_a_look_that_fails(run, logged, capsys):
    """It is logged, whoever asked is told, and the next one is answered."""
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
