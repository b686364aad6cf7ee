"""A whole group in a test, as every user may run it: affinity, replies, errors, and the end of all of it."""

from __future__ import annotations

import asyncio

import pytest

from aiolb import Collector, ConfigurationError, sockets
from aiolb.address import Address
from aiolb.builtin import Echo
from aiolb.server import ApplicationError
from aiolb.testing import UnhandledError, group

SOURCES = [f"127.0.{third}.{fourth}" for third in range(5) for fourth in range(1, 21)]

pytestmark = pytest.mark.usefixtures("logged", "nothing_left")


class Recorder(Collector):
    """Notes what comes; ``wait`` waits for ``gate``, ``raise …`` raises."""

    def __init__(self):
        self.got = []
        self.gate = asyncio.Event()

    async def handle(self, datagram, addr):
        """Note it, and do what it says."""
        self.got.append((datagram, addr[0]))
        if datagram == b"wait":
            await self.gate.wait()
        if datagram.startswith(b"raise"):
            raise ValueError(datagram.decode())


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_each_source_has_one_member(run, host):
    """Every datagram is handled, in order, and those of a source by one member, which the group names."""

    async def live():
        async with group(Recorder, members=4, host=host, balancer="classic", seed=1) as running:
            for number in range(3):
                for source in SOURCES:
                    await running.send(b"%d" % number, source=source)
            owners = {source: running.members_of(source) for source in SOURCES}
        assert {len(owner) for owner in owners.values()} == {1}
        for source, (owner,) in owners.items():
            assert [text for text, host in running.collectors[owner].got if host == source] == [b"0", b"1", b"2"]
        statistics = running.statistics()
        assert [member.index for member in statistics] == [0, 1, 2, 3]
        assert [member.handled for member in statistics] == [len(one.got) for one in running.collectors]
        assert all(member.handled for member in statistics)
        return running, sum(member.received for member in statistics)

    running, received = run(live())
    assert received == 3 * len(SOURCES)
    assert (running.balancer, running.fallback, running.errors) == ("classic", None, [])
    assert sockets.sockets_on(running.address) == {}


def test_any_payload_in_any_number(run):
    """send() takes more than a receive buffer holds, and datagrams of every size, without losing one."""

    async def live():
        async with group(Recorder, members=2, balancer="none") as running:
            await running.send()
            await running.send(*[b"%d" % number for number in range(3000)])
            await running.send(b"", b"x" * 65507, b"", *[b"y" * 60000] * 20)
            return running

    running = run(live())
    (owner,) = running.members_of("127.0.0.1")
    assert [text for text, _ in running.collectors[owner].got[:3000]] == [b"%d" % number for number in range(3000)]
    assert [len(text) for text, _ in running.collectors[owner].got[3000:]] == [0, 65507, 0, *[60000] * 20]


def test_v6(run):
    """A group on ::1 has that source."""

    async def live():
        async with group(Echo, members=2, host="::1", balancer="none") as running:
            await running.send(b"six", source="0:0::1")
            assert await running.reply("::1") == b"six"
            assert len(running.members_of("0::1")) == 1
            with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1 cannot send to \[::1\]:"):
                running.put(b"x", source="127.0.0.1")

    run(live())


def test_replies(run):
    """Each source gets its replies in order; one that does not come is told after the deadline."""

    async def live():
        async with group(Echo, balancer="classic", deadline=0.2) as running:
            await running.send(b"1", b"2", source="127.0.0.5")
            await running.send(b"", source="127.0.0.6")
            assert [await running.reply("127.0.0.5") for _ in range(2)] == [b"1", b"2"]
            assert await running.reply("127.0.0.6") == b""
            with pytest.raises(UnhandledError, match=r"^no reply came to 127\.0\.0\.1 within 0\.2 s$"):
                await running.reply()

    run(live())


def test_concurrent_handlers(run):
    """put() does not wait, so a test sees handlers that wait."""

    async def live():
        async with group(Recorder, members=1, balancer="none") as running:
            running.put(b"wait", b"behind")
            await running.send(b"quick", source="127.0.0.2")
            assert (running.statistics()[0].in_flight, running.statistics()[0].waiting) == (1, 1)
            running.collectors[0].gate.set()
            await running.drained()
            return running.collectors[0].got

    assert run(live()) == [(b"wait", "127.0.0.1"), (b"quick", "127.0.0.2"), (b"behind", "127.0.0.1")]


