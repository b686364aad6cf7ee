"""What becomes of each datagram that a test sent, or of each connection, and what handlers raised.

``__tracebackhide__`` keeps functions out of what pytest shows of an error: their user wants to see the handler.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence

from aiolb.errors import AiolbError

DEADLINE = 10.0
"""Seconds after which what must be handled counts as unhandled, unless told otherwise."""

Outcome = asyncio.Future[BaseException | None]
"""Done when the handler of a datagram or a connection ended: what it raised, or None."""


class UnhandledError(AiolbError, TimeoutError):
    """A datagram or a connection was not handled within the deadline, or not at all."""


class Outcomes:
    """Keeps account of the datagrams of one test, or of its connections, each from ``expect`` until its handler ended.

    Each error of a handler is raised once: by who waits for that one, else by ``check``. Without ``raising`` it is
    only kept in ``errors``. ``deadline`` is in seconds; None waits for ever. Messages call them ``units``, and
    ``remark`` is added to that of what was not handled.
    """

    def __init__(self, *, raising: bool, deadline: float | None, units: str, remark: Callable[[], str] = str) -> None:
        self.errors: list[BaseException] = []
        self._raising = raising
        self.deadline = deadline
        self._units = units
        self._remark = remark
        self._unseen: list[BaseException] = []
        # Equal datagrams of one address cannot be told apart, so the first to be handled is the first that was sent.
        self._expected: defaultdict[Hashable, deque[Outcome]] = defaultdict(deque)

    def expect(self, unit: Hashable) -> Outcome:
        """A datagram, as the pair that collectors get, is on its way, or a connection by what tells it from others."""
        outcome: Outcome = asyncio.get_running_loop().create_future()
        self._expected[unit].append(outcome)
        return outcome

    async def wait(self, outcomes: Sequence[Outcome]) -> None:
        """Return when these were handled. Raises what their handlers raised, UnhandledError."""
        __tracebackhide__ = True
        await self.ended(outcomes)
        errors = [error for outcome in outcomes if (error := outcome.result()) is not None]
        for error in errors:
            if isinstance(error, UnhandledError):
                raise error
        self._raise(errors)

    async def settled(self) -> None:
        """Return when everything was handled. Raises what handlers raised, UnhandledError."""
        __tracebackhide__ = True
        while outcomes := [outcome for waiting in self._expected.values() for outcome in waiting]:
            await self.ended(outcomes)
        self.check()

    def check(self) -> None:
        """Raise what handlers raised and nobody was told of; several errors as a group."""
        __tracebackhide__ = True
        self._raise(list(self._unseen))

    async def ended(self, outcomes: Sequence[Outcome]) -> None:
        """Return when these handlers ended. Raises UnhandledError."""
        __tracebackhide__ = True
        _, pending = await asyncio.wait(outcomes, timeout=self.deadline) if outcomes else ((), ())
        if pending:
            unhandled = f"{len(pending)} of {len(outcomes)} {self._units} not handled"
            raise UnhandledError(
                f"{unhandled} after {self.deadline:g} s{self._remark()}",
                hint="a handler waits for something, or deadline= is too short",
            )

    def _raise(self, errors: Iterable[BaseException]) -> None:
        __tracebackhide__ = True
        if not self._raising:
            return
        different = list({id(error): error for error in errors}.values())
        self._unseen = [error for error in self._unseen if all(error is not seen for seen in different)]
        if len(different) == 1:
            raise different[0]
        if different:
            raise BaseExceptionGroup(f"handlers raised {len(different)} errors", different)

    # What a watched collector calls

    def handled(self, batch: Iterable[Hashable]) -> None:
        """The handler of these returned."""
        self._end(batch, None)

    def failed(self, error: BaseException, batch: Iterable[Hashable] = ()) -> None:
        """The handler of these, or something else of the collector, raised."""
        self.errors.append(error)
        if isinstance(error, asyncio.CancelledError):  # raised by a test, it would cancel that one
            cancelled, error = error, AiolbError("a handler was cancelled, and not by its server")
            error.__cause__ = cancelled
        self._unseen.append(error)
        self._end(batch, error)

    def given_up(self, batch: Iterable[Hashable]) -> None:
        """The handler of these was cancelled by its server."""
        self._end(batch, UnhandledError(f"the collector stopped before the {self._units[:-1]} was handled"))

    def give_up_all(self) -> None:
        """Nothing is handled any more."""
        self.given_up([unit for unit, waiting in self._expected.items() for _ in waiting])

    def _end(self, batch: Iterable[Hashable], error: BaseException | None) -> None:
        for unit in batch:
            # A timed one is equal to the pair that it is; what the test did not send is not expected.
            if waiting := self._expected.get(unit):
                waiting.popleft().set_result(error)
                if not waiting:
                    del self._expected[unit]
