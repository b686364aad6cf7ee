"""What a receiver under test has used, received and lost: its socket, and a thread that tells when it is asked."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# Linux names that the socket module of Python 3.11 lacks (include/uapi/asm-generic/socket.h).
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55

TICK = 0.01
"""Seconds that the task sleeps whose lateness is measured."""
ROOM = 65536
"""Bytes that a receiver has for a datagram: no UDP payload is longer."""


class Meter:
    """One receiver's numbers. The thread sleeps until it is asked, and costs nothing until then.

    A receiver counts in an attribute of its own, which is as cheap as it can be, and says here how to read it.
    ``rcvbuf``: bytes; ``ticking``: whether a task shall call ``tick`` every 10 ms.
    """

    def __init__(self, rcvbuf: int, *, ticking: bool) -> None:
        self.rcvbuf = rcvbuf
        self.ticking = ticking
        self.datagrams: Callable[[], int] = int
        self.drops: Callable[[], int] = int
        self._gap = 0.0
        self._ticked: float | None = None

    def bound_socket(self) -> socket.socket:
        """A socket bound to a port of its own, non-blocking; its drops are counted also when a loop takes it away."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.watch(sock)
        sock.bind(("127.0.0.1", 0))
        return sock

    def watch(self, sock: socket.socket) -> None:
        """Give a socket the receive buffer that all have, and count its drops."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.rcvbuf)
        with suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, self.rcvbuf)
        seen = sock.dup()
        self.drops = lambda: struct.unpack("=9I", seen.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))[8]

    def serve(self, port: int, receiver: str) -> None:
        """Tell the parent that datagrams can come; from now on answer it."""
        _say(port=port, receiver=receiver)
        threading.Thread(target=self._answer, daemon=True).start()

    def tick(self) -> None:
        """A turn of the task that sleeps for 10 ms between turns."""
        now = time.perf_counter()
        if self._ticked is not None:
            self._gap = max(self._gap, now - self._ticked)
        self._ticked = now

    async def ticks(self) -> None:
        """Measure the lateness of an asyncio task, or leave the loop to the datagrams; does not end."""
        while self.ticking:
            self.tick()
            await asyncio.sleep(TICK)
        await asyncio.Event().wait()

    def _answer(self) -> None:
        for _ in sys.stdin:
            _say(**self._moment())

    def _moment(self) -> dict[str, Any]:
        """Seconds of wall and CPU time, minor page faults, datagrams, packets dropped since the start.

        ``gap``: milliseconds between two turns of the ticking task, the longest since it was last asked; a turn
        that has not come yet counts too.
        """
        now, ticked, gap = time.perf_counter(), self._ticked, self._gap
        self._gap = 0.0
        return {
            "wall": now,
            "cpu": time.process_time(),
            "page_faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt,
            "datagrams": self.datagrams(),
            "drops": self.drops(),
            "gap": None if ticked is None else max(gap, now - ticked) * 1e3,
        }


def _say(**content: Any) -> None:
    print(json.dumps(content), flush=True)
