"""Which kind of listener serves a protocol."""

from __future__ import annotations

from collections.abc import Mapping

from aiolb.datagram_listener import DatagramListener
from aiolb.listener import Listener
from aiolb.stream_listener import StreamListener

# Both are imported at once: later, without privileges, it may be forbidden to read our files.
LISTENERS: Mapping[str, type[Listener]] = {"udp": DatagramListener, "tcp": StreamListener}
"""By protocol."""
