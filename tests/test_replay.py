"""Replays: what is sent, from which source, when it is due, what is skipped, and how they end."""

from __future__ import annotations

import asyncio
import math
import resource
import socket

import captures
import flooding
import pytest
from captures import ethernet, interface, ipv4, ipv6, packet, pcap, section, udp
from events import until

from aiolb.errors import AiolbError, CaptureError, ConfigurationError, KernelError, StartError
from aiolb.frames import FRAGMENT, NOT_IP, NOT_UDP
from aiolb.replay import OTHER_PORT, Replay

pytestmark = pytest.mark.usefixtures("nothing_left")
receiver, target = flooding.receiver, flooding.target


def frame(source, payload, **settings):
    """A frame of one datagram."""
    packed = ipv6 if ":" in source else ipv4
    return ethernet(packed(source, udp(payload, **settings)))


MIXED = [
    (10.0, frame("10.0.0.1", b"a1")),
    (10.5, frame("10.0.0.2", b"b1")),
    (10.5, ethernet(bytes(28), kind=0x0806)),
    (11.0, ethernet(ipv4(protocol=captures.TCP))),
    (12.0, frame("2001:db8::1", b"c1", port=514)),
    (12.5, ethernet(ipv4("10.0.0.2", fragment=0x2000))),
    (13.0, frame("::ffff:10.0.0.1", b"a2")),
    (14.0, frame("10.0.0.2", b"b2")),
]


@pytest.fixture
def capture(tmp_path):
    """A file of these frames, or bytes."""

    def write(content=MIXED):
        path = tmp_path / "capture.pcap"
        path.write_bytes(content if isinstance(content, bytes) else pcap(content))
        return path

    return write


def received(sock, number):
    """Address and payload of exactly that many datagrams; nothing may be left after them."""
    found = [(addr[0], data) for data, addr in (sock.recvfrom(1 << 16) for _ in range(number))]
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    sock.settimeout(10)
    return found


async def replayed(*arguments, **settings):
    """Run a replay, and return its statistics."""
    async with Replay(*arguments, **settings) as replay:
        return await replay.run()


async def planned(*arguments, end=math.inf, **settings):
    """When what is due, from where, for a replay that starts at 100 seconds; nothing is sent."""
    async with Replay(*arguments, **settings) as replay:
        plan = [item for item in replay._plan(100.0, end) if item is not None]
        return [(item.due, item.source.address, item.datagram) for item in plan]


@pytest.mark.parametrize("nano", [False, True])
def test_sources_and_order(run, receiver, target, capture, nano):
    """Each source of the capture has an address of its own, in order of appearance, and all keep their order."""
    statistics = run(replayed(target, capture(pcap(MIXED, nano=nano)), rate=math.inf))
    assert received(receiver, 5) == [
        ("127.0.0.2", b"a1"),
        ("127.0.0.3", b"b1"),
        ("127.0.0.4", b"c1"),
        ("127.0.0.2", b"a2"),
        ("127.0.0.3", b"b2"),
    ]
    assert statistics.sent_per_source == {"127.0.0.2": 2, "127.0.0.3": 2, "127.0.0.4": 1}
    assert (statistics.sent, statistics.bytes, statistics.sources, statistics.failed) == (5, 10, 3, 0)
    assert (statistics.packets, statistics.rounds, statistics.captured_sources) == (8, 1, 3)
    assert statistics.captured_ports == {2055: 4, 514: 1}
    assert statistics.skipped == {NOT_IP: 1, NOT_UDP: 1, FRAGMENT: 1}
    assert (statistics.rate_asked, statistics.late_us) == (None, {})


def test_pcapng(run, receiver, target, capture):
    """A pcapng file is replayed the same."""
    blocks = b"".join(packet(round(seconds * 1e6), content) for seconds, content in MIXED)
    statistics = run(replayed(target, capture(section() + interface() + blocks), rate=math.inf))
    assert [data for _, data in received(receiver, 5)] == [b"a1", b"b1", b"c1", b"a2", b"b2"]
    assert statistics.packets == 8


def test_original_timing(run, target, capture):
    """Datagrams are due as far apart as they were recorded, what is skipped in between included."""
    plan = run(planned(target, capture()))
    assert plan == [
        (100.0, "127.0.0.2", b"a1"),
        (100.5, "127.0.0.3", b"b1"),
        (102.0, "127.0.0.4", b"c1"),
        (103.0, "127.0.0.2", b"a2"),
        (104.0, "127.0.0.3", b"b2"),
    ]


def test_speed(run, target, capture):
    """At four times the speed it takes a quarter of the time."""
    assert [due for due, *_ in run(planned(target, capture(), speed=4))] == [100.0, 100.125, 100.5, 100.75, 101.0]


def test_rate(run, target, capture):
    """A rate takes the place of the recorded times, over all rounds."""
    plan = run(planned(target, capture(), rate=2, rounds=2))
    assert [due for due, *_ in plan] == [100.0 + n / 2 for n in range(10)]


