"""The async publisher: datagrams from one or many sources, at a rate that does not drift."""

from __future__ import annotations

import asyncio
import errno
import math
import resource
import secrets
import socket
import time
from collections import Counter
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from aiolb.address import Address, IPNetwork, parse_ip, parse_network, split_host_port
from aiolb.errors import AiolbError, ConfigurationError, KernelError, StartError
from aiolb.pacing import SHORTEST_PAUSE, Pacer, validate_rate
from aiolb.stamp import STAMP_SIZE, Stamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

DEFAULT_SIZE = 64
DEFAULT_TEXT = b"aiolb says hello "

MAX_SIZE_V4 = 65_507
"""Bytes: 65,535 less 20 of IPv4 header and 8 of UDP header (RFC 768, RFC 791)."""

MAX_SIZE_V6 = 65_527
"""Bytes: 65,535 less 8 of UDP header; the IPv6 header is not counted (RFC 8200)."""

_LOOPBACK = ip_network("127.0.0.0/8")
_FIRST_LOOPBACK_SOURCE = IPv4Address("127.0.0.2")
_MAX_LOOPBACK_SOURCES = 2**24 - 3
_SPARE_DESCRIPTORS = 16

_BLOCKED = frozenset({errno.EAGAIN, errno.ENOBUFS})
_ERROR_NAMES = {
    errno.ECONNREFUSED: "refused",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EPERM: "forbidden",
    errno.EACCES: "forbidden",
    errno.EMSGSIZE: "too_long",
}


