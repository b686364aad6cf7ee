"""One socket of a member: what it says of its group and of the kernel, and how it is opened and closed."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from aiolb import Collector, datagram_listener, logs, remarks, sockets
from aiolb.address import Address
from aiolb.bpf.changes import SlotsChange
from aiolb.bpf.keys import Key
from aiolb.bpf.steering import Joined
from aiolb.config import ServeConfig
from aiolb.datagram_listener import DatagramListener
from aiolb.errors import PrivilegeError
from aiolb.listener import DROPS_LOG_INTERVAL

LOCAL = Address("127.0.0.1", 0)

pytestmark = pytest.mark.usefixtures("nothing_left")


class _FakePlace:
    """A place in a group whose fate the test decides."""

    def __init__(self):
        self.count = 3
        self.displaced = False
        self.weight = 100
        self.drained = False
        self.changes = []
        self.empty = False
        self.calls = []

    def restore(self):
        restored, self.empty = self.empty, False
        return restored

    def slots_change(self):
        return self.changes.pop() if self.changes else None

    def leave(self):
        self.calls.append("leave")
        return True

    def close(self, *, forget=False):
        self.calls.append(("close", forget))


class Discard(Collector):
    """Counts."""

    async def handle(self, datagram, addr):
        """Do nothing."""


@pytest.fixture
def place():
    """The place of the listener."""
    return _FakePlace()


@contextlib.asynccontextmanager
async def listening(place, *, fallback=None, forget=False, rcvbuf=8192, read=True, app=None):
    """A listener on a socket of its own; with ``read=False`` it leaves datagrams in the queue."""
    sock = sockets.bind_reuseport(LOCAL)
    sockets.set_receive_buffer(sock, 8192)
    address = Address(*sock.getsockname())
    joined = Joined(sock, place, "ebpf" if fallback is None else "classic", fallback)
    remarks.on_joined(address, joined, sock, rcvbuf)
    config = ServeConfig(bind=(address,), rcvbuf=rcvbuf)
    made = DatagramListener(address, joined, app or Discard(), config, forget=forget)
    if not read:
        made.transport.pause_reading()
    try:
        yield made
    finally:
        await made.close()


def flood(address, number):
    """Send that many datagrams."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        for _ in range(number):
            sock.sendto(b"x", (address.host, address.port))


async def test_joining_without_remarks(place, logged):
    """Where everything is as wanted, nothing is logged."""
    async with listening(place):
        pass
    assert logged == []


async def test_fallback_is_a_warning(place, logged):
    """The classic balancer in the place of the eBPF one is a warning that says why and what is missing."""
    async with listening(place, fallback=PrivilegeError("not allowed", hint="as root")):
        pass
    (event,) = logged
    assert (event["event"], event["log_level"], event["balancer"]) == ("balancer_fallback", "warning", "classic")
    assert (event["reason"], event["hint"]) == ("not allowed", "as root")
    assert "no failover" in event["missing"]


async def test_capped_receive_buffer(place, logged):
    """A receive buffer that is smaller than wanted is a warning with both sizes and the sysctl."""
    async with listening(place, rcvbuf=9000):
        pass
    (event,) = logged
    assert (event["event"], event["log_level"]) == ("receive_buffer_capped", "warning")
    assert (event["wanted"], event["given"]) == (9000, 8192)
    assert event["hint"] == "as root: sysctl -w net.core.rmem_max=9000"


async def test_count_changes(place, logged):
    """Another count of the group is logged once, and every later log line carries it."""
    member = {"count": 3}
    logs.MEMBER.set(member)
    async with listening(place) as made:
        assert (made.watch(0), made.count) == (False, 3)
        place.count = 5
        assert (made.watch(0.25), made.watch(0.5), made.count) == (False, False, 5)
    (event,) = logged
    assert (event["event"], event["before"], event["now"]) == ("count_changed", 3, 5)
    assert member["count"] == 5


async def test_displaced(place):
    """The listener says when its place was taken over."""
    async with listening(place) as made:
        assert not made.watch(0)
        place.displaced = True
        assert made.watch(0.25)


async def test_restored(place, logged):
    """A place that whoever took it over left empty is taken back, and the log says so; the member goes on."""
    async with listening(place) as made:
        place.empty = True
        assert not made.watch(0)
        assert [event["event"] for event in logged] == ["place_restored"]


async def test_outside_of_a_smaller_group(place, logged):
    """A live member that a smaller count leaves without a place is told that nothing comes to it any more."""
    async with listening(place) as made:
        place.count = 1
        made.watch(0)
        assert "outside" not in [event["event"] for event in logged]
        place.count = 0
        made.watch(0.25)
        assert [event["event"] for event in logged] == ["count_changed", "count_changed", "outside"]


