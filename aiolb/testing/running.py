"""A whole group in the process of a test: real sockets on a free port, the balancer that can be had, no pins."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, closing
from dataclasses import replace
from functools import partial
from typing import Any, overload

from aiolb import binding, remarks, sockets
from aiolb.address import Address
from aiolb.base_collector import BaseCollector, kind_of
from aiolb.bpf.members import Members, join_all
from aiolb.bpf.steering import Joined, JoinOptions
from aiolb.config import UNITS, ServeConfig
from aiolb.listener import Listener
from aiolb.listeners import LISTENERS
from aiolb.server import Server
from aiolb.stats import CollectorStatistics
from aiolb.testing.life import Life
from aiolb.testing.outcomes import DEADLINE, Outcome, Outcomes, UnhandledError
from aiolb.testing.running_base import RunningBase, stop_all
from aiolb.testing.running_streams import RunningStreamGroup
from aiolb.testing.watched import C, S, Watched, WatchedStream, made

BUFFER = 200 << 10
"""Bytes of receive buffer that every user may have: net.core.rmem_max is 208 KiB unless somebody changed it."""
# What is in queues at most while send() sends, in datagrams and in bytes, so that nothing is dropped.
_FLIGHT, _FLIGHT_BYTES = 64, 64 << 10


class RunningGroup(RunningBase[C]):
    """The members of one group, and senders with any source of this machine; see :func:`group`."""

    def __init__(
        self, joined: Members, watched: Sequence[Watched[C]], lives: Sequence[Life], outcomes: Outcomes
    ) -> None:
        super().__init__(joined, watched, lives, outcomes)
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

    def statistics(self) -> tuple[CollectorStatistics, ...]:
        """What each member received, handled and sent so far."""
        return tuple(life.server.statistics() for life in self._lives)

    def _put(self, sender: socket.socket, datagrams: Sequence[bytes]) -> list[Outcome]:
        outcomes = []
        for datagram in datagrams:
            sender.send(datagram)
            outcomes.append(self._outcomes.expect((bytes(datagram), sender.getsockname())))
        return outcomes

    def _sender(self, source: str | None) -> socket.socket:
        host = self._host(source)
        if host not in self._senders:
            self._senders[host] = self._connected(host)
        return self._senders[host]

    def _connected(self, source: str) -> socket.socket:
        target, sock = self._target, self._bound(socket.SOCK_DGRAM, source)
        try:
            sock.connect((target.host, target.port))
        except OSError as error:
            sock.close()
            raise self._cannot_send(source, error) from error
        return sock

    def close(self) -> None:
        """Close the senders."""
        while self._senders:
            self._senders.popitem()[1].close()
        self._outcomes.give_up_all()


@overload
def group(
    app: Callable[[], C],
    *,
    members: int = 3,
    host: str = "127.0.0.1",
    raise_errors: bool = True,
    deadline: float | None = DEADLINE,
    **settings: Any,
) -> AbstractAsyncContextManager[RunningGroup[C]]: ...


@overload
def group(
    app: Callable[[], S],
    *,
    members: int = 3,
    host: str = "127.0.0.1",
    raise_errors: bool = True,
    deadline: float | None = DEADLINE,
    **settings: Any,
) -> AbstractAsyncContextManager[RunningStreamGroup[S]]: ...


def group(
    app: Callable[[], Any],
    *,
    members: int = 3,
    host: str = "127.0.0.1",
    raise_errors: bool = True,
    deadline: float | None = DEADLINE,
    **settings: Any,
) -> AbstractAsyncContextManager[Any]:
    """Run a group on a free port of ``host``, all members in the running loop, and stop it at the end of the block.

    ``app`` is a collector's class, or a function that makes one, called for each member; collectors of connections
    get a port of connections. ``settings`` are fields of :class:`aiolb.ServeConfig`. ``balancer`` is ``auto`` there:
    eBPF where this user may, else classic, which is logged and told by the group. The group is not pinned: nobody
    else can join it, and nothing of it is left behind. ``raise_errors`` and ``deadline`` as in
    :func:`aiolb.testing.collector`.

    Raises ConfigurationError, StartError.
    """
    return _running(app, Address(host, 0), settings, members=members, raise_errors=raise_errors, deadline=deadline)


@asynccontextmanager
async def _running(
    app: Callable[[], BaseCollector],
    bind: Address,
    settings: dict[str, Any],
    *,
    members: int,
    raise_errors: bool,
    deadline: float | None,
) -> AsyncIterator[RunningBase[Any]]:
    made_by = [made(app) for _ in range(members)]
    protocol = kind_of(type(made_by[0])).protocol if made_by else "udp"
    if protocol == "udp":
        settings = {"rcvbuf": BUFFER, **settings}
    config = ServeConfig(bind=(bind,), count=members, **{"protocol": protocol, **settings})
    lives: list[Life] = []
    outcomes = Outcomes(
        raising=raise_errors, deadline=deadline, units=UNITS[protocol], remark=partial(_drops, lives, config.protocol)
    )
    with closing(_joined(config)) as joined:
        watch, kind = (Watched, RunningGroup) if protocol == "udp" else (WatchedStream, RunningStreamGroup)
        watched: list[Any] = [watch(collector, outcomes) for collector in made_by]
        lives += [Life(Server(member, replace(config, index=index))) for index, member in enumerate(watched)]
        running: RunningBase[Any] = kind(joined, watched, lives, outcomes)
        try:
            for index, life in enumerate(lives):
                await life.start(partial(_listen, joined[index], life.server.config, watched[index]))
            yield running
        finally:
            await stop_all(lives)
            running.close()
    outcomes.check()


def _joined(config: ServeConfig) -> Members:
    """The sockets of all members, bound and in their places."""
    wanted = JoinOptions.of(config)
    options = replace(wanted, group=replace(wanted.group, bpffs=None))
    with ExitStack() as on_error, sockets.reserved_port(config.bind[0], config.protocol) as address:
        joined = join_all(address, binding.binder(config), options)
        on_error.callback(joined.close)
        remarks.on_joined(address, joined, joined[0].sock, binding.queue(config))
        on_error.pop_all()
        return joined


def _listen(joined: Joined, config: ServeConfig, application: Any, address: Address) -> Listener:
    return LISTENERS[config.protocol].inherited(address, joined, application, config)


def _drops(lives: Iterable[Life], protocol: str) -> str:
    drops = sum(life.server.statistics().kernel_drops for life in lives)
    setting = "backlog" if protocol == "tcp" else "rcvbuf"
    return f"; the kernel dropped {drops} for lack of room ({setting})" if drops else ""


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
