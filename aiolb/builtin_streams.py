"""Ready-made collectors of connections: print, echo, discard."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Mapping
from contextlib import suppress

from aiolb import logs
from aiolb.builtin import host_and_port, preview
from aiolb.stream import StreamCollector

CHUNK = 1 << 16
"""Bytes read at once, and of a line that the print collector looks at."""


class PrintLines(StreamCollector):
    """Writes a line to standard output for each line that comes in: source, size, preview."""

    async def startup(self) -> None:
        """Let no encoding of the terminal refuse a preview."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")

    async def handle_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Print lines until the other end has no more; a last one without its end counts too."""
        source = host_and_port(writer.get_extra_info("peername"))
        with suppress(ConnectionError):  # it has gone
            while line := await _line(reader):
                self._print(f"{source:<21}  {len(line):>5} bytes  {preview(line.rstrip())}\n")

    def _print(self, text: str) -> None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read our output has gone
            logs.silence(sys.stdout)
            self.stop()


async def _line(reader: asyncio.StreamReader) -> bytes:
    """The next line with its end, or as much of one as the reader holds; nothing at the end."""
    try:
        return await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await reader.read(error.consumed)


class EchoStream(StreamCollector):
    """Sends everything back to where it came from."""

    async def handle_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Write what was read, until the other end has no more."""
        with suppress(ConnectionError):
            while data := await reader.read(CHUNK):
                writer.write(data)
                await writer.drain()


class DiscardStream(StreamCollector):
    """Counts connections and bytes, and forgets them."""

    async def handle_stream(self, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        """Read until the other end has no more: counting happens before."""
        with suppress(ConnectionError):
            while await reader.read(CHUNK):
                pass


BUILTIN_STREAMS: Mapping[str, type[StreamCollector]] = {
    "print": PrintLines,
    "echo": EchoStream,
    "discard": DiscardStream,
}
"""Collectors of connections by the name that the command line knows them by."""
