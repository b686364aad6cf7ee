"""What a server asks of every application, whatever it handles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Lifecycle(Protocol):
    """Begin and end of an application, and what it says of itself."""

    def attach(self, server: Any) -> None:
        """Called once before ``startup`` with the server that will run the collector."""
        ...

    async def startup(self) -> None:
        """Called once before the first datagram or connection."""
        ...

    async def shutdown(self) -> None:
        """Called once after the last handler ended."""
        ...

    def on_slots_changed(self, change: Any) -> None:
        """Told which slots, and so which sources, have left its member or come to it."""
        ...

    def report(self) -> Mapping[str, Any]:
        """What the collector wants to show of itself, by name."""
        ...
