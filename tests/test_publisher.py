"""The publisher, on the loopback interface and on both event loops."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from ipaddress import ip_network
from pathlib import Path

import pytest
import uvloop
from deadline import DEADLINE

from aiolb.address import Address
from aiolb.errors import AiolbError, ConfigurationError, KernelError, StartError, UnsupportedError
from aiolb.publisher import TURN, Publisher
from aiolb.send import bursts, gso
from aiolb.send.bursts import BURST, TRAIN_BURST
from aiolb.send.choose import sender_class
from aiolb.send.config import MAX_SIZE_V4
from aiolb.send.plain import PlainSender
from aiolb.send.statistics import merge
from aiolb.stamp import STAMP_SIZE, stamp_from_wire
from aiolb.verification import Verifier, merge_reports

TARGET = "127.0.0.1:9"
V4 = Address("127.0.0.1", 9)
V6 = Address("::1", 9)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Run a coroutine on each event loop; nothing may reach the loop's exception handler."""
    unhandled = []

    def runner(coroutine):
        with asyncio.Runner(loop_factory=request.param) as loop_runner:
            loop_runner.get_loop().set_exception_handler(lambda _, context: unhandled.append(context))
            return loop_runner.run(asyncio.wait_for(coroutine, DEADLINE))

    yield runner
    assert unhandled == []


@pytest.fixture(params=["plain", "fast"], autouse=True)
def sender(request, monkeypatch, missing):
    """The sender that publishers use: the one in pure Python, and the compiled one."""
    if request.param == "plain":
        monkeypatch.setattr(bursts, "sender_class", lambda: PlainSender)
    elif sender_class() is PlainSender:
        missing("the compiled sender was not built")
    return request.param


@pytest.fixture(autouse=True)
def _no_descriptor_left():
    """Every test closes the sockets that it opened."""
    before = sockets()
    yield
    assert sockets() == before


def sockets():
    """The sockets that this process has open, by inode."""
    links = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return {link for link in links if link.startswith("socket:")}


