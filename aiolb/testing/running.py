"""A whole group in the process of a test: real sockets on a free port, the balancer that can be had, no pins."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import replace
from functools import partial
from typing import Any, Generic

from aiolb import remarks, sockets
from aiolb.address import Address, parse_ip
from aiolb.bpf.members import Members, join_all
from aiolb.bpf.steering import Joined, JoinOptions
from aiolb.config import ServeConfig
from aiolb.datagram_listener import DatagramListener
from aiolb.errors import ConfigurationError
from aiolb.protocol import Application
from aiolb.server import Server
from aiolb.stats import CollectorStatistics
from aiolb.testing.life import Life
from aiolb.testing.outcomes import DEADLINE, Outcome, Outcomes, UnhandledError
from aiolb.testing.watched import C, Watched, made

BUFFER = 200 << 10
"""Bytes of receive buffer that every user may have: net.core.rmem_max is 208 KiB unless somebody changed it."""
# What is in queues at most while send() sends, in datagrams and in bytes, so that nothing is dropped.
_FLIGHT, _FLIGHT_BYTES = 64, 64 << 10


class RunningGroup(Generic[C]):
    """The members of one group, and senders with any source of this machine; see :func:`group`."""

    def __init__(
        self, joined: Members, watched: Sequence[Watched[C]], lives: Sequence[Life], outcomes: Outcomes
    ) -> None:
        self.address = joined.address
        """Where the group receives."""
        self.balancer = joined.balancer
        """``ebpf``, ``classic`` or ``none``."""
        self.fallback = joined.fallback
        """Why ``auto`` did not take the eBPF balancer; None where it did."""
        self.collectors: list[C] = [member.collector for member in watched]
        """The collectors, by index."""
        self.errors = outcomes.errors
        """What handlers and ``shutdown()`` raised so far."""
        self._members = watched
        self._lives = lives
        self._outcomes = outcomes
        self._senders: dict[str, socket.socket] = {}

    def put(self, *datagrams: bytes, source: str | None = None) -> None:
        """Send datagrams from a source, and do not wait.

        ``source`` is an address of this machine, such as any in 127.0.0.0/8; by default the group's own. Each source
        has one socket. Nothing is handled before the loop turns, and what exceeds a member's receive buffer is lost.

        Raises ConfigurationError for a source that is no address of this machine.
        """
        self._put(self._sender(source), datagrams)

    async def send(self, *datagrams: bytes, source: str | None = None) -> None:
        """``put`` datagrams, as many at a time as fit into a receive buffer, and wait until they are handled.

        Raises what their handlers raised; UnhandledError when the deadline is over.
        """
        __tracebackhide__ = True
        sender = self._sender(source)
        outcomes: list[Outcome] = []
        for flight in _flights(datagrams):
            sent = self._put(sender, flight)
            outcomes += sent
            await self._outcomes.ended(sent)
        await self._outcomes.wait(outcomes)

    async def drained(self) -> None:
        """Wait until all that was put is handled. Raises what handlers raised, and UnhandledError."""
        __tracebackhide__ = True
        await self._outcomes.settled()

    async def reply(self, source: str | None = None) -> bytes:
        """The next datagram that the group sent to a source. Raises UnhandledError when the deadline is over."""
        __tracebackhide__ = True
        sender = self._sender(source)
        try:
            async with asyncio.timeout(self._outcomes.deadline):
                return await asyncio.get_running_loop().sock_recv(sender, 1 << 16)
        except TimeoutError:
            to, deadline = sender.getsockname()[0], self._outcomes.deadline
            raise UnhandledError(f"no reply came to {to} within {deadline:g} s") from None

    def members_of(self, source: str) -> set[int]:
        """The members that got datagrams of a source; one, unless its member left or there is no balancer."""
        host = str(parse_ip(source))
        return {index for index, member in enumerate(self._members) if host in member.sources}

    def statistics(self) -> tuple[CollectorStatistics, ...]:
        """What each member received, handled and sent so far."""
        return tuple(life.server.statistics() for life in self._lives)

    async def stop(self, index: int) -> None:
        """Stop a member as SIGTERM does: its sources go to the others, what is queued is handled. Idempotent.

        Only the eBPF balancer gives the sources of one member to all others.
        """
        await self._lives[index].stop()

    def _put(self, sender: socket.socket, datagrams: Sequence[bytes]) -> list[Outcome]:
        outcomes = []
        for datagram in datagrams:
            sender.send(datagram)
            outcomes.append(self._outcomes.expect(datagram, sender.getsockname()))
        return outcomes

    def _sender(self, source: str | None) -> socket.socket:
        host = _reachable(self.address).host if source is None else str(parse_ip(source))
        if host not in self._senders:
            self._senders[host] = _connected(host, _reachable(self.address))
        return self._senders[host]

    def close(self) -> None:
        """Close the senders."""
        while self._senders:
            self._senders.popitem()[1].close()
        self._outcomes.give_up_all()


@asynccontextmanager
async def group(
    app: Callable[[], C],
    *,
    members: int = 3,
    host: str = "127.0.0.1",
    raise_errors: bool = True,
    deadline: float | None = DEADLINE,
    **settings: Any,
) -> AsyncIterator[RunningGroup[C]]:
    """Run a group on a free port of ``host``, all members in the running loop, and stop it at the end of the block.

    ``app`` is a collector's class, or a function that makes one, called for each member. ``settings`` are fields of
    :class:`aiolb.ServeConfig`. ``balancer`` is ``auto`` there: eBPF where this user may, else classic, which is
    logged and told by the group. The group is not pinned: nobody else can join it, and nothing of it is left behind.
    ``raise_errors`` and ``deadline`` as in :func:`aiolb.testing.collector`.

    Raises ConfigurationError, StartError.
    """
    config = ServeConfig(bind=(Address(host, 0),), count=members, **{"rcvbuf": BUFFER, **settings})
    lives: list[Life] = []
    outcomes = Outcomes(raising=raise_errors, deadline=deadline, remark=partial(_drops, lives))
    with closing(_joined(config)) as joined:
        watched = [Watched(made(app), outcomes) for _ in range(members)]
        lives += [Life(Server(member, replace(config, index=index))) for index, member in enumerate(watched)]
        running = RunningGroup(joined, watched, lives, outcomes)
        try:
            for index, life in enumerate(lives):
                await life.start(partial(_listen, joined[index], life.server.config, watched[index]))
            yield running
        finally:
            await _stop(lives)
            running.close()
    outcomes.check()


def _joined(config: ServeConfig) -> Members:
    """The sockets of all members, bound and in their places."""
    wanted = JoinOptions.of(config)
    options = replace(wanted, group=replace(wanted.group, bpffs=None))
    with ExitStack() as on_error, sockets.reserved_port(config.bind[0]) as address:
        joined = join_all(address, partial(sockets.bind_buffered, size=config.rcvbuf), options)
        on_error.callback(joined.close)
        remarks.on_joined(address, joined, joined[0].sock, config.rcvbuf)
        on_error.pop_all()
        return joined


def _listen(joined: Joined, config: ServeConfig, application: Application, address: Address) -> DatagramListener:
    return DatagramListener.inherited(address, joined, application, config)


async def _stop(lives: Iterable[Life]) -> None:
    """Stop all members at the same time, and raise the first error of one that did not stop well."""
    for error in await asyncio.gather(*(life.stop() for life in lives), return_exceptions=True):
        if error is not None:
            raise error


def _drops(lives: Iterable[Life]) -> str:
    drops = sum(life.server.statistics().kernel_drops for life in lives)
    return f"; the kernel dropped {drops} for lack of room (rcvbuf)" if drops else ""


def _flights(datagrams: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The datagrams in parts that fit into a receive buffer together."""
    flight: list[bytes] = []
    for datagram in datagrams:
        if flight and (len(flight) == _FLIGHT or sum(map(len, flight)) + len(datagram) > _FLIGHT_BYTES):
            yield flight
            flight = []
        flight.append(datagram)
    if flight:
        yield flight


def _reachable(address: Address) -> Address:
    """Where to send to: a loopback address for a wildcard."""
    return Address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host), address.port)


def _connected(source: str, target: Address) -> socket.socket:
    sock = socket.socket(target.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind((source, 0))
        sock.connect((target.host, target.port))
    except OSError as error:
        sock.close()
        raise ConfigurationError(
            f"{source} cannot send to {target}: {error.strerror}",
            hint="a source is an address of this machine, of the same family as the group's",
        ) from error
    return sock
