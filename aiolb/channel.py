"""Messages between a supervisor and one of its workers: JSON lines over a pair of Unix sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any, Self

MESSAGE_SIZE = 1 << 28
"""Bytes that a message may have: a worker's last one holds the report of its collector."""


class Channel:
    """One end of a channel; owns its socket until ``close``.

    The other end is known to have gone when the messages end. Sending to it then is survived: whoever reads the
    messages learns of it.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, sock: socket.socket) -> Self:
        """A channel over one end of ``socket.socketpair()``."""
        return cls(*await asyncio.open_unix_connection(sock=sock, limit=MESSAGE_SIZE))

    def send(self, name: str, **content: Any) -> None:
        """Send a message; what cannot leave at once is buffered."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps({"name": name, **content}).encode() + b"\n")

    async def messages(self) -> AsyncIterator[Mapping[str, Any]]:
        """What the other end sends, each with its ``name``, until it has gone."""
        while True:
            try:
                line = await self._reader.readline()
            except ConnectionError:
                return
            if not line.endswith(b"\n"):
                return
            yield json.loads(line)

    async def close(self) -> None:
        """Send what is buffered, unless the other end has gone, and close. Idempotent."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()