@contextmanager
def receiver(host="127.0.0.1", port=0):
    """A bound socket with room for a few hundred datagrams, and its HOST:PORT."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        sock.settimeout(DEADLINE)
        yield sock, str(Address(*sock.getsockname()[:2]))


@contextmanager
def refusing_port():
    """A port that stays ours and refuses: a connected socket takes nothing from anybody but its peer."""
    with receiver() as (sock, target):
        sock.connect(("127.0.0.1", 9))
        yield sock.getsockname()[1], target


def receive(sock, number):
    """Exactly that many datagrams with their addresses; nothing may be left after them."""
    received = [sock.recvfrom(1 << 16) for _ in range(number)]
    assert drain(sock) == []
    return received


def drain(sock):
    """All datagrams that are there now."""
    received = []
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            received.append(sock.recv(1 << 16))
    return received


async def publish(*arguments, **settings):
    """Run a publisher from start to end."""
    async with Publisher(*arguments, **settings) as publisher:
        return await publisher.run()


async def until(condition):
    """Let the loop turn until the condition holds."""
    while not condition():  # noqa: ASYNC110 - the publisher has no event for what tests look at
        await asyncio.sleep(0)


# Running


def test_a_count_arrives_exactly(run):
    """Count datagrams go out, arrive, and are counted."""
    with receiver() as (sock, target):
        statistics = run(publish(target, rate=10_000, count=200, payload=b"hello"))
        received = receive(sock, 200)
    assert {datagram for datagram, _ in received} == {b"hello"}
    assert {addr[0] for _, addr in received} == {"127.0.0.1"}
    assert (statistics.sent, statistics.bytes, statistics.failed) == (200, 1000, 0)
    assert statistics.sent_per_source == {"127.0.0.1": 200}
    assert (statistics.rate_asked, statistics.sources, statistics.errors) == (10_000, 1, {})
    assert 0 < statistics.rate_reached <= 10_000


def test_round_robin_over_sources(run):
    """The sources take turns, each with an address of its own."""
    with receiver() as (sock, target):
        statistics = run(publish(target, count=10, sources=4))
        received = receive(sock, 10)
    turns = [f"127.0.0.{2 + n % 4}" for n in range(10)]
    assert [addr[0] for _, addr in received] == turns
    assert statistics.sent_per_source == {"127.0.0.2": 3, "127.0.0.3": 3, "127.0.0.4": 2, "127.0.0.5": 2}
    assert statistics.sources == 4


@pytest.mark.parametrize("sources", ["127.77.0.0/29", ip_network("127.77.0.0/29"), "6"])
def test_sources_as_text_and_network(run, sources):
    """A network gives its host addresses, as text or as an object; text may be a number too."""
    with receiver() as (sock, target):
        run(publish(target, count=12, sources=sources))
        addresses = [addr[0] for _, addr in receive(sock, 12)]
    prefix, first = ("127.0.0", 2) if sources == "6" else ("127.77.0", 1)
    assert addresses == [f"{prefix}.{first + n % 6}" for n in range(12)]


def test_ipv6(run):
    """An IPv6 target, and an IPv6 network of sources."""
    with receiver("::1") as (sock, target):
        statistics = run(publish(target, count=3, sources="::1/128"))
        receive(sock, 3)
    assert statistics.sent_per_source == {"::1": 3}


def test_the_largest_datagram(run):
    """65,507 bytes go through in one datagram."""
    with receiver() as (sock, target):
        run(publish(target, count=1, size=MAX_SIZE_V4))
        [(datagram, _)] = receive(sock, 1)
    assert len(datagram) == MAX_SIZE_V4


def test_stamps_prove_what_arrived(run):
    """Stamped datagrams are numbered from 0 per source, and all of them are accounted for."""
    with receiver() as (sock, target):

        async def main():
            async with Publisher(target, count=100, sources=7, stamp=True, payload=b"x", size=50) as publisher:
                return publisher.run_id, await publisher.run()

        run_id, statistics = run(main())
        verifier = Verifier(0)
        for datagram, addr in receive(sock, 100):
            assert datagram[STAMP_SIZE:] == b"x" * 18
            assert stamp_from_wire(datagram).run == run_id
            verifier.record(datagram, addr, stamp_from_wire(datagram).sent_ns)
    summary = merge_reports([verifier.report()], statistics.sent_per_source)
    assert (summary.sent, summary.received, summary.lost, summary.unexpected) == (100, 100, 0, 0)
    assert (summary.duplicated, summary.reordered, summary.unstamped) == (0, 0, 0)
    assert (summary.sources, summary.split_sources) == (7, 0)


def test_a_second_run_goes_on(run):
    """Statistics and sequence numbers go on in another run."""
    with receiver() as (sock, target):

        async def main():
            async with Publisher(target, count=5, stamp=True) as publisher:
                first = await publisher.run()
                return first, await publisher.run()

        first, second = run(main())
        sequences = [stamp_from_wire(datagram).sequence for datagram, _ in receive(sock, 10)]
    assert (first.sent, second.sent) == (5, 10)
    assert sequences == list(range(10))


class Clock:
    """A clock that a test moves: each look at it takes some seconds."""

    def __init__(self, tick):
        self.now, self.tick = 1000.0, tick

    def __call__(self):
        """The time, after one more tick."""
        self.now += self.tick
        return self.now


@pytest.mark.parametrize("tick", [0.0003, 0.01, 0.04])
def test_a_duration_is_open_loop(run, tick):
    """1,000/s for 0.1 s are 100 datagrams, whether the loop looks often, seldom or hardly ever."""
    with receiver() as (sock, target):

        async def main():
            async with Publisher(target, rate=1000, duration=0.1) as publisher:
                publisher._clock = Clock(tick)
                return await publisher.run()

        statistics = run(main())
        receive(sock, 100)
    assert statistics.sent == 100


def test_rate_reached_counts_intervals(run):
    """Datagrams that were all in time are at the rate asked, not above; late ones are below."""

    async def main(target, tick):
        async with Publisher(target, rate=100, count=10) as publisher:
            publisher._clock = Clock(tick)
            return await publisher.run()

    with receiver() as (sock, target):
        in_time, late = run(main(target, 0.001)), run(main(target, 0.5))
        receive(sock, 20)
    assert in_time.rate_reached == pytest.approx(100)
    assert late.rate_reached < 20


@pytest.mark.parametrize(("size", "burst"), [(0, BURST), (8, TRAIN_BURST)])
def test_as_fast_as_possible_gives_the_loop_turns(run, size, burst):
    """Without a rate, the loop has a turn after a burst where that takes a millisecond, so timers and signals live."""

    async def main(target):
        async with Publisher(target, size=size) as publisher:
            publisher._clock = Clock(TURN)
            task = asyncio.create_task(publisher.run())
            for turn in range(20):
                assert publisher.statistics().sent <= turn * burst
                await asyncio.sleep(0)
            publisher.stop()
            return await task

    with receiver() as (_, target):
        statistics = run(main(target))
    assert statistics.rate_asked is None
    assert burst <= statistics.sent <= 21 * burst
    assert statistics.rate_reached > 0


def test_stop_ends_a_long_pause(run):
    """stop() ends a run at once that would wait for hours."""

    async def main(target):
        async with Publisher(target, rate=1e-4) as publisher:
            task = asyncio.create_task(publisher.run())
            await until(lambda: publisher._pausing is not None)
            publisher.stop()
            return await task

    with receiver() as (sock, target):
        assert run(main(target)).sent == 1
        receive(sock, 1)


def test_stop_before_run(run):
    """A stop that comes first ends the run before it sends; the one after it runs."""

    async def main(target):
        async with Publisher(target, count=3) as publisher:
            publisher.stop()
            return (await publisher.run()).sent, (await publisher.run()).sent

    with receiver() as (sock, target):
        assert run(main(target)) == (0, 3)
        receive(sock, 3)


def test_cancelling_a_run_leaves_the_publisher_usable(run):
    """A cancelled run is over; statistics stand, and another may follow."""

    async def main(target):
        async with Publisher(target, rate=1e-4) as publisher:
            task = asyncio.create_task(publisher.run())
            await until(lambda: publisher._pausing is not None)
            with pytest.raises(AiolbError, match="running already"):
                await publisher.run()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            publisher.stop()
            return await publisher.run()

    with receiver() as (sock, target):
        assert run(main(target)).sent == 1
        receive(sock, 1)


def test_leaving_ends_a_run(run):
    """Leaving the context ends a run in another task; no socket is used after it was closed."""

    async def main(target):
        async with Publisher(target) as publisher:
            task = asyncio.create_task(publisher.run())
            await until(lambda: publisher.statistics().sent)
        return await task

    with receiver() as (_, target):
        assert run(main(target)).failed == 0


def test_send(run):
    """send() sends what it is given, unstamped, from one source after the other."""

    async def main(target):
        async with Publisher(target, sources=2, stamp=True) as publisher:
            for datagram in (b"one", b"", b"three"):
                await publisher.send(datagram)
            with pytest.raises(KernelError, match="70,000 bytes") as caught:
                await publisher.send(bytes(70_000))
            assert caught.value.errno == errno.EMSGSIZE
            return publisher.statistics()

    with receiver() as (sock, target):
        statistics = run(main(target))
        received = receive(sock, 3)
    assert [(datagram, addr[0]) for datagram, addr in received] == [
        (b"one", "127.0.0.2"),
        (b"", "127.0.0.3"),
        (b"three", "127.0.0.2"),
    ]
    assert (statistics.sent, statistics.bytes) == (3, 8)


def test_a_publisher_that_is_not_open(run):
    """Before entering and after leaving there is nothing to send with, and a publisher is entered once."""

    async def refuses(publisher):
        for attempt in (publisher.send(b"hello"), publisher.run()):
            with pytest.raises(AiolbError, match="not open") as caught:
                await attempt
            assert "async with" in caught.value.hint

    async def main():
        publisher = Publisher(TARGET, count=1)
        await refuses(publisher)
        async with publisher:
            pass
        await refuses(publisher)
        with pytest.raises(AiolbError, match="entered before"):
            await publisher.__aenter__()

    run(main())


# What the kernel says


def test_a_refusal_belongs_to_an_earlier_datagram(run):
    """The error of an earlier datagram is counted, and the datagram it got in the way of is sent."""

    async def main(port, target):
        async with Publisher(target, count=10) as publisher:
            await publisher.send(b"nobody is there")
            [source] = publisher._sources
            poll = select.poll()
            poll.register(source.sock, 0)
            assert poll.poll(DEADLINE * 1000)[0][1] & select.POLLERR
            with receiver(port=port) as (sock, _):
                statistics = await publisher.run()
                receive(sock, 10)
                return statistics

    with refusing_port() as (port, target):
        statistics = run(main(port, target))
    assert statistics.errors == {"refused": 1}
    assert (statistics.sent, statistics.failed) == (11, 0)


def test_nobody_listens(run):
    """A closed port does not end a run: everything is sent, and the refusals are counted."""
    with refusing_port() as (_, target):
        statistics = run(publish(target, count=50))
    assert (statistics.sent, statistics.failed) == (50, 0)
    assert statistics.errors.get("refused", 0) <= 50


class Faulty:
    """A sender that fails with these errors before it sends."""

    def __init__(self, sender, *errors):
        self._sender, self._errors, self.error = sender, list(errors), 0

    limit = property(lambda self: self._sender.limit)
    sent = property(lambda self: self._sender.sent)
    trains = property(lambda self: self._sender.trains, lambda self, trains: setattr(self._sender, "trains", trains))

    def send(self, first, pieces, length):
        """Fail with the next error, or send when there is none left."""
        self.error = self._errors.pop(0) if self._errors else 0
        if self.error:
            return 0
        sent = self._sender.send(first, pieces, length)
        self.error = self._sender.error
        return sent


async def publish_faulty(target, *errors, **settings):
    """Run a publisher whose sender fails with these errors first."""
    async with Publisher(target, **settings) as publisher:
        publisher._bursts._sender = Faulty(publisher._bursts._sender, *errors)
        return await publisher.run()


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS])
def test_a_full_queue_is_waited_for(run, number):
    """EAGAIN and ENOBUFS delay a datagram, are counted, and lose nothing."""
    with receiver() as (sock, target):
        statistics = run(publish_faulty(target, number, number, number, count=20))
        receive(sock, 20)
    assert statistics.errors == {"blocked": 3}
    assert (statistics.sent, statistics.failed) == (20, 0)


def test_an_error_of_the_past_is_counted_once(run):
    """An error that is gone on the second try belonged to an earlier datagram."""
    with receiver() as (sock, target):
        statistics = run(publish_faulty(target, errno.EHOSTUNREACH, count=5, stamp=True))
        sequences = [stamp_from_wire(datagram).sequence for datagram, _ in receive(sock, 5)]
    assert sequences == [0, 1, 2, 3, 4]
    assert statistics.errors == {"unreachable": 1}
    assert (statistics.sent, statistics.failed) == (5, 0)


def test_an_error_of_this_datagram_is_a_failure(run):
    """An error that stays is this datagram's: it is not sent, not numbered, and counted as failed."""
    with receiver() as (sock, target):
        errors = [errno.EPERM] * 6
        statistics = run(publish_faulty(target, *errors, count=5, stamp=True, gso="off"))
        sequences = [stamp_from_wire(datagram).sequence for datagram, _ in receive(sock, 2)]
    assert sequences == [0, 1]
    assert statistics.errors == {"forbidden": 3}
    assert (statistics.sent, statistics.failed) == (2, 3)


