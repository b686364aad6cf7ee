"""StreamCollector: what users subclass to handle connections."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from aiolb.base_collector import BaseCollector
from aiolb.stats import StreamStatistics


class StreamCollector(BaseCollector):
    """Handles the TCP connections of one member's sources.

    Override ``handle_stream``, and what else is needed::

        class Lines(StreamCollector):
            async def handle_stream(self, reader, writer):
                async for line in reader:
                    ...

    All connections of one source reach one member, and each has a task of its own. One collector serves all addresses
    that it is bound to.
    """

    protocol: ClassVar[str] = "tcp"
    handlers: ClassVar[Mapping[str, str]] = {"handle_stream": "reader, writer"}

    async def handle_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection; it is closed afterwards, when what was written has left.

        ``writer.get_extra_info("peername")`` is who connected. Cancelled when it is still running at the end of the
        graceful timeout. What it raises is counted, logged and given to ``on_error``, and never stops the collector.
        """
        raise NotImplementedError

    def on_error(self, error: BaseException, addr: Any) -> None:
        """Called for each connection whose handler raised, after it was logged; ``addr`` is who connected."""

    def statistics(self) -> StreamStatistics:
        """What became of the connections so far. Raises AiolbError before the start."""
        return cast("StreamStatistics", super().statistics())
