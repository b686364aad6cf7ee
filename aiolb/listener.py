"""One bound socket in its group, whatever it receives: opened, watched, left, drained or handed over, closed."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

import structlog

from aiolb import binding, logs, remarks, sockets
from aiolb.bpf import steering
from aiolb.bpf.changes import SlotsChange
from aiolb.bpf.group import Membership
from aiolb.bpf.group_name import GroupName
from aiolb.bpf.steering import Joined, JoinOptions
from aiolb.reporter import Reporter

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from aiolb.address import Address
    from aiolb.config import ServeConfig
    from aiolb.observed import Observed
    from aiolb.stats import SocketStatistics, StreamSocketStatistics
    from aiolb.tally import Tally

CANCEL_TIMEOUT = 5.0
"""Seconds that a cancelled handler has to clean up."""
DROPS_LOG_INTERVAL = 5.0
"""Seconds between two log lines about the kernel's drops on one socket."""


class Listener(ABC):
    """A member's socket on one address, from ``open`` to ``close``; owns the socket and the place in the group."""

    _reporter: Reporter
    """What tells the group of this socket; each kind makes its own."""

    @property
    @abstractmethod
    def drops_hint(self) -> str:
        """What to do against the kernel's drops."""

    def observe(self) -> Observed:
        """Its group now, and of the members this one alone. Any thread may call it until ``close()``."""
        from aiolb.bpf import snapshot  # a start needs neither
        from aiolb.observed import Observed

        return Observed(
            GroupName(self._protocol, self.address),
            self.balancer,
            snapshot.take(self._place.group) if isinstance(self._place, Membership) else None,
            only=self._index,
            told={self._index: self._reporter.latest},
            key=None if self.key is None else str(self.key),
        )

    def __init__(
        self,
        address: Address,
        joined: Joined,
        application: Any,  # each kind has another one
        config: ServeConfig,
        *,
        forget: bool,
    ) -> None:
        self.address = address
        self.balancer = joined.balancer
        self.key = joined.key
        self._place = joined.place
        self._application = application
        self._weight, self._drained = joined.place.weight, False
        self._sock = joined.sock
        self._index = config.index
        self._protocol = config.protocol
        self._count = joined.place.count
        self._left = False
        self._forget = forget
        self._log = structlog.get_logger().bind(bind=str(address))
        self._memory = sockets.memory(self._sock)
        # An inherited socket may have drops that another worker has told of.
        self._drops_reported = (self._memory.drops, float("-inf"))

    @classmethod
    def open(cls, address: Address, application: Any, config: ServeConfig) -> Self:
        """Bind, join and begin to receive with the next turn of the running loop.

        Raises what :func:`aiolb.bpf.steering.join` raises; nothing is left behind then.
        """
        with sockets.reserved_port(address, config.protocol) as numbered:
            joined = steering.join(numbered, binding.binder(config), JoinOptions.of(config))
        try:
            remarks.on_joined(numbered, joined, joined.sock, binding.queue(config))
            # Nobody comes back to a port that the kernel chose.
            return cls(numbered, joined, application, config, forget=address.port == 0)
        except BaseException:
            joined.sock.close()
            joined.place.close()
            raise

    @classmethod
    def inherited(cls, address: Address, joined: Joined, application: Any, config: ServeConfig) -> Self:
        """Receive, from the next turn of the running loop on, from a socket whose place somebody else takes care of."""
        binding.reopen(joined.sock)
        return cls(address, joined, application, config, forget=False)

    def undo(self) -> None:
        """Take the group away in ``close()`` if there was none before: for a start that fails."""
        if isinstance(self._place, Membership) and self._place.group.made:
            self._forget = True

    @property
    def count(self) -> int:
        """The group's number of members when it was last looked at."""
        return self._count

    def watch(self, now: float) -> bool:
        """Look at the group and at the kernel's drops, log what changed; whether the place was taken over.

        ``now``: seconds of the loop's clock.
        """
        self._report_drops(now)
        self._reporter.write()
        if (count := self._place.count) != self._count:
            self._log.info("count_changed", before=self._count, now=count)
            self._count = count
            logs.MEMBER.get({})["count"] = count
            if self._index >= count:
                self._log.warning("outside", hint=f"the group has no index {self._index} any more: nothing comes here")
        self._look_at_slots()
        if self._place.restore():
            self._log.warning("place_restored", reason="it was taken over by a socket that has died")
            self._reporter.claim()
        return self._place.displaced

    def _look_at_slots(self) -> None:
        if (weight := self._place.weight) != self._weight:
            self._log.info("weight_changed", before=self._weight, now=weight)
            self._weight = weight
        if (drained := self._place.drained) != self._drained:
            self._drained = drained
            if drained:
                self._log.warning("drained", hint=f"nothing comes here until: aiolb undrain {self._index}")
            else:
                self._log.info("undrained")
        if (change := self._place.slots_change()) is not None:
            self.slots_changed(change)

    def slots_changed(self, change: SlotsChange) -> None:
        """Tell the collector which of its sources may have left or come; what it raises is logged."""
        self._log.info("slots_changed", left=len(change.left), came=len(change.came))
        try:
            self._application.on_slots_changed(change)
        except Exception:  # noqa: BLE001 - whatever the user's code raises, datagrams still come
            self._log.exception("on_slots_changed_failed")

    def _report_drops(self, now: float, *, last: bool = False) -> None:
        reported, at = self._drops_reported
        drops = self.memory().drops
        if drops > reported and (last or now - at >= DROPS_LOG_INTERVAL):
            self._drops_reported = (drops, now)
            self._log.warning("kernel_drops", packets=drops - reported, total=drops, hint=self.drops_hint)

    def memory(self) -> sockets.SocketMemory:
        """The socket's queue and drops in the kernel; the last known ones once it is closed."""
        if self._sock.fileno() >= 0:
            self._memory = sockets.memory(self._sock)
        return self._memory

    def leave(self) -> None:
        """Stop being selected by the balancer; what is queued or in flight still arrives. Idempotent."""
        if not self._left:
            self._left = True
            self._place.leave()

    @staticmethod
    async def _packets_in_flight() -> None:
        """Return when every packet that was steered here before this call has arrived."""
        await asyncio.get_running_loop().run_in_executor(None, steering.wait_for_packets_in_flight)

    async def _ended(self, ending: Awaitable[None]) -> None:
        """Wait for the cancelled handlers, but not for ever for one that will not be cancelled."""
        task = asyncio.ensure_future(ending)
        await asyncio.wait({task}, timeout=CANCEL_TIMEOUT)
        if not task.cancel():
            task.result()
        else:
            self._log.error("handlers_stuck", seconds=CANCEL_TIMEOUT, hint="a handler keeps on after CancelledError")

    @abstractmethod
    def tell(self, tally: Tally, cell: int) -> None:
        """Keep count in ``tally`` of what was taken and is not handled yet."""

    @abstractmethod
    def held(self) -> int:
        """What was taken and is not handled yet."""

    @abstractmethod
    async def drain(self) -> None:
        """Take everything that was sent to this member before it left, and wait until it is handled."""

    @abstractmethod
    def release(self) -> bool:
        """Take no more: what is queued is for the socket's next owner; whether that one may begin at once. Idempotent.

        If not, it may when ``hand_over`` has returned.
        """

    @abstractmethod
    async def hand_over(self) -> None:
        """Release the socket, and wait until what was taken is handled."""

    @abstractmethod
    async def close(self) -> int:
        """Cancel what is still being handled, and close; how much was abandoned. Idempotent.

        What still waits in the kernel's queue counts among it, unless it was handed over.
        """

    @abstractmethod
    def statistics(self) -> SocketStatistics | StreamSocketStatistics:
        """What came to this socket so far."""