def test_an_error_without_a_name_of_ours(run):
    """Another error is counted by the kernel's name for it."""
    with receiver() as (sock, target):
        statistics = run(publish_faulty(target, errno.ENOMEM, count=1))
        receive(sock, 1)
    assert statistics.errors == {"enomem": 1}


@contextmanager
def full_socket(publisher):
    """Put a socket with a full queue in place of the publisher's; gives the end that can empty it."""
    [source] = publisher._sources
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                near.send(b"filler")
        os.dup2(near.fileno(), source.sock.fileno())
        near.close()
        yield far
        publisher.stop()


def test_a_queue_that_empties(run):
    """A run goes on when the kernel says that there is room, and every datagram gets through in order."""

    async def main():
        received = []
        async with Publisher(TARGET, count=100, stamp=True, gso="off") as publisher:
            with full_socket(publisher) as far:
                task = asyncio.create_task(publisher.run())
                await until(lambda: publisher._bursts.errors["blocked"])
                asyncio.get_running_loop().add_reader(far, lambda: received.extend(drain(far)))
                statistics = await task
                asyncio.get_running_loop().remove_reader(far)
                received.extend(drain(far))
        return statistics, received

    statistics, received = run(main())
    stamped = [datagram for datagram in received if datagram != b"filler"]
    assert [stamp_from_wire(datagram).sequence for datagram in stamped] == list(range(100))
    assert (statistics.sent, statistics.failed) == (100, 0)
    assert statistics.errors["blocked"] >= 1


