"""Bursts of datagrams: what is due goes out in turns, and what the kernel says about it is settled and counted."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Sequence

from aiolb.errors import KernelError
from aiolb.pacing import SHORTEST_PAUSE
from aiolb.send import gso
from aiolb.send.choose import sender_class
from aiolb.send.config import PublisherConfig
from aiolb.send.refusals import BLOCKED, name_of
from aiolb.send.sources import Source
from aiolb.send.turns import MIN_PIECE, Turns

BURST = 256
"""Datagrams sent one by one before the event loop gets a turn: about 1 ms."""

TRAIN_BURST = 2048
"""Datagrams sent in trains before the event loop gets a turn: up to 1 ms, where the receiver takes no trains."""


class Bursts:
    """Sends the datagram of ``config`` from open sources. Raises KernelError where trains must be and cannot.

    A connected socket reports what became of an earlier datagram (an ICMP error) in place of sending this one.
    So after an error a piece is sent again: if that works, the error is counted, and nothing was lost; if it
    fails again, this piece has failed.
    """

    def __init__(self, config: PublisherConfig, sources: Sequence[Source], rate: float | None, run: int) -> None:
        self.blocked: tuple[Source, int] | None = None
        """The source whose queue was full in the last burst, and the errno that said so."""
        self.errors: Counter[str] = Counter()
        self.failed = 0
        self.trains = 0
        self._config = config
        self._size = config.datagram_size
        self._sources = sources
        self._turns = Turns(len(sources))
        self._suspect = 0
        # By the rate, not by what is due: a loop that was late for once is no reason to send in trains.
        self._rate_is_high = rate is None or rate * SHORTEST_PAUSE >= MIN_PIECE * len(sources)
        self._sender = sender_class()(
            [source.sock for source in sources],
            config.datagram,
            limit=gso.longest(self._size),
            trains=self._switch_trains_on(),
            run=run if config.stamp else None,
            numbers=[source.number for source in sources],
        )

    @property
    def sent(self) -> list[int]:
        """How many datagrams each source sent."""
        return self._sender.sent

    def restart(self) -> None:
        """Begin a new round of turns, with the source whose turn it is."""
        self._turns.restart()

    def send(self, due: int) -> int:
        """Send up to ``due`` datagrams, but no more than fit one turn of the event loop; return how many are behind us.

        A full queue ends a burst early, and sets ``blocked``. Raises KernelError when the kernel refuses the
        trains that must be.
        """
        done, self.blocked = 0, None
        room = TRAIN_BURST if self._sender.trains else BURST
        while done < min(due, room) and self.blocked is None:
            pieces, length = self._plan(due - done, room - done)
            sent = self._sender.send(self._turns.source, pieces, length)
            if sent:
                self._count_sent(sent, length)
            if self._sender.error:
                sent += self._settle(self._sender.error, length)
            done += sent
        return done

    def count_error(self, number: int) -> None:
        """Count what the kernel said, under its name."""
        self.errors[name_of(number)] += 1

    def _plan(self, due: int, room: int) -> tuple[int, int]:
        if self._config.train > 1:
            return self._turns.plan_trains(due, room, self._config.train)
        return self._turns.plan(due, room, self._sender.limit if self._rate_is_high else 1)

    def _count_sent(self, sent: int, length: int) -> None:
        self._turns.advance(sent)
        if self._sender.trains and length > 1:
            self.trains += sent // length
        if self._suspect:
            self.count_error(self._suspect)
            self._suspect = 0

    def _settle(self, error: int, length: int) -> int:
        """Decide about a piece that was not sent; returns how many of its datagrams are given up."""
        if error in BLOCKED:
            self.blocked = self._sources[self._turns.source], error
            self.count_blocked()
        elif error == errno.ECONNREFUSED:
            self.count_error(error)
        elif self._sender.trains and length > 1 and error in gso.REFUSALS:
            self._trains_refused(error)
        elif not self._suspect:
            self._suspect = error
        else:
            return self._give_up(error, length if self._sender.trains else 1)
        return 0

    def count_blocked(self) -> None:
        """Count that a queue was full."""
        self.errors["blocked"] += 1

    def _give_up(self, error: int, datagrams: int) -> int:
        self.count_error(error)
        self.failed += datagrams
        self._suspect = 0
        self._turns.advance(datagrams)
        return datagrams

    def _switch_trains_on(self) -> bool:
        if not self._config.may_send_trains or not (self._rate_is_high or self._config.train > 1):
            return False
        try:
            for source in self._sources:
                source.make_trains(self._size)
        except KernelError:
            if self._config.gso != "auto":
                raise
            self._switch_trains_off()
            return False
        return True

    def _switch_trains_off(self) -> None:
        for source in self._sources:
            source.make_trains(0)

    def _trains_refused(self, error: int) -> None:
        if self._config.gso != "auto":
            raise KernelError(
                f"the kernel refuses trains of {self._config.gso} datagrams of {self._size:,} bytes to "
                f"{self._config.target}: {os.strerror(error)}",
                errno=error,
                hint="use a smaller size, or no trains (--gso off)",
            )
        self._sender.trains = False
        self._switch_trains_off()
        self._turns.restart()
