"""The inner loop of a lane and its queue, without a lane: what returns, waits, raises or is put aside."""

# ruff: noqa: ARG001 - handlers have the arguments of handlers

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import types
import weakref
from contextlib import ExitStack, suppress
from contextvars import ContextVar, copy_context

import pytest

from aiolb.receive import choose
from aiolb.receive.contract import TimedDatagram


def items(*sources):
    """A datagram of each source, numbered."""
    return [(b"%d" % i, (source, 9)) for i, source in enumerate(sources)]


@pytest.fixture
def make(parts):
    """Makes a stepper over datagrams; also returns its queue and what it put aside."""

    def make(datagrams, holders=()):
        queue, aside = parts.stepper.queue(), []
        queue.extend(datagrams)
        return parts.stepper(queue, dict.fromkeys(holders), aside.append), queue, aside

    return make


def drive(awaitable):
    """Await to the end like a task; returns what was yielded."""

    async def main():
        await awaitable

    coroutine, yielded = main(), []
    try:
        while True:
            yielded.append(coroutine.send(None))
    except StopIteration:
        return yielded


@types.coroutine
def turn(value):
    """Wait once."""
    return (yield value)


def test_handlers_that_return_cost_no_turn(make):
    """They are run in order up to the limit, and nothing is in hand afterwards."""
    stepper, queue, _ = make(items("a", "b", "a"))
    seen = []

    async def handle(datagram, addr):
        seen.append((datagram, addr, stepper.item))

    assert stepper.step(handle, 2) is None
    assert (len(queue), stepper.item) == (1, None)
    assert stepper.step(handle, 2) is None
    assert stepper.step(handle, 2) is None
    assert seen == [(datagram, addr, (datagram, addr)) for datagram, addr in items("a", "b", "a")]


def test_a_suspended_handler_ends_the_step(make):
    """What it yielded is not lost, what is sent in and thrown in reaches it, and its datagram is in hand."""
    stepper, queue, _ = make(items("a", "b", "c"))
    log = []

    async def handle(datagram, addr):
        log.append(datagram)
        if addr[0] == "b":
            await turn("first")
            await turn("second")
            log.append("end")

    rest = stepper.step(handle, 9)
    assert (log, stepper.item, len(queue)) == ([b"0", b"1"], (b"1", ("b", 9)), 1)
    assert drive(rest) == ["first", "second"]
    assert log == [b"0", b"1", "end"]
    assert stepper.step(handle, 9) is None
    assert log[-1] == b"2"


def test_what_is_left_takes_exceptions(make):
    """throw() arrives where the handler waits, close() runs its clean-up."""
    log = []

    async def handle(datagram, addr):
        try:
            await turn("waiting")
        except ValueError as error:
            log.append(str(error))
            await turn("again")
        finally:
            log.append("clean")

    stepper, _, _ = make(items("a", "b"))
    rest = stepper.step(handle, 1).__await__()
    assert next(rest) == "waiting"
    assert rest.throw(ValueError("thrown")) == "again"
    with pytest.raises(StopIteration):
        rest.send(None)
    assert log == ["thrown", "clean"]
    rest = stepper.step(handle, 1).__await__()
    assert next(rest) == "waiting"
    rest.close()
    assert log == ["thrown", "clean", "clean"]


def test_what_is_sent_in_arrives(make):
    """As with any generator, although event loops send None only."""
    stepper, _, _ = make(items("a"))
    got = []

    async def handle(datagram, addr):
        got.append(await turn(1))
        got.append(await turn(2))

    rest = stepper.step(handle, 1).__await__()
    assert [rest.send(None), rest.send("x")] == [1, 2]
    with pytest.raises(StopIteration):
        rest.send("y")
    assert got == ["x", "y"]


@pytest.mark.parametrize("error", [ValueError, StopIteration, KeyboardInterrupt, asyncio.CancelledError])
def test_an_exception_leaves_its_datagram_in_hand(make, error):
    """It is raised by the step; the next one goes on behind it."""
    stepper, queue, _ = make(items("a", "b"))

    async def handle(datagram, addr):
        if datagram == b"0":
            raise error

    with pytest.raises(RuntimeError if error is StopIteration else error):
        stepper.step(handle, 9)
    assert (stepper.item, len(queue)) == ((b"0", ("a", 9)), 1)
    assert stepper.step(handle, 9) is None


def test_datagrams_of_held_sources_are_put_aside(make):
    """They count against the limit, and nobody handles them here."""
    stepper, queue, aside = make(items("a", "b", "a", "c"), holders="a")
    seen = []

    async def handle(datagram, addr):
        seen.append(datagram)

    stepper.step(handle, 3)
    assert (seen, aside, len(queue)) == ([b"1"], [(b"0", ("a", 9)), (b"2", ("a", 9))], 1)