def test_stop_ends_a_wait_for_room(run):
    """stop() ends a run whose queue stays full."""

    async def main():
        async with Publisher(TARGET, count=1) as publisher:
            with full_socket(publisher):
                task = asyncio.create_task(publisher.run())
                await until(lambda: publisher._bursts.errors["blocked"])
                publisher.stop()
                return await task

    statistics = run(main())
    assert (statistics.sent, statistics.errors) == (0, {"blocked": 1})


def test_a_duration_ends_a_wait_for_room(run):
    """A run whose queue stays full ends with its duration."""

    async def main():
        async with Publisher(TARGET, duration=0.01) as publisher:
            with full_socket(publisher):
                return await publisher.run()

    assert run(main()).sent == 0


def test_several_tasks_wait_for_one_queue(run):
    """All who wait for room in the same queue go on; a cancelled one holds up nobody."""

    async def main():
        async with Publisher(TARGET) as publisher:
            with full_socket(publisher) as far:
                tasks = [asyncio.create_task(publisher.send(b"%d" % n)) for n in range(4)]
                await until(lambda: publisher._bursts.errors["blocked"] == 4)
                tasks.pop().cancel()
                drain(far)
                await asyncio.gather(*tasks)
                return sorted(drain(far))

    assert run(main()) == [b"0", b"1", b"2"]


