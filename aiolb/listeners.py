"""Which kind of listener serves a protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiolb.listener import Listener


def kind_for(protocol: str) -> type[Listener]:
    """The listener for ``udp`` or ``tcp``; what the other one needs is not imported."""
    if protocol == "tcp":
        from aiolb.stream_listener import StreamListener

        return StreamListener
    from aiolb.datagram_listener import DatagramListener

    return DatagramListener