def test_a_turn_ends_when_its_time_is_over(make):
    """After each step the clock is looked at; with time left everything that is pending is handled."""
    stepper, queue, _ = make(items(*"abcdefg"))
    seen = []

    async def handle(datagram, addr):
        seen.append(datagram)

    assert stepper.run(handle, 2, 0.0) is None
    assert (len(seen), len(queue), stepper.item) == (2, 5, None)
    assert stepper.run(handle, 2, 60.0) is None
    assert (len(seen), len(queue), stepper.item) == (7, 0, None)
    assert stepper.run(handle, 2, 60.0) is None


def test_a_turn_that_began_short_ends_too(make):
    """Handlers that make work for each other do not hold the turn for ever."""
    stepper, queue, _ = make(items("a"))

    async def handle(datagram, addr):
        queue.extend(items("b", "b"))

    assert stepper.run(handle, 2, 0.0) is None
    assert len(queue) == 3


def test_a_turn_ends_with_a_suspended_handler(make):
    """What is left of it is returned, as by a step."""
    stepper, queue, _ = make(items("a", "b", "c", "d"))

    async def handle(datagram, addr):
        if addr[0] == "c":
            await turn("waiting")

    rest = stepper.run(handle, 1, 60.0)
    assert (len(queue), stepper.item) == (1, (b"2", ("c", 9)))
    assert drive(rest) == ["waiting"]


def test_a_turn_in_a_context(make):
    """Handlers see and set its variables; it is left again, also when one raises."""
    variable = ContextVar("variable", default="outside")
    context = copy_context()
    stepper, queue, _ = make(items("a", "b", "c"))
    seen = []

    async def handle(datagram, addr):
        seen.append(variable.get())
        variable.set(addr[0])
        if addr[0] == "b":
            raise ValueError("told")

    with pytest.raises(ValueError, match="told"):
        stepper.run_in(context, handle, 9, 60.0)
    assert (variable.get(), context[variable], len(queue)) == ("outside", "b", 1)
    assert stepper.run_in(context, handle, 9, 60.0) is None
    assert (seen, variable.get(), context[variable]) == (["outside", "a", "b"], "outside", "c")
    queue.extend(items("d"))
    with pytest.raises(RuntimeError):
        context.run(stepper.run_in, context, handle, 9, 60.0)
    assert len(queue) == 1


def test_the_time_of_a_datagram_stays_with_it(make):
    """In hand, put aside, taken from the queue, and given back to a stepper."""
    timed = [TimedDatagram(b"%d" % i, (source, 9), 1000 + i) for i, source in enumerate("abca")]
    stepper, queue, aside = make(timed, holders="b")
    seen = []

    async def handle(datagram, addr):
        seen.append(stepper.item.received_at)

    stepper.step(handle, 3)
    assert (seen, [item.received_at for item in aside]) == ([1000, 1002], [1001])
    assert [item.received_at for item in queue] == [1003]
    assert queue.popleft().received_at == 1003
    stepper.item = aside[0]
    assert (stepper.item, stepper.item.received_at) == ((b"1", ("b", 9)), 1001)
    stepper.item = (b"plain", ("b", 9))
    assert type(stepper.item) is tuple


def test_any_awaitable_will_do(make):
    """A handler that is no coroutine function: its awaitable is awaited; what is none is an error."""
    stepper, _, _ = make(items("a", "b", "c"))

    class Awaitable:
        def __await__(self):
            yield "one"

    rest = stepper.step(lambda _datagram, _addr: Awaitable(), 1)
    assert drive(rest) == ["one"]
    with pytest.raises(TypeError):
        stepper.step(lambda _datagram, _addr: None, 1)
    with pytest.raises(ZeroDivisionError):
        stepper.step(lambda _datagram, _addr: 1 / 0, 1)


def test_nothing_is_kept_of_a_handler_that_ended(make):
    """Neither its coroutine nor what it yielded."""
    stepper, _, _ = make(items("a"))

    class Value:
        pass

    async def handle(datagram, addr):
        await turn(Value())

    rest = stepper.step(handle, 1)
    (value,) = drive(rest)
    reference = weakref.ref(value)
    del value
    gc.collect()
    assert reference() is None


def test_the_queue_keeps_order_over_batches(make):
    """Batches are behind each other; what was taken is gone, what is looked at stays."""
    _, queue, _ = make(items("a", "b"))
    queue.extend([])
    queue.extend(items("c"))
    assert (len(queue), list(queue)) == (3, items("a", "b") + items("c"))
    assert queue.popleft() == (b"0", ("a", 9))
    assert list(queue) == [(b"1", ("b", 9)), (b"0", ("c", 9))]
    assert [queue.popleft() for _ in range(2)] == [(b"1", ("b", 9)), (b"0", ("c", 9))]
    assert not queue
    with pytest.raises(IndexError):
        queue.popleft()
    queue.extend(items("d"))
    queue.clear()
    assert list(queue) == []