# Trains


@contextmanager
def train_receiver():
    """A socket that takes trains whole (UDP_GRO), and its HOST:PORT."""
    with receiver() as (sock, target):
        sock.setsockopt(socket.IPPROTO_UDP, 104, 1)
        yield sock, target


def receive_trains(sock):
    """All that is there, as (payload bytes, bytes of a datagram in it)."""
    received = []
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            data, ancillary, _, _ = sock.recvmsg(1 << 16, 100)
            sizes = [int.from_bytes(value, sys.byteorder) for _, kind, value in ancillary if kind == 104]
            received.append((len(data), *(sizes or [len(data)])))
    return received


def test_trains_leave_whole(run):
    """Trains of the length that was asked for arrive as such; the last has the rest of the count."""
    with train_receiver() as (sock, target):
        statistics = run(publish(target, count=100, gso=16, sources=3, size=50))
        received = receive_trains(sock)
    assert received == [(16 * 50, 50)] * 6 + [(4 * 50, 50)]
    assert (statistics.sent, statistics.bytes, statistics.trains) == (100, 5000, 7)
    assert statistics.sent_per_source == {"127.0.0.2": 36, "127.0.0.3": 32, "127.0.0.4": 32}


@pytest.mark.parametrize("settings", [{"gso": 64}, {"gso": "auto"}, {"gso": "off"}, {"gso": 7, "rate": 20_000}])
@pytest.mark.parametrize("count", [1, 65, 130])
def test_a_count_is_exact_in_trains(run, settings, count):
    """Whatever makes the trains, exactly count datagrams arrive, each with its own number."""
    with receiver() as (sock, target):
        statistics = run(publish(target, count=count, sources=2, stamp=True, **settings))
        stamps = [stamp_from_wire(datagram) for datagram, _ in receive(sock, count)]
    assert statistics.sent == count
    for source in range(2):
        own = [stamp.sequence for stamp in stamps if stamp.source == source]
        assert own == list(range(len(own)))
        assert len(own) == statistics.sent_per_source.get(f"127.0.0.{source + 2}", 0)