def test_errors(run):
    """What a handler raises is raised by who sent its datagram, or by the end; the others are handled."""

    async def live():
        async with group(made, members=2, balancer="none") as running:
            with pytest.raises(ValueError, match="raise 1"):
                await running.send(b"raise 1", *[b"fine"] * 100)
            running.put(b"raise 2")

    collectors = []

    def made():
        collectors.append(Recorder())
        return collectors[-1]

    with pytest.raises(ValueError, match="raise 2"):
        run(live())
    assert sorted(text for one in collectors for text, _ in one.got) == [*[b"fine"] * 100, b"raise 1", b"raise 2"]


def test_what_the_kernel_drops(run):
    """What does not fit into a receive buffer is told as such."""

    async def live():
        async with group(Recorder, members=1, balancer="none", rcvbuf=4096, deadline=0.2) as running:
            running.put(*[b"x" * 1000] * 64)
            with pytest.raises(UnhandledError) as caught:
                await running.drained()
            statistics = running.statistics()[0]
            assert statistics.kernel_drops == 64 - statistics.handled > 0
            assert caught.value.message == (
                f"{statistics.kernel_drops} of 64 datagrams not handled after 0.2 s; "
                f"the kernel dropped {statistics.kernel_drops} for lack of room (rcvbuf)"
            )

    run(live())


def test_a_stopped_member(run):
    """A member may stop before the others, once; what it got is handled, and its counts stay."""

    async def live():
        async with group(Recorder, members=2, balancer="classic") as running:
            await running.send(b"x")
            (owner,) = running.members_of("127.0.0.1")
            running.put(b"in the queue")
            await running.stop(owner)
            await running.stop(owner)
            assert running.statistics()[owner].handled == 2
            assert len(sockets.sockets_on(running.address)) == 1

    run(live())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"members": 0}, ConfigurationError, "1 to 1024 members, not 0"),
        ({"host": "192.0.2.1"}, OSError, r"cannot bind 192\.0\.2\.1:0"),
        ({"user": "nobody"}, ConfigurationError, "a test keeps its user"),
        ({"balancer": "classic", "takeover": True}, ConfigurationError, "has no takeover"),
        ({"app": Collector}, ConfigurationError, "overrides neither"),
        ({"count": 2}, TypeError, "'count'"),
    ],
)
def test_what_cannot_work(run, settings, error, message):
    """It is refused, and nothing is left."""

    async def live(app=Echo, **settings):
        async with group(app, **{"balancer": "none", **settings}):
            raise AssertionError

    with pytest.raises(error, match=message):
        run(live(**settings))


def test_a_member_that_does_not_start(run):
    """The others are stopped again, and the port is free."""

    class Third(Recorder):
        async def startup(self):
            made.append(self)
            if len(made) == 3:
                raise RuntimeError("no")

        async def shutdown(self):
            made.remove(self)

    async def live():
        async with group(Third, balancer="none"):
            raise AssertionError

    made = []
    with pytest.raises(ApplicationError, match=r"startup\(\) failed: RuntimeError: no"):
        run(live())
    assert len(made) == 1


def test_a_start_that_is_cancelled(run):
    """A test that gives up while members start leaves none of them."""

    class Second(Recorder):
        async def startup(self):
            made.append(self)
            if len(made) == 2:
                begun.set()
                await asyncio.Event().wait()

        async def shutdown(self):
            made.remove(self)

    async def live():
        async with group(Second, balancer="none"):
            raise AssertionError

    async def cancelled():
        starting = asyncio.create_task(live())
        await begun.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    made, begun = [], asyncio.Event()
    run(cancelled())
    assert len(made) == 1  # the second was never started


def test_a_source_that_is_not_here(run):
    """It is told with the address, and is no datagram."""

    async def live():
        async with group(Echo, balancer="none") as running:
            for source, message in (("192.0.2.1", r"192\.0\.2\.1 cannot send to 127"), ("here", "'here' is no IP")):
                with pytest.raises(ConfigurationError, match=message):
                    await running.send(b"x", source=source)
            assert Address("127.0.0.1", running.address.port) == running.address
        return [member.received for member in running.statistics()]

    assert run(live()) == [0, 0, 0]
