"""Whose turn it is to send, and how many datagrams a turn has; pure."""

from __future__ import annotations

MIN_PIECE = 4
"""Datagrams due per source from which a turn has more than one: fewer gain little and mix the sources less."""


class Turns:
    """The sources take turns; in its turn a source sends a piece of some datagrams.

    Within a round all pieces have the same length, and each source has a turn, so that no source gets ahead of
    another by more than a piece. What is due in the end is spread evenly: after ``n`` datagrams, all of them
    due at once, each source has sent what it would have sent with turns of one datagram.
    """

    def __init__(self, sources: int) -> None:
        self.source = 0
        """Whose turn it is."""
        self._sources = sources
        self._pieces = 0
        self._length = 1
        self._begun = 0

    def plan(self, due: int, room: int, limit: int) -> tuple[int, int]:
        """How many pieces to send next, and their length; each is of the next source, the first of ``source``.

        ``due`` datagrams may be sent, about ``room`` of them before the event loop gets a turn, and at most
        ``limit`` in a piece.
        """
        if not (self._begun or self._pieces):
            share = due // self._sources
            self._length = min(share, limit) if share >= MIN_PIECE else 1
            self._pieces = self._sources * max(1, share // self._length)
        return self._next(due, room)

    def plan_trains(self, due: int, room: int, length: int) -> tuple[int, int]:
        """The same for pieces that all have this length; only the last may be shorter."""
        if not self._begun:
            self._length = length
            self._pieces = max(1, due // length)
        return self._next(due, room)

    def _next(self, due: int, room: int) -> tuple[int, int]:
        if self._begun or due < self._length:
            return 1, min(self._length - self._begun, due)
        return min(self._pieces, due // self._length, max(1, room // self._length)), self._length

    def advance(self, datagrams: int) -> None:
        """That many datagrams of the plan are behind us, sent or given up."""
        pieces, self._begun = divmod(self._begun + datagrams, self._length)
        self._pieces -= pieces
        self.source = (self.source + pieces) % self._sources

    def restart(self) -> None:
        """Forget the plan; it goes on with the source whose turn it is."""
        self._pieces = self._begun = 0