def test_what_waits_survives_the_next_batch_of_the_receiver(parts):
    """Datagrams that nobody has looked at are not overwritten when the receiver takes more, nor is half of a train."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiving,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending,
    ):
        receiving.bind(("127.0.0.1", 0))
        receiving.setblocking(False)
        receiving.setsockopt(socket.IPPROTO_UDP, 104, 1)
        sending.connect(receiving.getsockname())
        sending.setsockopt(socket.IPPROTO_UDP, 103, 2)
        addr = sending.getsockname()
        receiver, queue = parts.receiver(receiving), parts.stepper.queue()
        for payload in (b"a1a2a3", b"b1b2b3b4", b"c1"):
            sending.send(payload)
            batch = receiver.take()
            assert len(batch) == len(payload) // 2
            queue.extend(batch)
            if payload == b"a1a2a3":
                assert queue.popleft() == (b"a1", addr)
        del receiver
        expected = [(b"a2", addr), (b"a3", addr), *[(b"b%d" % i, addr) for i in range(1, 5)], (b"c1", addr)]
        assert [queue.popleft() for _ in range(3)] == expected[:3]
        assert list(queue) == expected[3:]
        assert [queue.popleft() for _ in range(4)] == expected[3:]


def test_a_batch_is_a_sequence(parts):
    """Whoever gets one may count, index and read it as often as wanted."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiving,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending,
    ):
        receiving.bind(("127.0.0.1", 0))
        receiving.setblocking(False)
        sending.connect(receiving.getsockname())
        receiver = parts.receiver(receiving)
        assert not receiver.take()
        for data in (b"1", b"", b"3"):
            sending.send(data)
        batch = receiver.take()
        sending.send(b"4")
        receiver.take()
        assert [data for data, _ in batch] == [data for data, _ in batch] == [b"1", b"", b"3"]
        assert (len(batch), batch[1][0], [data for data, _ in batch[1:]]) == (3, b"", [b"", b"3"])


def test_a_batch_that_nobody_wanted_is_forgotten(parts):
    """It may be dropped before, between and after the receiver takes others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        receiver, queue = parts.receiver(sock), parts.stepper.queue()
        for n in range(200):
            for i in range(n % 5 + 1):
                sock.sendto(b"%d" % i, sock.getsockname())
            batch = receiver.take()
            if n % 3 == 0:
                queue.extend(batch)
                queue.popleft()
            if n % 6 == 0:
                queue.clear()
            del batch
        assert receiver.datagrams == 600
        assert not queue


def test_a_batch_may_be_in_two_queues(parts):
    """Each queue gives all of it, whether somebody has looked at the batch or not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        receiver = parts.receiver(sock)
        for looked_at in (False, True):
            for i in range(3):
                sock.sendto(b"%d" % i, sock.getsockname())
            one, other = parts.stepper.queue(), parts.stepper.queue()
            batch = receiver.take()
            one.extend(batch)
            other.extend(batch)
            if looked_at:
                assert len(list(one)) == 3
            for queue in (one, other):
                assert [queue.popleft()[0] for _ in range(3)] == [b"0", b"1", b"2"]
                assert not queue


def test_the_garbage_collector_may_use_the_queue(parts):
    """What it runs in the middle may take, look at and use up datagrams; each keeps its own address."""
    with ExitStack() as stack:
        receiving, *senders = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(41)]
        receiving.bind(("127.0.0.1", 0))
        receiving.setblocking(False)
        for sock in senders:
            sock.bind(("127.0.0.1", 0))
        receiver, queue, got = parts.receiver(receiving), parts.stepper.queue(), []

        def meddle(_phase, _info):
            if queue:
                got.append(queue.popleft())
            got.extend(list(queue)[:1])
            queue.extend(receiver.take())

        threshold = gc.get_threshold()
        for _ in range(20):
            for sock in senders:
                sock.sendto(b"%d" % sock.getsockname()[1], receiving.getsockname())
            receiver = parts.receiver(receiving)
            queue.extend(receiver.take())
            gc.callbacks.append(meddle)
            gc.set_threshold(1)
            try:
                while queue:
                    with suppress(IndexError):
                        got.append(queue.popleft())
            finally:
                gc.set_threshold(*threshold)
                gc.callbacks.remove(meddle)
        assert len(got) >= 20 * len(senders)
        assert all(int(datagram) == addr[1] for datagram, addr in got)


def test_an_address_without_a_host_is_an_error(parts):
    """It is looked for among the holders, and has nothing to look for."""
    queue = parts.stepper.queue()
    queue.extend([(b"", ())])
    with pytest.raises(IndexError):
        parts.stepper(queue, {"a": None}, print).step(print, 1)


def test_a_batch_that_was_used_up_does_not_keep_its_receiver(parts):
    """The receiver and its buffers go with the last reference to it, without the garbage collector's help."""
    if parts is choose.PLAIN:
        pytest.skip("of the compiled receiver")

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiving:
        receiving.bind(("127.0.0.1", 0))
        receiving.setblocking(False)
        receiving.sendto(b"x", receiving.getsockname())
        receiver, queue = parts.receiver(receiving), parts.stepper.queue()
        queue.extend(receiver.take())
        queue.popleft()
        before = sys.getrefcount(receiving)
        gc.disable()
        try:
            del receiver
            assert sys.getrefcount(receiving) == before - 1
        finally:
            gc.enable()
