"""A plan is sent when it is due; full queues are waited for, and ends are kept."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import socket
import time

import pytest
from events import until

from aiolb.pacing import CATCH_UP
from aiolb.send.sources import Source
from aiolb.send.timed import Planned, Timed

pytestmark = pytest.mark.usefixtures("nothing_left")


class Refusing(Source):
    """A source whose socket refuses with these errors first."""

    __slots__ = ("errors",)

    def __init__(self, sock, errors):
        super().__init__(0, sock)
        self.errors = list(errors)

    def send(self, datagram):
        """Refuse, or send."""
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        super().send(datagram)


@pytest.fixture
def pair():
    """A connected socket, and the one that it sends to."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        sock.connect(receiver.getsockname())
        sock.setblocking(False)
        yield sock, receiver


def left(receiver):
    """All datagrams that are there."""
    found = []
    while True:
        try:
            found.append(receiver.recv(100))
        except BlockingIOError:
            return found


async def sent(plan, *, end=math.inf, stop=False):
    """Send a plan, and return what was counted."""
    timed = Timed()
    try:
        if stop:
            timed.stop()
        await timed.run(plan, end=end)
    finally:
        timed.close()
    return timed


def test_never_before_it_is_due(run, pair):
    """What is due later leaves later, and the counters tell of all."""

    async def one_after_the_other():
        start = time.monotonic()
        dues = [start, start + 0.003, start + 0.003, start + 0.004]
        timed = await sent(Planned(due, Source(0, pair[0]), b"%d" % n) for n, due in enumerate(dues))
        assert time.monotonic() >= dues[-1]
        return timed

    timed = run(one_after_the_other())
    assert left(pair[1]) == [b"0", b"1", b"2", b"3"]
    assert (timed.sent, timed.bytes, timed.failed, timed.late.count, timed.errors) == (4, 4, 0, 4, {})
    assert timed.seconds > 0


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS])
def test_a_full_queue(run, pair, number):
    """It waits until there is room, and sends then."""
    source = Refusing(pair[0], [number, number])
    timed = run(sent([Planned(0.0, source, b"x"), Planned(0.0, source, b"y")]))
    assert left(pair[1]) == [b"x", b"y"]
    assert (timed.sent, timed.failed, timed.errors) == (2, 0, {"blocked": 2})


def test_an_error_of_an_earlier_datagram(run, pair):
    """An error that does not come again is of an earlier datagram: it is counted, and nothing has failed."""
    source = Refusing(pair[0], [errno.EHOSTUNREACH, errno.ECONNREFUSED])
    timed = run(sent([Planned(0.0, source, b"x")]))
    assert left(pair[1]) == [b"x"]
    assert (timed.sent, timed.failed, timed.errors) == (1, 0, {"refused": 1, "unreachable": 1})


def test_an_error_of_this_datagram(run, pair):
    """An error that comes again is of this datagram, which has failed; the next one is sent."""
    source = Refusing(pair[0], [errno.EPERM, errno.EPERM])
    timed = run(sent([Planned(0.0, source, b"x"), Planned(0.0, source, b"y")]))
    assert left(pair[1]) == [b"y"]
    assert (timed.sent, timed.failed, timed.errors) == (1, 1, {"forbidden": 1})


def test_stopped_before(run, pair):
    """A run that was stopped before it begins sends nothing."""
    timed = run(sent([Planned(0.0, Source(0, pair[0]), b"x")], stop=True))
    assert (timed.sent, left(pair[1])) == (0, [])


def test_stopped_while_a_queue_is_full(run, pair):
    """A stop ends the wait for room, too."""

    class Stuck(Refusing):
        """Never has room until it is woken."""

        __slots__ = ()

        def wait_until_writable(self):
            """A future that only ``wake()`` ends."""
            self.writable = self.writable or asyncio.get_running_loop().create_future()
            return self.writable

    async def stop():
        timed, source = Timed(), Stuck(pair[0], [errno.EAGAIN])
        try:
            running = asyncio.create_task(timed.run([Planned(0.0, source, b"x")]))
            await until(lambda: source.writable)
            timed.stop()
            await running
        finally:
            timed.close()
        return timed

    timed = run(stop())
    assert (timed.sent, timed.errors, left(pair[1])) == (0, {"blocked": 1}, [])


def test_the_end(run, pair):
    """What has not left some time after the end is given up."""
    source = Source(0, pair[0])
    over = time.monotonic() - CATCH_UP
    timed = run(sent([Planned(0.0, source, b"x")], end=over))
    assert (timed.sent, left(pair[1])) == (0, [])


def test_what_the_plan_raises_comes_through(run, pair):
    """An error in the plan ends the run; what came before it was sent."""

    def plan():
        yield Planned(0.0, Source(0, pair[0]), b"x")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run(sent(plan()))
    assert left(pair[1]) == [b"x"]
