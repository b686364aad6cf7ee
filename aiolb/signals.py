"""Signals: caught for the time that something runs, and restored; sent to children."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_Callback = Callable[[signal.Signals], None]


@dataclass(slots=True)
class _Caught:
    """One signal that is being caught: for whom, and what was there before."""

    before: Any
    callbacks: list[_Callback] = field(default_factory=list)
    seen: bool = False

    def call(self, number: signal.Signals) -> None:
        self.seen = True
        for callback in list(self.callbacks):
            callback(number)


# A loop keeps one handler per signal; several collectors in one process must all hear of it.
_CAUGHT: dict[signal.Signals, _Caught] = {}


@contextmanager
def captured(callback: _Callback, numbers: Iterable[signal.Signals] = STOP_SIGNALS) -> Iterator[None]:
    """Call ``callback`` in the running loop for each SIGTERM and SIGINT (or ``numbers``) inside the block.

    Blocks that overlap all get the signal. After the last one the handlers that were there before are back, and
    those that the user had installed get the signals that came, once each. Outside of the main thread, where
    Python takes no signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, numbers = asyncio.get_running_loop(), tuple(numbers)
    for number in numbers:
        _catch(loop, number, callback)
    missed = []
    try:
        yield
    finally:
        missed = [number for number in numbers if _release(loop, number, callback)]
    for number in missed:
        signal.raise_signal(number)


def is_users(number: signal.Signals) -> bool:
    """Whether something else than a block of ``captured`` handles the signal: Python or C code, e.g. faulthandler."""
    # getsignal() knows nothing of what faulthandler.register() did; SigCgt is the kernel's own list (proc(5)).
    status = Path("/proc/self/status").read_text()
    handled = int(next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1], 16)
    return number not in _CAUGHT and bool(handled >> (number - 1) & 1)


def send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Send a signal to a child process, if it has not ended."""
    # Not Process.send_signal(): it looks whether the process is dead, and then the loop, which waits for that
    # too, is told nothing but status 255 (Popen.send_signal() and asyncio.ThreadedChildWatcher).
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _catch(loop: asyncio.AbstractEventLoop, number: signal.Signals, callback: _Callback) -> None:
    if number not in _CAUGHT:
        caught = _CAUGHT[number] = _Caught(signal.getsignal(number))
        loop.add_signal_handler(number, caught.call, number)
    _CAUGHT[number].callbacks.append(callback)


def _release(loop: asyncio.AbstractEventLoop, number: signal.Signals, callback: _Callback) -> bool:
    """Whether nobody catches the signal any more, and the user's handler missed one."""
    caught = _CAUGHT[number]
    caught.callbacks.remove(callback)
    if caught.callbacks:
        return False
    del _CAUGHT[number]
    loop.remove_signal_handler(number)
    signal.signal(number, signal.SIG_DFL if caught.before is None else caught.before)  # None: not Python's
    return caught.seen and _is_users(caught.before)


def _is_users(handler: Any) -> bool:
    # asyncio.Runner's own handler for SIGINT would turn a graceful stop into KeyboardInterrupt.
    runner = getattr(getattr(handler, "func", None), "__self__", None)
    return callable(handler) and handler is not signal.default_int_handler and not isinstance(runner, asyncio.Runner)
