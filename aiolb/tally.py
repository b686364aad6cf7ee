"""How many datagrams a worker holds in its memory, where its supervisor can read it when the worker is dead."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from aiolb.receive.contract import Datagram

_CELL = 8


class Tally:
    """One number for each socket of a worker, in memory that both processes map; each closes its own.

    A batch counts from the moment at which the receiver hands it out, some microseconds after it was taken from the
    kernel; what was handled meanwhile is taken off when the turn is over, or with the next batch.
    """

    def __init__(self, descriptor: int, cells: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, cells * _CELL)
        self._cells = memoryview(self._memory).cast("Q")

    @classmethod
    def create(cls, cells: int) -> Self:
        """New memory for that many sockets, all zero."""
        descriptor = os.memfd_create("aiolb-tally")
        os.truncate(descriptor, cells * _CELL)
        return cls(descriptor, cells)

    @property
    def total(self) -> int:
        """Datagrams held."""
        return sum(self._cells)

    def counting(
        self, cell: int, take: Callable[[Sequence[Datagram]], Any], held: Callable[[], int]
    ) -> Callable[[Sequence[Datagram]], None]:
        """``take`` with the number kept right around it; ``held`` tells how many datagrams are held now."""
        cells = self._cells

        def counted(batch: Sequence[Datagram]) -> None:
            cells[cell] += len(batch)
            take(batch)
            cells[cell] = held()

        return counted

    def update(self, cell: int, held: int) -> None:
        """Put the number right between two batches."""
        self._cells[cell] = held

    def close(self) -> None:
        """Release the memory and the descriptor. Idempotent."""
        if self.descriptor >= 0:
            self._cells.release()
            self._memory.close()
            os.close(self.descriptor)
            self.descriptor = -1
