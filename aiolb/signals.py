"""Signals for the time that something runs: caught, given to a callback, restored, passed on."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def captured(
    callback: Callable[[signal.Signals], None], numbers: Iterable[signal.Signals] = STOP_SIGNALS
) -> Iterator[None]:
    """Call ``callback`` in the running loop for each SIGTERM and SIGINT (or ``numbers``) inside the block.

    Afterwards the handlers that were there before are back, and those that the user had installed get the
    signals that came, once each. Outside of the main thread, where Python takes no signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    seen: list[signal.Signals] = []

    def caught(number: signal.Signals) -> None:
        seen.append(number)
        callback(number)

    before = {number: signal.getsignal(number) for number in numbers}
    for number in before:
        loop.add_signal_handler(number, caught, number)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not Python's
    for number in dict.fromkeys(seen):
        if _is_users(before[number]):
            signal.raise_signal(number)


def _is_users(handler: Any) -> bool:
    # asyncio.Runner's own handler for SIGINT would turn a graceful stop into KeyboardInterrupt.
    runner = getattr(getattr(handler, "func", None), "__self__", None)
    return callable(handler) and handler is not signal.default_int_handler and not isinstance(runner, asyncio.Runner)