def test_rounds(run, target, capture):
    """A round begins with the last datagram of the one before it, and its sources are the same ones."""
    plan = run(planned(target, capture(), rounds=2))
    assert [due for due, *_ in plan[5:]] == [104.0, 104.5, 106.0, 107.0, 108.0]
    assert [rest for _, *rest in plan[5:]] == [rest for _, *rest in plan[:5]]


def test_rounds_are_counted(run, receiver, target, capture):
    """What is read, sent and skipped in several rounds is counted in all of them."""
    statistics = run(replayed(target, capture(), rate=math.inf, rounds=3))
    received(receiver, 15)
    assert (statistics.rounds, statistics.packets, statistics.sent) == (3, 24, 15)
    assert statistics.skipped == {NOT_IP: 3, NOT_UDP: 3, FRAGMENT: 3}
    assert (statistics.sources, statistics.captured_sources) == (3, 3)


def test_rounds_of_nothing(run, receiver, target, capture):
    """A capture without datagrams is read once, however often it is to be replayed."""
    statistics = run(replayed(target, capture([(1.0, ethernet(bytes(28), kind=0x0806))]), rounds=10**9))
    received(receiver, 0)
    assert (statistics.rounds, statistics.packets, statistics.sent) == (1, 1, 0)


def test_port(run, receiver, target, capture):
    """Only what went to the port is replayed, beginning with the first of it; the rest is counted."""
    assert run(planned(target, capture(), port=514)) == [(100.0, "127.0.0.2", b"c1")]
    statistics = run(replayed(target, capture(), port=514))
    assert received(receiver, 1) == [("127.0.0.2", b"c1")]
    assert statistics.skipped == {NOT_IP: 1, NOT_UDP: 1, FRAGMENT: 1, OTHER_PORT: 4}
    assert (statistics.packets, statistics.captured_ports, statistics.captured_sources) == (8, {514: 1}, 1)


@pytest.mark.parametrize(
    ("sources", "addresses"),
    [
        ("1", ["127.0.0.1"] * 5),
        (2, ["127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.2", "127.0.0.3"]),
        ("127.7.0.0/24", ["127.7.0.1", "127.7.0.2", "127.7.0.3", "127.7.0.1", "127.7.0.2"]),
        ("127.7.0.1/32", ["127.7.0.1"] * 5),
    ],
)
def test_source_addresses(run, receiver, target, capture, *, sources, addresses):
    """Sources can be a number or a network; when they are used up, the first gets the next source as well."""
    statistics = run(replayed(target, capture(), rate=math.inf, sources=sources))
    assert [source for source, _ in received(receiver, 5)] == addresses
    assert statistics.captured_sources == 3
    assert statistics.sources == len(set(addresses))


