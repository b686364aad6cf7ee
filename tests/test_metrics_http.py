"""The HTTP server of metrics: whatever a client does, others are answered, and its place is free in the end."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, contextmanager

import pytest
from deadline import DEADLINE

from aiolb import metrics_http
from aiolb.address import Address
from aiolb.metrics_http import CLIENTS, Server

REQUEST = b"GET / HTTP/1.0\r\n\r\n"

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def serve(wait_until):
    """A server for a ``with`` block, from which whoever asks gets these bytes; all its threads have ended at last."""
    servers = []

    @contextmanager
    def serving(body=b"hello"):
        def app(_environ, start_response):
            start_response("200 OK", [])
            return [body]

        servers.append(server := Server(Address("127.0.0.1", 0), app))
        try:
            yield server
        finally:
            server.stop()

    yield serving
    for server in servers:
        wait_until(lambda server=server: free(server) == server._places._initial_value, "nobody has a place")


def free(server):
    """How many places nobody has."""
    return server._places._value


def connected(server):
    """A client."""
    return socket.create_connection(server.server_address, timeout=DEADLINE)


def ask(server):
    """What is answered."""
    with connected(server) as client, client.makefile("rb") as answer:
        client.sendall(REQUEST)
        return answer.read().partition(b"\r\n\r\n")[2]


def test_a_silent_client(serve):
    """While one connection says nothing others are answered, and the end does not wait for it."""
    with ExitStack() as at_last:
        with serve() as server:
            at_last.enter_context(connected(server))
            assert ask(server) == b"hello"
        assert free(server) < CLIENTS


def test_no_more_clients_than_there_are_places(serve, logged, monkeypatch, wait_until):
    """A connection too many is closed at once and takes no thread; when another one ends there is a place again."""
    monkeypatch.setattr(metrics_http, "CLIENTS", 1)
    with serve() as server:
        with connected(server), connected(server) as refused:
            assert refused.recv(1) == b""
        wait_until(lambda: free(server) == 1, "the place is free")
        assert ask(server) == b"hello"
    assert [event["client"] for event in logged if event["event"] == "metrics_refused"] == ["127.0.0.1"]


def test_a_client_that_does_not_read(serve, monkeypatch, wait_until, logged, capsys):
    """Its place is free after a while, and nobody is told of it."""
    monkeypatch.setattr(metrics_http, "TIMEOUT", 1.0)
    more_than_queues_hold = bytes(20_000_000)
    with serve(more_than_queues_hold) as server, connected(server) as client:
        client.sendall(REQUEST)
        assert client.recv(1) == b"H"
        wait_until(lambda: free(server) == CLIENTS, "its place is free")
    assert logged == []
    assert capsys.readouterr() == ("", "")


def test_a_client_that_drips(serve, monkeypatch, wait_until):
    """Its request has a time to come in, however often a byte of it does; then its place is free."""
    monkeypatch.setattr(metrics_http, "TIMEOUT", 0.05)

    def drip():
        for _ in range(5000):
            client.sendall(b"x")
            time.sleep(0.002)

    with serve() as server, connected(server) as client:
        with pytest.raises(ConnectionError):
            drip()
        wait_until(lambda: free(server) == CLIENTS, "its place is free")
