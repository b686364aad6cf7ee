"""Sends a datagram from each of many random sources, all through one socket: ``python -m chaos.spoof HOST PORT COUNT``.

It prints how many left when they have.
"""

from __future__ import annotations

import socket
import struct
import sys
from random import Random

IP_PKTINFO = 8  # ip(7); a name that Python 3.11 lacks
FIRST, LAST = 0x7F800001, 0x7FFFFFFE
"""The sources are of 127.128.0.0/9, where no well-behaved one is."""


def main(host: str, port: int, count: int) -> int:
    """Send, as fast as it goes; how many."""
    generator, sent = Random(count), 0  # noqa: S311 - it is to be repeatable
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for source in generator.sample(range(FIRST, LAST), count):
            control = struct.pack("=i4s4x", 0, source.to_bytes(4, "big"))
            sent += bool(sock.sendmsg((b"spoofed",), ((socket.IPPROTO_IP, IP_PKTINFO, control),), 0, (host, port)))
    return sent


if __name__ == "__main__":
    sys.stdout.write(f"{main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))}\n")
