"""Counts the syslog messages that hosts send over TCP, by host and severity (RFC 6587, RFC 5424)."""

import asyncio
from collections import Counter, defaultdict

from aiolb import StreamCollector

SEVERITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
LONGEST = 1 << 16


class SyslogTcp(StreamCollector):
    """All connections of one host reach this very object: what it knows of the host is the whole of it."""

    def __init__(self) -> None:
        self.messages: defaultdict[str, Counter[str]] = defaultdict(Counter)

    async def handle_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read messages until the host has no more."""
        host = writer.get_extra_info("peername")[0]
        while message := await read_message(reader):
            self.messages[host][severity_of(message)] += 1

    def report(self) -> dict[str, dict[str, int]]:
        """Messages of each host by severity."""
        return {host: dict(counts) for host, counts in self.messages.items()}


async def read_message(reader: asyncio.StreamReader) -> bytes:
    """The next message, framed by its length (``11 <13>1 hello``) or by a line feed; nothing at the end."""
    first = await reader.read(1)
    while first == b"\n":
        first = await reader.read(1)
    if not first.isdigit():
        return first and first + await reader.readline()
    length = int(first + await reader.readuntil(b" "))
    if length > LONGEST:
        raise ValueError(f"a message of {length:,} bytes")
    return await reader.readexactly(length)


def severity_of(message: bytes) -> str:
    """What ``<PRI>`` at the beginning of a message says; ``none`` where it is missing."""
    priority, end, _ = message.removeprefix(b"<").partition(b">")
    return SEVERITIES[int(priority) % 8] if end and priority.isdigit() else "none"


if __name__ == "__main__":
    SyslogTcp.run(bind="127.0.0.1:10601")
