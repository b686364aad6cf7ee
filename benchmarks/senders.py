"""One sender, or what it sends to, in a process of its own; a sender prints what a datagram cost, as JSON."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import sys

import uvloop

from aiolb import Publisher
from aiolb.send import bursts
from aiolb.send.plain import PlainSender

_UDP_GRO = 104  # Linux include/uapi/linux/udp.h
_SO_RCVBUFFORCE = 33  # Linux include/uapi/asm-generic/socket.h


def cpu_seconds() -> float:
    """CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def say(cpu: float, sent: int) -> None:
    """Tell the parent."""
    print(json.dumps({"microseconds": cpu / sent * 1e6, "sent": sent}), flush=True)


async def publish(target: str, sources: int, size: int, count: int, *, gso: int | str, stamp: bool) -> None:
    """Send with the publisher."""
    async with Publisher(target, sources=sources, size=size, count=count, gso=gso, stamp=stamp) as publisher:
        before = cpu_seconds()
        statistics = await publisher.run()
        say(cpu_seconds() - before, statistics.sent)


async def sendto(port: int, sources: int, size: int, count: int) -> None:
    """Send with the event loop's own transports, which is what there is without us."""
    loop = asyncio.get_running_loop()
    transports = [
        (
            await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, local_addr=(f"127.0.0.{n + 2}", 0), remote_addr=("127.0.0.1", port)
            )
        )[0]
        for n in range(sources)
    ]
    datagram = bytes(size)
    before = cpu_seconds()
    for n in range(count):
        transports[n % sources].sendto(datagram)
        if n % 256 == 0:
            await asyncio.sleep(0)
    say(cpu_seconds() - before, count)
    for transport in transports:
        transport.close()


def sink(kind: str) -> None:
    """Something to send to, until it is killed: ``trains`` takes them whole, and the queue of ``full`` is full."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        if kind == "trains":
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
            sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
        print(sock.getsockname()[1], flush=True)
        if kind == "full":
            sys.stdin.read()
        buffer = bytearray(1 << 16)
        while True:
            sock.recv_into(buffer)


def main() -> None:
    """``sink KIND``, or ``NAME PORT SOURCES SIZE COUNT TRAIN``."""
    name, *rest = sys.argv[1:]
    if name == "sink":
        return sink(rest[0])
    port, sources, size, count, train = map(int, rest)
    if name == "uvloop":
        return uvloop.run(sendto(port, sources, size, count))
    sender, _, stamp = name.partition("+")
    if sender == "plain":
        bursts.sender_class = lambda: PlainSender  # type: ignore[attr-defined]
    gso: int | str = train if train > 1 else "off"
    return uvloop.run(publish(f"127.0.0.1:{port}", sources, size, count, gso=gso, stamp=bool(stamp)))


if __name__ == "__main__":
    main()
