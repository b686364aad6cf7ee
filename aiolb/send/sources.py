"""The sockets of a publisher, one per source."""

from __future__ import annotations

import asyncio
import errno
import math
import socket
from collections.abc import Callable
from ipaddress import IPv4Network
from typing import Any

from aiolb import descriptors, sockets
from aiolb.address import Address, parse_ip
from aiolb.errors import KernelError, StartError
from aiolb.pacing import SHORTEST_PAUSE
from aiolb.send import gso
from aiolb.send.config import PublisherConfig
from aiolb.send.refusals import BLOCKED

_RECVERR = {
    socket.AF_INET: (socket.IPPROTO_IP, 11),  # IP_RECVERR, include/uapi/linux/in.h
    socket.AF_INET6: (socket.IPPROTO_IPV6, 25),  # IPV6_RECVERR, include/uapi/linux/in6.h
}


class Source:
    """A connected socket, and what users send through it."""

    __slots__ = ("address", "number", "segment", "sent", "sock", "writable")

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self.address = str(parse_ip(sock.getsockname()[0]))
        self.segment = 0
        self.sent = 0
        self.writable: asyncio.Future[None] | None = None

    def make_trains(self, size: int) -> None:
        """Cut what is sent into datagrams of this size; 0 ends that. Raises KernelError where it cannot be."""
        if size:
            gso.switch_on(self.sock, size)
        elif self.segment:
            gso.switch_off(self.sock)
        self.segment = size

    def send(self, datagram: bytes | bytearray) -> None:
        """Send one datagram in one piece."""
        if 0 < self.segment < len(datagram):
            self.sock.sendmsg([datagram], [gso.WHOLE])
        else:
            self.sock.send(datagram)
        self.sent += 1

    def send_settled(self, datagram: bytes | bytearray, count_error: Callable[[int], object]) -> None:
        """Send one datagram; raises what the kernel says about it, and counts what it said about an earlier one."""
        earlier = 0
        while True:
            try:
                self.send(datagram)
                break
            except ConnectionRefusedError:
                count_error(errno.ECONNREFUSED)
            except OSError as error:
                if error.errno in BLOCKED or earlier:
                    raise
                earlier = error.errno or 0
        if earlier:
            count_error(earlier)

    async def wait_for_room(self, error: int, seconds: float = math.inf) -> None:
        """Wait, after a full queue was told with this errno, for room in it, for ``wake()``, or that long."""
        if error == errno.ENOBUFS:  # the device's queue, which nothing watches
            await asyncio.sleep(SHORTEST_PAUSE)
            return
        left = None if seconds == math.inf else max(seconds, 0.0) + SHORTEST_PAUSE
        await asyncio.wait([self.wait_until_writable()], timeout=left)

    def wait_until_writable(self) -> asyncio.Future[None]:
        """A future for all who wait: a loop keeps one writer per descriptor, and replaces it silently."""
        if self.writable is None:
            self.forget_errors()
            loop = asyncio.get_running_loop()
            self.writable = loop.create_future()
            loop.add_writer(self.sock, self.wake)
        return self.writable

    def wake(self) -> None:
        """Let all waiters go on and stop watching the socket."""
        if self.writable is not None:
            asyncio.get_running_loop().remove_writer(self.sock)
            finish(self.writable)
            self.writable = None

    def forget_errors(self) -> None:
        """Empty the error queue, or the loop would find the socket ready all the time; they were counted."""
        try:
            while True:
                self.sock.recvmsg(0, 0, socket.MSG_ERRQUEUE)
        except OSError:
            return


def finish(future: asyncio.Future[None]) -> None:
    """Wake up who waits for it, unless it is awake already."""
    if not future.done():
        future.set_result(None)


async def resolve(config: PublisherConfig) -> tuple[Address, tuple[Any, ...]]:
    """The target, also as the socket module takes it; raises StartError when a name has no address."""
    if (numeric := config.numeric_target) is not None:
        try:
            return numeric, sockets.sockaddr(numeric)
        except OSError as error:
            raise _unreachable(numeric, error) from None
    host, port = config.host_port
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise StartError(
            f"no address for {host!r}: {getattr(error, 'strerror', None) or error}",
            hint="check the name, or give an IP address",
        ) from None
    sources = config.source_set
    wanted = socket.AF_INET if isinstance(sources, int | IPv4Network) else socket.AF_INET6
    sockaddr: tuple[Any, ...] = min(found, key=lambda info: info[0] != wanted)[4]
    return Address(str(parse_ip(sockaddr[0])), sockaddr[1]), sockaddr


def _unreachable(target: Address, error: OSError, source: str | None = None) -> KernelError:
    """Why the kernel does not send there."""
    by = "" if source is None else f" from {source}"
    route = f"see: ip route get {target.host.partition('%')[0]}{by}"
    return KernelError(
        f"cannot send to {target}{by}: {error.strerror or error}",
        errno=error.errno,
        hint=sockets.interface_hint(target) or route,
    )


def open_socket(target: Address, address: str | None, sockaddr: tuple[Any, ...]) -> socket.socket:
    """A non-blocking socket of this source, connected to the target; None leaves its address to the kernel.

    Raises KernelError.
    """
    sock = socket.socket(target.family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        # Without it the kernel keeps ENOBUFS to itself: what a full device queue drops would count as sent.
        sock.setsockopt(*_RECVERR[target.family], 1)
        if address is not None:
            _bind(sock, address)
        _connect(sock, sockaddr, target)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, address: str) -> None:
    try:
        sock.bind((address, 0))
    except OSError as error:
        raise KernelError(
            f"cannot send from {address}: {error.strerror}",
            errno=error.errno,
            hint=f"give the address to this host first, e.g. ip address add {address} dev lo",
        ) from None


def _connect(sock: socket.socket, sockaddr: tuple[Any, ...], target: Address) -> None:
    try:
        sock.connect(sockaddr)
    except OSError as error:
        raise _unreachable(target, error, str(parse_ip(sock.getsockname()[0]))) from None


def allow_descriptors(number: int) -> None:
    """Raise the soft limit of open files if ``number`` sources do not fit; as :func:`aiolb.descriptors.allow`."""
    descriptors.allow(number, f"{number:,} sources")