@dataclass(frozen=True, slots=True)
class PublisherConfig:
    """What to send where, checked.

    ``target`` is an Address or ``HOST:PORT``; ``rate`` is in datagrams per second, None for as fast as
    possible; ``count`` datagrams or ``duration`` seconds end a run. ``size`` is in bytes: the payload is
    repeated or cut to it, and with ``stamp`` its first STAMP_SIZE bytes become the stamp. Without a size it
    is the payload's length, or 64 when there is no payload either. ``sources`` is a number of sources in
    127.0.0.0/8, or a network (CIDR) each host address of which sends. Raises ConfigurationError.
    """

    target: Address | str
    rate: float | None = None
    count: int | None = None
    duration: float | None = None
    size: int | None = None
    payload: bytes | None = None
    sources: int | str | IPNetwork = 1
    stamp: bool = False

    def __post_init__(self) -> None:
        validate_rate(self.rate)
        _check_not_negative("count", self.count)
        _check_not_negative("duration", self.duration)
        _check_not_negative("size", self.size)
        self._check_size()
        if not self.host_port[1]:
            raise ConfigurationError(
                f"{str(self.target)!r} has port 0, which nobody can listen on", hint="write HOST:PORT"
            )
        if self.numeric_target is not None:
            source_addresses(self.source_set, self.numeric_target)

    def _check_size(self) -> None:
        limit = MAX_SIZE_V4
        if self.numeric_target is not None and self.numeric_target.family == socket.AF_INET6:
            limit = MAX_SIZE_V6
        size = self.datagram_size
        if size > limit:
            raise ConfigurationError(
                f"a datagram of {size:,} bytes is over the {limit:,} bytes that UDP carries",
                hint=f"give a size of at most {limit}",
            )
        if self.stamp and size < STAMP_SIZE:
            raise ConfigurationError(
                f"a datagram of {size} bytes has no room for the stamp of {STAMP_SIZE} bytes",
                hint=f"give a size of {STAMP_SIZE} or more",
            )
        if self.payload == b"" and size:
            raise ConfigurationError(
                f"an empty payload cannot fill {size} bytes",
                hint="give a payload, or none for the default text",
            )

    @property
    def host_port(self) -> tuple[str, int]:
        """Host and port of the target; the unspecified addresses mean this host, as they do to the kernel."""
        if isinstance(self.target, Address):
            host, port = self.target.host, self.target.port
        else:
            host, port = split_host_port(self.target, default_port=None)
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port

    @property
    def numeric_target(self) -> Address | None:
        """The target when it is an IP address, None when it is a name."""
        host, port = self.host_port
        try:
            return Address(str(parse_ip(host)), port)
        except ConfigurationError:
            return None

    @property
    def source_set(self) -> int | IPNetwork:
        """``sources`` as a number or a network."""
        if not isinstance(self.sources, str):
            return self.sources
        text = self.sources.strip()
        return int(text) if text.lstrip("-").isdecimal() else parse_network(text)

    @property
    def datagram_size(self) -> int:
        """The length of every datagram in bytes."""
        if self.size is not None:
            return self.size
        return DEFAULT_SIZE if self.payload is None else len(self.payload)

    @property
    def datagram(self) -> bytes:
        """A whole datagram; where a stamp is asked for, it still has to be written over the start."""
        text = DEFAULT_TEXT if self.payload is None else self.payload
        return (text * (self.datagram_size // max(len(text), 1) + 1))[: self.datagram_size]


def _check_not_negative(name: str, value: float | None) -> None:
    if value is not None and not 0 <= value < math.inf:
        raise ConfigurationError(f"the {name} is {value}", hint=f"give a {name} of 0 or more, or none")


def source_addresses(sources: int | IPNetwork, target: Address) -> tuple[int, Iterable[str | None]]:
    """How many sources there are, and their addresses; None leaves the choice to the kernel.

    Raises ConfigurationError when such sources cannot reach the target.
    """
    if isinstance(sources, int):
        return _loopback_sources(sources, target)
    if sources.version != target.ip.version:
        raise ConfigurationError(
            f"sources in {sources} cannot reach {target}: IPv{sources.version} and IPv{target.ip.version}",
            hint="give sources and target of one IP version",
        )
    number = sources.num_addresses
    if sources.prefixlen < sources.max_prefixlen - 1:
        number -= 2 if isinstance(sources, IPv4Network) else 1
    return number, map(str, sources.hosts())


def _loopback_sources(number: int, target: Address) -> tuple[int, Iterable[str | None]]:
    if number == 1:
        return 1, [None]
    if not 1 <= number <= _MAX_LOOPBACK_SOURCES:
        raise ConfigurationError(
            f"{number} sources are not from 1 to {_MAX_LOOPBACK_SOURCES:,}", hint="give a number or a network"
        )
    if target.ip not in _LOOPBACK:
        raise ConfigurationError(
            f"{number} sources exist without asking on IPv4 loopback only, and the target is {target}",
            hint="name addresses of this host as a network, e.g. --sources 10.1.0.0/24",
        )
    return number, (str(_FIRST_LOOPBACK_SOURCE + n) for n in range(number))


@dataclass(frozen=True, slots=True)
class PublisherStatistics:
    """What a publisher did so far.

    ``sent`` datagrams of ``bytes`` payload bytes in all; ``sent_per_source`` splits them by source address.
    ``seconds`` were spent in run(), at ``rate_reached`` datagrams per second where ``rate_asked`` were asked
    for (None: as many as possible). ``errors`` counts by name: ``refused`` (nobody listened to an earlier
    datagram), ``blocked`` (the kernel's queue was full and the publisher waited), and others, which left
    ``failed`` datagrams unsent.
    """

    sent: int
    bytes: int
    seconds: float
    rate_asked: float | None
    rate_reached: float
    sources: int
    sent_per_source: Mapping[str, int]
    failed: int
    errors: Mapping[str, int]


class _Source:
    """A connected socket, and what went out through it."""

    __slots__ = ("address", "number", "sent", "sequence", "sock", "writable")

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self.address = str(parse_ip(sock.getsockname()[0]))
        self.sent = 0
        self.sequence = 0
        self.writable: asyncio.Future[None] | None = None

    def wait_until_writable(self) -> asyncio.Future[None]:
        """A future for all who wait: a loop keeps one writer per descriptor, and replaces it silently."""
        if self.writable is None:
            loop = asyncio.get_running_loop()
            self.writable = loop.create_future()
            loop.add_writer(self.sock, self.wake)
        return self.writable

    def wake(self) -> None:
        """Let all waiters go on and stop watching the socket."""
        if self.writable is not None:
            asyncio.get_running_loop().remove_writer(self.sock)
            _finish(self.writable)
            self.writable = None


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Publisher:
    """Sends datagrams to one target, round robin over its sources; an async context manager.

    The arguments are those of :class:`PublisherConfig`, which raises ConfigurationError. Entering resolves
    the target (of a name's addresses it takes an IPv4 one if there is, unless the sources are IPv6) and opens
    one socket per source; where that takes more open files than the soft limit, it raises the limit and
    leaves it raised. It fails with StartError or, where the kernel says no, KernelError. Leaving closes the
    sockets.
    """

    def __init__(
        self,
        target: Address | str,
        *,
        rate: float | None = None,
        count: int | None = None,
        duration: float | None = None,
        size: int | None = None,
        payload: bytes | None = None,
        sources: int | str | IPNetwork = 1,
        stamp: bool = False,
    ) -> None:
        self.config = PublisherConfig(target, rate, count, duration, size, payload, sources, stamp)
        self.run_id = secrets.randbits(64)
        """The random 64-bit number in the stamps of this publisher."""
        self._clock = time.monotonic  # not loop.time(), which uvloop rounds to milliseconds
        self._datagram = bytearray(self.config.datagram)
        self._open = False
        self._sources: list[_Source] = []
        self._next = 0
        self._bytes = 0
        self._failed = 0
        self._errors: Counter[str] = Counter()
        self._run_started: float | None = None
        self._run_seconds = 0.0
        self._run_sent = 0
        self._stopping = False
        self._pausing: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        sockaddr = await self._resolve()
        target = Address(str(parse_ip(sockaddr[0])), sockaddr[1])
        number, addresses = source_addresses(self.config.source_set, target)
        allow_descriptors(number)
        try:
            for n, address in enumerate(addresses):
                self._sources.append(_Source(n, _open_socket(target, address, sockaddr)))
        except BaseException:
            self._close()
            raise
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._close()

    def _close(self) -> None:
        self._open = False
        for source in self._sources:
            source.wake()
            source.sock.close()

    async def _resolve(self) -> tuple[Any, ...]:
        if (numeric := self.config.numeric_target) is not None:
            return numeric.host, numeric.port
        host, port = self.config.host_port
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as error:
            raise StartError(
                f"no address for {host!r}: {getattr(error, 'strerror', None) or error}",
                hint="check the name, or give an IP address",
            ) from None
        sources = self.config.source_set
        wanted = socket.AF_INET if isinstance(sources, int | IPv4Network) else socket.AF_INET6
        return min(found, key=lambda info: info[0] != wanted)[4]

    async def send(self, datagram: bytes) -> None:
        """Send one datagram, as it is, from the next source; waits while the kernel's queue is full.

        Raises KernelError when the kernel refuses it, e.g. for its length, and AiolbError when closed.
        """
        while True:
            source = self._next_source()
            try:
                self._send(source, datagram)
            except OSError as error:
                if error.errno not in _BLOCKED:
                    raise KernelError(
                        f"cannot send {len(datagram):,} bytes to {self.config.target}: {error.strerror}",
                        errno=error.errno,
                    ) from None
                await self._wait_until_writable(source, error, math.inf)
            else:
                return

    async def run(self) -> PublisherStatistics:
        """Send datagrams at the configured rate until the count or the duration is reached, or stop().

        The rate is open-loop: datagram n goes out at n / rate seconds or right after, however late the ones
        before it were. May be called again afterwards; statistics and stamps go on. Raises AiolbError when
        closed or already running.
        """
        if self._run_started is not None:
            raise AiolbError("the publisher is running already")
        started = self._run_started = self._clock()
        pacer = Pacer(self.config.rate, started, count=self.config.count, duration=self.config.duration)
        done, sent_until = 0, started
        try:
            while not self._stopping and (step := pacer.step(self._clock(), done)) is not None:
                if step.datagrams:
                    done += await self._burst(step.datagrams, pacer.end)
                    sent_until = self._clock()
                await self._pause(step.pause)
        finally:
            # Waking up a little after the end is not time spent on sending.
            self._run_seconds += min(self._clock(), max(sent_until, pacer.end)) - started
            self._run_started = None
            self._stopping = False
        return self.statistics()

    def stop(self) -> None:
        """End run() at once, or the next one before it sends when none is running."""
        self._stopping = True
        if self._pausing is not None:
            _finish(self._pausing)
        for source in self._sources:
            source.wake()

    def statistics(self) -> PublisherStatistics:
        """What was sent so far; may be asked at any time, after the end too."""
        seconds, rate = self._run_seconds, self.config.rate
        if self._run_started is not None:
            seconds += self._clock() - self._run_started
        # Each datagram stands for its interval: 10 datagrams at 10/s take 0.9 s, and are 10/s all the same.
        spent = seconds if rate is None else max(seconds, self._run_sent / rate)
        sent_per_source = {source.address: source.sent for source in self._sources}
        return PublisherStatistics(
            sent=sum(sent_per_source.values()),
            bytes=self._bytes,
            seconds=seconds,
            rate_asked=rate,
            rate_reached=self._run_sent / spent if spent else 0.0,
            sources=len(self._sources),
            sent_per_source=sent_per_source,
            failed=self._failed,
            errors=dict(self._errors),
        )

    async def _burst(self, datagrams: int, end: float) -> int:
        """Send up to that many, and return how many are behind us; a full queue ends the burst early."""
        for done in range(datagrams):
            source = self._next_source()
            try:
                self._send_stamped(source)
            except OSError as error:
                if error.errno in _BLOCKED:
                    await self._wait_until_writable(source, error, end)
                    return done
                self._count_failed(error)
            else:
                self._run_sent += 1
        return datagrams

    def _next_source(self) -> _Source:
        if not self._open:
            raise AiolbError("the publisher is not open", hint="use it as `async with Publisher(…) as publisher`")
        return self._sources[self._next]

    def _send_stamped(self, source: _Source) -> None:
        if self.config.stamp:
            stamp = Stamp(self.run_id, source.number, source.sequence, time.time_ns())
            stamp.pack_into(self._datagram)
        self._send(source, self._datagram)
        source.sequence += 1

    def _send(self, source: _Source, datagram: bytes | bytearray) -> None:
        """Send from this source and move on to the next; raises what the kernel says about this datagram.

        A connected socket reports what became of an earlier datagram (an ICMP error) in place of sending this
        one: such an error is counted, and the datagram sent again.
        """
        earlier: OSError | None = None
        while True:
            try:
                self._bytes += source.sock.send(datagram)
                break
            except ConnectionRefusedError:
                self._errors["refused"] += 1
            except OSError as error:
                if error.errno in _BLOCKED or earlier is not None:
                    raise
                earlier = error
        if earlier is not None:
            self._errors[_error_name(earlier)] += 1
        source.sent += 1
        self._next = (self._next + 1) % len(self._sources)

    def _count_failed(self, error: OSError) -> None:
        self._failed += 1
        self._errors[_error_name(error)] += 1
        self._next = (self._next + 1) % len(self._sources)

    async def _wait_until_writable(self, source: _Source, error: OSError, end: float) -> None:
        """Wait for room in the queue, for stop(), or for the end of the run."""
        self._errors["blocked"] += 1
        if error.errno == errno.ENOBUFS:  # the device's queue, which nothing watches
            await asyncio.sleep(SHORTEST_PAUSE)
            return
        left = None if end == math.inf else max(end - self._clock(), 0.0) + SHORTEST_PAUSE
        await asyncio.wait([source.wait_until_writable()], timeout=left)

    async def _pause(self, seconds: float) -> None:
        """Wait that long, or until stop(); 0 seconds give the event loop one turn."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        if self._stopping:
            return
        loop = asyncio.get_running_loop()
        self._pausing = loop.create_future()
        timer = loop.call_later(seconds, _finish, self._pausing)
        try:
            await self._pausing
        finally:
            timer.cancel()
            self._pausing = None


def _error_name(error: OSError) -> str:
    number = error.errno or 0
    return _ERROR_NAMES.get(number) or errno.errorcode.get(number, str(number)).lower()


def _open_socket(target: Address, address: str | None, sockaddr: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(target.family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
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
        source = str(parse_ip(sock.getsockname()[0]))
        raise KernelError(
            f"cannot send to {target} from {source}: {error.strerror}",
            errno=error.errno,
            hint=f"see: ip route get {target.host} from {source}",
        ) from None


def allow_descriptors(number: int) -> None:
    """Raise the soft limit of open files if ``number`` more do not fit; it stays raised.

    Raises StartError when the hard limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(list(Path("/proc/self/fd").iterdir())) + number + _SPARE_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise StartError(
            f"{number:,} sources need {needed:,} open files, and the hard limit is {hard:,}",
            hint=f"use fewer sources, or run as root first: ulimit -Hn {needed}",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
