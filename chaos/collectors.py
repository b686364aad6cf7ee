"""What runs in the workers: collectors that mark every datagram in the ledger, some of them ill-behaved."""

# ruff: noqa: ARG002 - every handler is given an address

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from aiolb import Collector
from aiolb.errors import WireError
from aiolb.stamp import Stamp, stamp_from_wire
from chaos.behaviour import (
    BLOCKS_EVERY,
    BLOCKS_FOR,
    BROKEN,
    BROKEN_MEMBER,
    BROKEN_STATUS,
    LEDGER,
    RAISES_EVERY,
    SLOW_FOR,
)
from chaos.ledger import Ledger


class Marking(Collector):
    """Marks every datagram, once its handler has come so far."""

    async def startup(self) -> None:
        """Enrol."""
        self._ledger = Ledger.open(Path(os.environ[LEDGER]))
        self._pen = self._ledger.enrol(self.statistics().index)

    async def shutdown(self) -> None:
        """Unmap the ledger."""
        self._pen.close()
        self._ledger.close()

    async def handle(self, datagram: bytes, addr: Any) -> None:
        """Mark it."""
        self.mark(datagram)

    def mark(self, datagram: bytes) -> Stamp | None:
        """Mark it; its stamp, or None where it has none."""
        try:
            stamp = stamp_from_wire(datagram)
        except WireError:
            self._pen.stray()
            return None
        self._pen.mark(stamp, time.time_ns())
        return stamp


class Mortal(Marking):
    """Kills itself in a handler when it was sentenced, as a crash of the handler would."""

    async def handle(self, datagram: bytes, addr: Any) -> None:
        """Mark it, and die if it must be."""
        self.mark(datagram)
        if self._ledger.sentenced == self._pen.number:
            os.kill(os.getpid(), signal.SIGKILL)


class Raising(Marking):
    """Raises after each seventh datagram of a source."""

    async def handle(self, datagram: bytes, addr: Any) -> None:
        """Mark it, and raise when its turn has come."""
        stamp = self.mark(datagram)
        if stamp is not None and stamp.sequence % RAISES_EVERY == RAISES_EVERY - 1:
            raise ValueError(f"datagram {stamp.sequence} of source {stamp.source}")


class Blocking(Marking):
    """Waits a second now and then, for source 0 alone."""

    async def handle(self, datagram: bytes, addr: Any) -> None:
        """Wait when its turn has come, then mark it."""
        stamp = stamp_from_wire(datagram)
        if stamp.source == 0 and stamp.sequence % BLOCKS_EVERY == 0:
            await asyncio.sleep(BLOCKS_FOR)
        self.mark(datagram)


class Slow(Marking):
    """Handles fewer datagrams than arrive: each keeps the whole process."""

    async def handle(self, datagram: bytes, addr: Any) -> None:
        """Keep the process, then mark it."""
        time.sleep(SLOW_FOR)  # noqa: ASYNC251 - this is the point
        self.mark(datagram)


class Broken(Marking):
    """Its member 1 exits at once, as long as a file says so."""

    async def startup(self) -> None:
        """Exit, or enrol."""
        if self.statistics().index == BROKEN_MEMBER and os.path.exists(os.environ[BROKEN]):  # noqa: ASYNC240, PTH110 - it is about to exit
            os._exit(BROKEN_STATUS)
        await super().startup()