async def test_drops_are_logged_now_and_then(place, logged, monkeypatch):
    """Drops are logged when they are first seen, then once per interval, and at the end what is left."""
    monkeypatch.setattr(sockets, "receive_buffer_limit", lambda: 212_992)
    async with listening(place, read=False) as made:
        made.watch(100.0)
        assert logged == []
        drops = []
        for now in (100.25, 100.5, 100.25 + DROPS_LOG_INTERVAL, 100.5 + DROPS_LOG_INTERVAL):
            flood(made.address, 200)
            made.watch(now)
            drops.append(made.memory().drops)
    assert [event["total"] for event in logged] == [drops[0], drops[2], drops[3]]
    assert [event["packets"] for event in logged] == [drops[0], drops[2] - drops[0], drops[3] - drops[2]]
    assert {event["event"] for event in logged} == {"kernel_drops"}
    assert {event["hint"] for event in logged} == {
        "--rcvbuf 1M (as root: sysctl -w net.core.rmem_max=1048576), or more members"
    }


async def test_leaving_twice(place):
    """A place is left once."""
    async with listening(place) as made:
        made.leave()
        made.leave()
    assert place.calls == ["leave", ("close", False)]


async def test_forgetting(place):
    """Whether the group is to be forgotten is passed on at the end."""
    async with listening(place, forget=True):
        pass
    assert place.calls == [("close", True)]


async def test_statistics_after_the_end(place):
    """The counters stay what they were when the socket was closed."""
    async with listening(place) as made:
        flood(made.address, 10)
        made.leave()
        await made.drain()
    statistics = made.statistics()
    assert (statistics.received, statistics.handled, statistics.kernel_drops) == (10, 10, 0)
    assert statistics.bind == str(made.address)


async def test_closing_counts_what_is_left(place):
    """What was still in the kernel's queue at the close was abandoned."""
    async with listening(place, read=False) as made:
        flood(made.address, 5)
        assert await made.close() == 5
    assert made.statistics().abandoned == 5


async def test_open(logged):
    """A listener binds the free port that the kernel chooses and closes it again."""
    config = ServeConfig(bind=(LOCAL,), balancer="none", rcvbuf=8192)
    made = DatagramListener.open(LOCAL, Discard(), config)
    assert made.address.port
    assert (made.balancer, made.count) == ("none", 1)
    await made.close()
    assert not sockets.holders_of(made.address)
    assert logged == []


async def test_a_failure_after_joining_lets_the_socket_go(monkeypatch):
    """When the transport cannot be made, the socket and the place are given back."""
    bound = []

    def fail(_loop, sock, *_factories):
        bound.append(sock)
        raise RuntimeError("no transport")

    monkeypatch.setattr(datagram_listener, "create_transport", fail)
    assert asyncio.get_running_loop()
    with pytest.raises(RuntimeError, match="no transport"):
        DatagramListener.open(LOCAL, Discard(), ServeConfig(bind=(LOCAL,), balancer="none"))
    assert [sock.fileno() for sock in bound] == [-1]


class Told(Discard):
    """Notes what it is told of slots, and raises when it is to."""

    def __init__(self):
        self.changes = []
        self.error = None

    def on_slots_changed(self, change):
        """Note it."""
        self.changes.append(change)
        if self.error is not None:
            raise self.error


async def test_slots_change(place, logged):
    """The collector is told once of slots that have left or come; what it raises is logged and stops nothing."""
    change = SlotsChange(LOCAL, frozenset({1, 2}), frozenset({3}), Key(), 5)
    app = Told()
    async with listening(place, app=app) as made:
        place.changes = [change]
        assert (made.watch(0), made.watch(0.25)) == (False, False)
        app.error, place.changes = ValueError("my mistake"), [change]
        assert made.watch(0.5) is False
    assert app.changes == [change, change]
    assert [event["event"] for event in logged] == ["slots_changed", "slots_changed", "on_slots_changed_failed"]
    assert (logged[0]["left"], logged[0]["came"], logged[2]["log_level"]) == (2, 1, "error")


async def test_weight_and_drain_are_logged(place, logged):
    """Another weight, a drain and its end are logged once each."""
    async with listening(place) as made:
        place.weight, place.drained = 300, True
        made.watch(0)
        made.watch(0.25)
        place.drained = False
        made.watch(0.5)
    said = [(event["event"], event["log_level"], event.get("before"), event.get("now")) for event in logged]
    assert said == [
        ("weight_changed", "info", 100, 300),
        ("drained", "warning", None, None),
        ("undrained", "info", None, None),
    ]
    assert logged[1]["hint"] == "nothing comes here until: aiolb undrain 0"


@pytest.mark.parametrize(("limit", "room"), [(0, 1), (425_984, 1), (2 << 20, 2), (40 << 20, 40)])
def test_more_room(monkeypatch, limit, room):
    """What is advised against drops is twice what the socket was given, for the kernel doubles that itself."""
    monkeypatch.setattr(sockets, "receive_buffer_limit", lambda: 212_992)
    assert remarks.against_drops(limit).startswith(
        f"--rcvbuf {room}M (as root: sysctl -w net.core.rmem_max={room << 20})"
    )


@pytest.mark.parametrize(("most", "said"), [((2 << 20) - 1, True), (2 << 20, False), (None, True)])
def test_room_that_there_is(monkeypatch, most, said):
    """The sysctl is advised to who needs it: nobody is told to lower it."""
    monkeypatch.setattr(sockets, "receive_buffer_limit", lambda: most)
    assert ("net.core.rmem_max" in remarks.against_drops(2 << 20)) == said
