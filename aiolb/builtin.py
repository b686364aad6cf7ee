"""Ready-made collectors: print, echo, discard, verify."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Mapping
from typing import Any

import structlog

from aiolb import logs
from aiolb.collector import Collector
from aiolb.receive.contract import Datagram

PREVIEW = 40
"""Bytes of a datagram that the print collector shows."""


def preview(datagram: bytes) -> str:
    """The first bytes as printable ASCII, with ``.`` for the others and ``…`` where more follows."""
    shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in datagram[:PREVIEW])  # noqa: PLR2004 - ASCII
    return shown + ("…" if len(datagram) > PREVIEW else "")


def host_and_port(addr: Any) -> str:
    """An address of the socket module as people write it."""
    host = f"[{addr[0]}]" if ":" in addr[0] else addr[0]
    return f"{host}:{addr[1]}"


class Print(Collector):
    """Writes a line to standard output for each datagram: source, size, preview."""

    async def startup(self) -> None:
        """Let no encoding of the terminal refuse a preview."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")

    async def handle_batch(self, batch: list[Datagram]) -> None:
        """One write for all that is there."""
        try:
            sys.stdout.write("".join(map(self._line, batch)))
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read our output has gone
            logs.silence(sys.stdout)
            self.stop()

    @staticmethod
    def _line(item: Datagram) -> str:
        datagram, addr = item
        return f"{host_and_port(addr):<21}  {len(datagram):>5} bytes  {preview(datagram)}\n"


class Echo(Collector):
    """Sends every datagram back to its source."""

    async def handle(self, datagram: bytes, addr: Any) -> None:
        """Reply with the same payload."""
        self.reply(datagram, addr)


class Discard(Collector):
    """Counts datagrams and forgets them."""

    async def handle(self, datagram: bytes, addr: Any) -> None:
        """Do nothing: receiving and counting happened before."""


class Verify(Collector):
    """Checks the publisher's stamps: per source what was received, lost, duplicated, reordered, and how late."""

    def __init__(self) -> None:
        from aiolb.verification import Verifier  # the other collectors start without it

        self._verifier = Verifier()

    async def startup(self) -> None:
        """Say in the report which member this is."""
        self._verifier.member = self.statistics().index

    async def handle(self, datagram: bytes, addr: Any) -> None:
        """Record the stamp; a datagram without one is counted apart."""
        self._verifier.record(datagram, addr, time.time_ns())

    async def shutdown(self) -> None:
        """Log the totals."""
        report = self._verifier.report()
        structlog.get_logger().info(
            "verified", **{name: report[name] for name in report if name not in ("member", "per_source")}
        )

    def report(self) -> Mapping[str, Any]:
        """Totals, and each source."""
        return self._verifier.report()


BUILTIN: Mapping[str, type[Collector]] = {
    "print": Print,
    "echo": Echo,
    "discard": Discard,
    "verify": Verify,
}
"""Collectors by the name that the command line knows them by."""
