"""A terminal for the time that a command draws on it: keys as they are pressed, lines that changed, all restored."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from aiolb.cli.ending import Ending

SUSPEND = "\x1a"
PATIENCE = 1.0
"""Seconds that a terminal which takes nothing has to take the sequence that restores it."""

_ENTER = "\x1b[?1049h\x1b[?25l"  # the alternate screen, and no cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_KEYS = 64


class Screen:
    """Standard output as a screen of lines, and standard input as keys where it is a terminal too."""

    def __init__(self, ending: Ending) -> None:
        self._ending = ending
        self._output = sys.stdout.fileno()
        self._input = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._before: list[int | list[bytes | int]] | None = None
        self._drawn: list[str] = []
        self._size = (0, 0)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        found = os.get_terminal_size(self._output)
        return found.columns, found.lines

    def __enter__(self) -> Self:
        try:
            self._enter()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _enter(self) -> None:
        if self._input is not None:
            self._before = termios.tcgetattr(self._input)
            tty.setcbreak(self._input, termios.TCSANOW)
            mode = termios.tcgetattr(self._input)
            mode[6][termios.VSUSP] = b"\0"  # Ctrl-Z comes as a key, for the terminal is to be restored first
            termios.tcsetattr(self._input, termios.TCSANOW, mode)
        self._drawn = []
        self._ending.write(self._output, _ENTER.encode())

    def _leave(self) -> None:
        with suppress(OSError, termios.error):  # the terminal is gone
            if self._input is not None and self._before is not None:
                termios.tcsetattr(self._input, termios.TCSANOW, self._before)
            poll = select.poll()
            poll.register(self._output, select.POLLOUT)
            if poll.poll(PATIENCE * 1000):
                os.write(self._output, _LEAVE.encode())

    def draw(self, rendered: Sequence[str]) -> None:
        """Show these lines; only those that are not there already are sent."""
        size = self.size
        sent = []
        if size != self._size or not self._drawn:
            sent, self._drawn, self._size = ["\x1b[2J"], [], size
        rendered = rendered[: size[1]]
        for number, line in enumerate(rendered):
            if number >= len(self._drawn) or self._drawn[number] != line:
                sent.append(f"\x1b[{number + 1};1H{line}\x1b[K")
        if len(rendered) < len(self._drawn):
            sent.append(f"\x1b[{len(rendered) + 1};1H\x1b[J")
        self._drawn = list(rendered)
        self._ending.write(self._output, "".join(sent).encode())

    def keys(self, seconds: float) -> str:
        """The keys that were pressed, waiting so long for the first one; "" after the time or a signal."""
        if not self._ending.wait(seconds, readable=self._input):
            return ""
        assert self._input is not None  # noqa: S101 - it is ready
        keys = ""
        with suppress(OSError):
            keys = os.read(self._input, _KEYS).decode(errors="replace")
        if not keys:  # the terminal is gone
            self._ending.came = True
        if SUSPEND in keys:
            self._leave()
            os.kill(os.getpid(), signal.SIGTSTP)
            self._enter()
        return keys