def test_auto_makes_trains_where_many_are_due(run):
    """As fast as possible, the sources send in trains, as evenly as one by one."""
    with train_receiver() as (sock, target):
        statistics = run(publish(target, count=150, sources=2, size=10))
        received = receive_trains(sock)
    assert received == [(640, 10), (640, 10), (110, 10), (110, 10)]
    assert statistics.sent_per_source == {"127.0.0.2": 75, "127.0.0.3": 75}
    assert statistics.trains == 4


@pytest.mark.parametrize("settings", [{"rate": 100}, {"rate": 3999}, {"rate": 7999, "sources": 2}, {"gso": "off"}])
def test_no_trains_at_a_low_rate(run, settings):
    """Where one datagram of a source is due at a time there are no trains, even when a late loop has many to send."""

    async def main(target):
        async with Publisher(target, count=50, **settings) as publisher:
            publisher._clock = Clock(0.5)
            return await publisher.run()

    with train_receiver() as (sock, target):
        statistics = run(main(target))
        assert receive_trains(sock) == [(64, 64)] * 50
    assert (statistics.sent, statistics.trains) == (50, 0)


def test_trains_at_a_rate_are_not_early(run):
    """A train leaves when its last datagram is due: at no look at the clock was more sent than was due."""

    class Watch(Clock):
        def __call__(self):
            started, now = 1000.001, super().__call__()
            assert publisher._bursts.sent[0] <= (now - started) * 10_000 + 1
            return now

    publisher = None

    async def main(target):
        nonlocal publisher
        async with Publisher(target, rate=10_000, count=200, gso=16) as publisher:
            publisher._clock = Watch(0.001)
            return await publisher.run()

    with receiver() as (sock, target):
        statistics = run(main(target))
        receive(sock, 200)
    assert (statistics.sent, statistics.trains) == (200, 13)


def test_trains_of_ipv6(run):
    """IPv6 has trains too."""
    with receiver("::1") as (sock, target):
        statistics = run(publish(target, count=128, gso=64, size=100))
        receive(sock, 128)
    assert (statistics.sent, statistics.trains) == (128, 2)


def test_send_beside_trains(run):
    """What a user sends leaves in one piece, longer or shorter than the datagrams of the trains."""

    async def main(target):
        async with Publisher(target, gso=4, size=10, count=4) as publisher:
            await publisher.run()
            for length in (5, 10, 11, 4000):
                await publisher.send(b"u" * length)

    with receiver() as (sock, target):
        run(main(target))
        assert [len(datagram) for datagram, _ in receive(sock, 8)] == [10] * 4 + [5, 10, 11, 4000]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EMSGSIZE, errno.EIO])
def test_a_kernel_that_refuses_a_train(run, number):
    """With auto the rest leaves without trains and nothing is lost; a number is an error that says so."""
    with train_receiver() as (sock, target):
        statistics = run(publish_faulty(target, number, count=150, sources=1))
        assert receive_trains(sock) == [(64, 64)] * 150
        with pytest.raises(KernelError, match="refuses trains of 8 datagrams of 64 bytes") as caught:
            run(publish_faulty(target, number, count=150, gso=8))
        assert receive_trains(sock) == []
    assert (statistics.sent, statistics.failed, statistics.trains, statistics.errors) == (150, 0, 0, {})
    assert caught.value.errno == number
    assert "--gso off" in caught.value.hint