def test_ipv6_target(run, capture):
    """To an IPv6 target all leaves from one address, or from those of a network."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))
        sock.settimeout(10)
        target = f"[::1]:{sock.getsockname()[1]}"
        run(replayed(target, capture(), rate=math.inf, sources="::1/128"))
        run(replayed(target, capture(), rate=math.inf, sources=1))
        assert [data for _, data in received(sock, 10)] == [b"a1", b"b1", b"c1", b"a2", b"b2"] * 2


def test_a_named_target(run, receiver, capture):
    """A name is resolved when the replay is entered."""
    statistics = run(replayed(f"localhost:{receiver.getsockname()[1]}", capture(), rate=math.inf))
    received(receiver, 5)
    assert statistics.sources == 3


@pytest.mark.parametrize(("count", "packets"), [(0, 0), (2, 2), (3, 5), (5, 8), (7, 10), (10, 16), (99, 16)])
def test_count(run, receiver, target, capture, *, count, packets):
    """It ends after so many datagrams, and reads nothing behind the last."""
    statistics = run(replayed(target, capture(), rate=math.inf, rounds=2, count=count))
    received(receiver, min(count, 10))
    assert (statistics.sent, statistics.packets) == (min(count, 10), packets)


def test_duration(run, target, capture):
    """What is due before the end is sent."""
    plan = run(planned(target, capture(), end=103.0))
    assert [data for *_, data in plan] == [b"a1", b"b1", b"c1"]


def test_a_duration_that_is_over(run, receiver, target, capture):
    """With a duration of 0 nothing is due before the end."""
    assert run(replayed(target, capture(), duration=0)).sent == 0
    received(receiver, 0)


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_capture_that_is_cut_off(run, receiver, target, capture, rounds):
    """What is whole is sent, and the error tells how much that was."""
    with pytest.raises(CaptureError, match=r"is cut off: it ends after 7 packets; 4 datagrams of it were sent"):
        run(replayed(target, capture(pcap(MIXED)[:-1]), rate=math.inf, rounds=rounds))
    received(receiver, 4)


def test_too_long_for_the_target(run, receiver, target, capture):
    """A datagram that the kernel refuses has failed, is counted, and the next one is sent."""
    long = ethernet(ipv6(data=udp(bytes(65_520), length=0), length=0))
    statistics = run(replayed(target, capture([(1.0, long), (2.0, frame("10.0.0.1", b"next"))]), rate=math.inf))
    assert received(receiver, 1) == [("127.0.0.3", b"next")]
    assert (statistics.sent, statistics.failed, statistics.errors) == (1, 1, {"too_long": 1})


def test_nobody_listens(run, receiver, target, capture):
    """Refusals are counted, and nothing is given up for them."""
    receiver.connect(("127.0.0.1", 9))
    statistics = run(replayed(target, capture([(1.0, frame("10.0.0.1", b"x"))] * 20), rate=math.inf))
    assert (statistics.sent, statistics.failed) == (20, 0)
    assert set(statistics.errors) == {"refused"}


def test_stop(run, receiver, target, capture):
    """It can be stopped while it waits for what is due in an hour."""

    async def stopped():
        frames = [(0.0, frame("10.0.0.1", b"now")), (3600.0, frame("10.0.0.1", b"later"))]
        async with Replay(target, capture(frames)) as replay:
            running = asyncio.create_task(replay.run())
            await until(lambda: replay.statistics().sent)
            replay.stop()
            return await running

    statistics = run(stopped())
    assert received(receiver, 1) == [("127.0.0.2", b"now")]
    assert (statistics.sent, statistics.packets) == (1, 2)


def test_stop_while_it_reads_what_is_skipped(run, target, capture):
    """A capture of which nothing is sent leaves the event loop its turns."""
    path = capture(pcap([]) + pcap([(0.0, ethernet(bytes(28), kind=0x0806))])[24:] * 200_000)

    async def stopped():
        async with Replay(target, path) as replay:
            asyncio.get_running_loop().call_soon(replay.stop)
            return await replay.run()

    statistics = run(stopped())
    assert statistics.sent == 0
    assert 0 < statistics.skipped[NOT_IP] < 200_000


def test_entered_and_run_once(run, receiver, target, capture):
    """A replay is entered once, run once, and not run when it is not open; statistics are there all the time."""

    async def twice():
        replay = Replay(target, capture(), rate=math.inf)
        assert (replay.statistics().sent, replay.statistics().packets) == (0, 0)
        with pytest.raises(AiolbError, match="is not open"):
            await replay.run()
        async with replay:
            await replay.run()
            with pytest.raises(AiolbError, match="or was run"):
                await replay.run()
        with pytest.raises(AiolbError, match="entered before"):
            await replay.__aenter__()
        return replay.statistics()

    assert run(twice()).sent == 5
    received(receiver, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speed": 0}, "the speed is 0"),
        ({"rate": 0}, "the rate is 0"),
        ({"rate": 5, "speed": 1}, "a speed or a rate"),
        ({"rounds": 0}, "0 rounds"),
        ({"port": 65536}, "65536 is no port"),
        ({"count": -1}, "the count is -1"),
        ({"sources": "10.0.0.0/33"}, "is no network"),
        ({"sources": "fd00::/64"}, "cannot reach"),
        ({"target": "[::1]:9"}, "on IPv4 loopback only"),
        ({"target": "192.0.2.1:9"}, "on IPv4 loopback only"),
        ({"file": "/nothing"}, "No such file"),
    ],
)
def test_settings_that_cannot_work(capture, settings, message):
    """They are refused before anything is started."""
    arguments = {"target": "127.0.0.1:9", "file": capture(), **settings}
    with pytest.raises(ConfigurationError, match=message) as caught:
        Replay(arguments.pop("target"), arguments.pop("file"), **arguments)
    assert caught.value.hint or "No such file" in message


def test_a_source_that_this_host_does_not_have(run, target, capture):
    """The kernel's refusal comes through when the source appears."""
    with pytest.raises(KernelError, match=r"cannot send from 203\.0\.113\.1"):
        run(replayed(target, capture(), sources="203.0.113.0/24"))


def test_more_sources_than_open_files(run, receiver, target, capture, monkeypatch):
    """When no file can be opened any more, the error says how many sources there were, and what to do."""
    set_limit, limits = resource.setrlimit, resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)

    async def with_few_files():
        async with Replay(target, capture(), rate=math.inf) as replay:
            with socket.socket() as probe:
                free = probe.fileno()
            set_limit(resource.RLIMIT_NOFILE, (free + 2, limits[1]))
            try:
                await replay.run()
            finally:
                set_limit(resource.RLIMIT_NOFILE, limits)

    with pytest.raises(StartError, match="more sources than the 2 that open files are left for") as caught:
        run(with_few_files())
    assert "--sources 2" in caught.value.hint
    received(receiver, 2)
