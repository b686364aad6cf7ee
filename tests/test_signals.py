"""Signals: caught for a time, restored, and passed on to those who had asked for them."""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import sys
import threading
from types import SimpleNamespace

import pytest

from aiolb import loops, signals


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    """Run a coroutine on each event loop."""

    def runner(coroutine):
        with loops.runner(request.param) as loop_runner:
            return loop_runner.run(asyncio.wait_for(coroutine, 10))

    return runner


@pytest.fixture
def users():
    """A handler of the user's for SIGTERM; the numbers that it got."""
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: got.append(number))
    yield got
    signal.signal(signal.SIGTERM, before)


async def caught_of(*numbers, among=signals.STOP_SIGNALS):
    """Raise the signals inside of a block; those that the callback got."""
    got = []
    with signals.captured(got.append, among):
        for sent, number in enumerate(numbers, 1):
            signal.raise_signal(number)
            while len(got) < sent:  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0)
    return got


@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
def test_caught(run, number):
    """Both signals reach the callback, and what was there before is back afterwards."""
    before = signal.getsignal(number)
    assert run(caught_of(number)) == [number]
    assert signal.getsignal(number) is before


def test_others_when_asked(run):
    """Other signals are caught when they are named."""
    before = signal.getsignal(signal.SIGHUP)
    assert run(caught_of(signal.SIGHUP, among=(signal.SIGHUP,))) == [signal.SIGHUP]
    assert signal.getsignal(signal.SIGHUP) is before


def test_passed_on(run, users):
    """A handler that the user had installed gets the signal afterwards, once, and is installed again."""
    handler = signal.getsignal(signal.SIGTERM)

    async def live():
        assert await caught_of(signal.SIGTERM, signal.SIGTERM) == [signal.SIGTERM] * 2

    run(live())
    assert users == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_blocks_that_overlap(run, users):
    """Several blocks get every signal, as long as each lasts; the user's handler gets it after the last."""
    handler = signal.getsignal(signal.SIGTERM)
    first, second = [], []

    async def live():
        outer, inner = signals.captured(first.append), signals.captured(second.append)
        outer.__enter__()
        inner.__enter__()
        await raised(signal.SIGTERM, lambda: first and second)
        outer.__exit__(None, None, None)
        assert users == []
        await raised(signal.SIGINT, lambda: len(second) == 2)
        inner.__exit__(None, None, None)

    run(live())
    assert (first, second) == ([signal.SIGTERM], [signal.SIGTERM, signal.SIGINT])
    assert users == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is handler


async def raised(number, is_caught):
    """Raise the signal and wait until it is caught."""
    signal.raise_signal(number)
    while not is_caught():  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0)


def test_nothing_is_passed_on_without_a_signal(run, users):
    """Where no signal came, none is passed on."""

    async def live():
        with signals.captured(lambda _: None):
            pass

    run(live())
    assert users == []


def test_sigint_is_not_passed_to_the_runner(run):
    """The handler of asyncio's runner does not get SIGINT: the stop was graceful."""

    async def live():
        await caught_of(signal.SIGINT)
        await asyncio.sleep(0)
        return "not interrupted"

    assert run(live()) == "not interrupted"


def test_restored_after_an_exception(run):
    """An exception in the block restores the handlers too."""
    before = signal.getsignal(signal.SIGTERM)

    async def live():
        with signals.captured(lambda _: None):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run(live())
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_of_the_main_thread(run):
    """In another thread, which Python sends no signals, nothing is changed."""
    before, seen = signal.getsignal(signal.SIGTERM), []

    async def live():
        with signals.captured(lambda _: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=lambda: run(live()))
    thread.start()
    thread.join()
    assert seen == [before]


def test_whose_a_signal_is(run):
    """A signal is the user's when Python or C code of the user's handles it, and not while a block catches it."""
    number, seen = signal.SIGUSR1, [signals.is_users(signal.SIGUSR1)]

    async def live():
        with signals.captured(lambda _: None, (number,)):
            return signals.is_users(number)

    seen.append(run(live()))
    for handler in (signal.SIG_IGN, lambda _number, _frame: None):
        before = signal.signal(number, handler)
        seen.append(signals.is_users(number))
        signal.signal(number, before)
    faulthandler.register(number)
    seen.append(signals.is_users(number))
    faulthandler.unregister(number)
    assert seen == [False, False, False, True, True]


def test_sent_to_a_child(run):
    """A child gets the signal, and the loop its status; one that has ended, known or not yet, gets nothing."""

    async def live():
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", "import signal; signal.pause()")
        signals.send(child, signal.SIGTERM)
        status = await child.wait()
        signals.send(child, signal.SIGCONT)
        signals.send(SimpleNamespace(pid=child.pid, returncode=None), signal.SIGCONT)
        return status

    assert run(live()) == -signal.SIGTERM