def test_a_kernel_without_trains(run, monkeypatch):
    """Where UDP_SEGMENT is unknown, auto does without, and a number is an error that names the kernel needed."""
    monkeypatch.setattr(gso, "UDP_SEGMENT", 255)
    with train_receiver() as (sock, target):
        statistics = run(publish(target, count=100))
        assert receive_trains(sock) == [(64, 64)] * 100
        with pytest.raises(UnsupportedError, match="UDP_SEGMENT") as caught:
            run(publish(target, count=100, gso=8))
    assert (statistics.sent, statistics.trains) == (100, 0)
    assert "4.18" in caught.value.hint


def test_a_train_that_fails_counts_its_datagrams(run):
    """A train is sent or not as a whole; what failed is not numbered."""
    with receiver() as (sock, target):
        statistics = run(publish_faulty(target, errno.EPERM, errno.EPERM, count=20, gso=8, stamp=True))
        sequences = [stamp_from_wire(datagram).sequence for datagram, _ in receive(sock, 12)]
    assert sequences == list(range(12))
    assert (statistics.sent, statistics.failed, statistics.trains) == (12, 8, 2)
    assert statistics.errors == {"forbidden": 1}


# Workers


@pytest.mark.parametrize("settings", [{"sources": 7}, {"sources": 2}, {"sources": 1}, {"sources": 3, "gso": "off"}])
def test_workers_send_what_one_would(run, settings):
    """Three workers together send the count, spread over the sources as by one, and number it without a clash."""

    async def main(target):
        parts = []
        for worker in range(3):
            async with Publisher(target, count=100, stamp=True, worker=worker, workers=3, **settings) as publisher:
                publisher.run_id = 0
                parts.append(await publisher.run())
        return merge(parts)

    with receiver() as (sock, target):
        whole = run(publish(target, count=100, **settings))
        receive(sock, 100)
    with receiver() as (sock, target):
        statistics = run(main(target))
        stamps = {stamp_from_wire(datagram)[1:3] for datagram, _ in receive(sock, 100)}
    assert len(stamps) == 100
    assert statistics.sent == 100
    number = settings["sources"]
    if number >= 3:
        assert statistics.sent_per_source == whole.sent_per_source
    else:
        assert sum(statistics.sent_per_source.values()) == 100
        assert statistics.sources == number


# Opening


def test_an_address_that_is_not_ours(run):
    """A source that cannot be bound is one error that names it; what was open is closed."""
    with pytest.raises(KernelError, match=r"cannot send from 203\.0\.113\.1: Cannot assign") as caught:
        run(publish(TARGET, sources="203.0.113.0/30"))
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert "ip address add 203.0.113.1" in caught.value.hint


def test_a_target_out_of_reach_of_the_source(run):
    """A loopback source cannot reach another network; the error names both ends."""
    with pytest.raises(KernelError, match=r"cannot send to 203\.0\.113\.9:9 from 127\.0\.0\.2") as caught:
        run(publish("203.0.113.9:9", sources="127.0.0.2/32"))
    assert caught.value.hint


async def publish_to_name(results, target="collector.example:9", **settings):
    """Publish with a resolver that gives these results, or raises them."""

    async def getaddrinfo(*_, **__):
        if isinstance(results, Exception):
            raise results
        return results

    loop = asyncio.get_running_loop()

    class Resolver:
        def __getattr__(self, name):
            return getaddrinfo if name == "getaddrinfo" else getattr(loop, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "get_running_loop", Resolver)
        return await publish(target, **settings)


def test_localhost(run):
    """A name is resolved by the system."""
    with receiver() as (sock, target):
        run(publish(target.replace("127.0.0.1", "localhost"), count=1))
        receive(sock, 1)


def test_a_name_with_addresses_of_both_versions(run):
    """IPv4 is taken first, unless the sources are IPv6."""
    with receiver() as (v4, _), receiver("::1", v4.getsockname()[1]) as (v6, _):
        port = v4.getsockname()[1]
        results = [
            (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", port)),
        ]
        run(publish_to_name(results, count=2))
        receive(v4, 2)
        run(publish_to_name(results, count=3, sources="::1/128"))
        receive(v6, 3)


def test_a_name_that_is_none(run):
    """A name without an address is an error that names it."""
    failure = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    with pytest.raises(StartError, match=r"'collector\.example': Name or service not known") as caught:
        run(publish_to_name(failure))
    assert caught.value.hint


def test_a_name_and_sources_that_do_not_fit(run):
    """A name that leads elsewhere than the loopback cannot be reached from loopback sources."""
    results = [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("192.0.2.1", 9))]
    with pytest.raises(ConfigurationError, match="2 sources"):
        run(publish_to_name(results, sources=2))


IN_NAMESPACE = """
import asyncio, socket, subprocess
from aiolb.publisher import Publisher

for command in ("link set lo up", *(f"address add fd00::{n}/128 dev lo nodad" for n in (1, 2, 3))):
    subprocess.run(["ip", *command.split()], check=True)

async def main():
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))
        sock.settimeout(10)
        async with Publisher(f"[::1]:{sock.getsockname()[1]}", count=6, sources="fd00::/126") as publisher:
            await publisher.run()
        print(*(sock.recvfrom(100)[1][0] for _ in range(6)))

asyncio.run(main())
"""


def test_ipv6_sources(needs, missing):
    """Every host address of an IPv6 network sends, where the host has them."""
    [said] = in_namespace(needs, missing, IN_NAMESPACE)
    assert said.split() == ["fd00::1", "fd00::2", "fd00::3"] * 2


NARROW = """
import asyncio, subprocess, time
from pathlib import Path
from aiolb.errors import KernelError
from aiolb.publisher import Publisher

Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
for command in (
    "ip link add near type veth peer name far",
    "ip address add 10.77.0.1/24 dev near",
    "ip link set near up",
    "ip link set far up",
    "ip neighbour add 10.77.0.2 lladdr 02:00:00:00:00:02 dev near",
):
    subprocess.run(command.split(), check=True)

def arrived():
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    return next(int(line.split()[2]) for line in lines if line.strip().startswith("far:"))

async def publish(**settings):
    before = arrived()
    async with Publisher("10.77.0.2:9", **settings) as publisher:
        statistics = await publisher.run()
    deadline = time.monotonic() + 10
    while arrived() < before + statistics.sent and time.monotonic() < deadline:
        time.sleep(0.001)
    return statistics, arrived() - before
"""

QUEUE = (
    NARROW
    + """
subprocess.run("tc qdisc add dev near root tbf rate 8mbit burst 1600 limit 3000".split(), check=True)
statistics, arrived_now = asyncio.run(publish(count=200, gso="off"))
print(statistics.sent, arrived_now, statistics.failed, statistics.errors["blocked"] > 0, set(statistics.errors))
"""
)

MTU = (
    NARROW
    + """
statistics, arrived_now = asyncio.run(publish(count=40, size=1473))
print(statistics.sent, arrived_now, statistics.trains)
try:
    asyncio.run(publish(count=40, size=1473, gso=8))
except KernelError as error:
    print(error, "|", error.hint)
"""
)


def in_namespace(needs, missing, script, *tools):
    """Run a script in a network namespace of its own; gives the lines it prints."""
    if os.geteuid() != 0:
        missing("making a network namespace needs root")
    for tool in ("ip", *tools):
        needs(tool, "iproute2")
    command = [needs("unshare", "util-linux"), "--net", sys.executable, "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()


def test_a_full_device_queue(needs, missing):
    """What a full device queue refuses is told, counted, waited for and sent again: all arrive."""
    assert in_namespace(needs, missing, QUEUE, "tc") == ["200 200 0 True {'blocked'}"]


def test_datagrams_larger_than_the_mtu(needs, missing):
    """A train cannot have datagrams that need fragments: auto does without, a number is an error."""
    first, second = in_namespace(needs, missing, MTU)
    assert first == "40 80 0"
    assert second == (
        "a train cannot have datagrams of 1,473 bytes where the MTU is 1,500 "
        "| give a size of at most 1472, or no trains (--gso off)"
    )
