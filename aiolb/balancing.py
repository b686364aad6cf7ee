"""What a supervisor does about slots: tells workers which have left or come, and moves them where load is uneven."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from aiolb.bpf.balance import BOUND, INTERVAL, Balance, Look
from aiolb.bpf.changes import SlotsChange, SlotsWatch
from aiolb.bpf.slot_sources import sources_in
from aiolb.errors import AiolbError, ConfigurationError
from aiolb.waiting import happens

if TYPE_CHECKING:
    from aiolb.bpf.group import Group

LONGEST_INTERVAL = 600.0
"""Seconds; a slot's counter must not come round between two looks."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RebalancePolicy:
    """When slots are moved: ``bound`` times its share is too busy, looked at every ``interval`` seconds.

    Raises ConfigurationError for a bound that is not above 1, and for an interval outside of 0.1 … 600.
    """

    bound: float = BOUND
    interval: float = INTERVAL

    def __post_init__(self) -> None:
        if not 1 < self.bound < float("inf"):
            raise ConfigurationError(
                f"the bound is above 1.0 times the mean, not {self.bound:g}", hint="e.g. --rebalance-bound 1.1"
            )
        if not 0.1 <= self.interval <= LONGEST_INTERVAL:  # noqa: PLR2004 - said in the message
            raise ConfigurationError(f"the interval is 0.1 to {LONGEST_INTERVAL:g} seconds, not {self.interval:g}")


class SlotWatches:
    """Looks at the slots of a supervisor's groups, and at who is drained."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups
        self._watches = [SlotsWatch(group) for group in groups]
        self._shares: list[Mapping[int, tuple[int, bool]]] = [{} for _ in groups]
        self.changes()

    def changes(self) -> list[tuple[int, SlotsChange]]:
        """What has changed since the last call: index of the member, and its change. Weights and drains are logged."""
        for number, group in enumerate(self._groups):
            before, now = self._shares[number], dict(enumerate(group.weights))
            self._shares[number] = now
            for index, (weight, drained) in now.items():
                _tell(str(group.address), index, before.get(index), weight, drained=drained)
        return [entry for watch in self._watches for entry in watch.look().items()]


def _tell(bind: str, index: int, before: tuple[int, bool] | None, weight: int, *, drained: bool) -> None:
    log = _log.bind(bind=bind, index=index)
    if before is not None and weight != before[0]:
        log.info("weight_changed", before=before[0], now=weight)
    if drained != (before is not None and before[1]):
        if drained:
            log.warning("drained", hint=f"nothing comes to it until: aiolb undrain {index}")
        else:
            log.info("undrained")


async def keep_even(
    groups: Sequence[Group], policy: RebalancePolicy, whole: Callable[[], bool], stopping: asyncio.Event
) -> None:
    """Look at the load in every interval, and move slots where a member is too busy, until ``stopping`` is set.

    Only while ``whole()``: what belongs to other processes is not to be changed. What fails is logged.
    """
    keepers = [Keeper(group, policy) for group in groups]
    while not await happens(stopping, seconds=policy.interval):
        for keeper in keepers:
            try:
                if whole():
                    await keeper.step()
            except (AiolbError, OSError) as error:
                _log.error("rebalance_failed", bind=str(keeper.group.address), reason=str(error))


class Keeper:
    """One group that is kept even."""

    def __init__(self, group: Group, policy: RebalancePolicy) -> None:
        self.group = group
        self._balance = Balance(group, policy.bound)
        self._told: set[int] = set()
        self._log = _log.bind(bind=str(group.address))

    async def step(self) -> None:
        """Look, log what is remarkable, and move what is planned. Raises KernelError, OSError."""
        reading = self._balance.read(time.monotonic())
        # A plan takes up to some tenths of a second with many members, and workers are to be looked after meanwhile.
        look = await asyncio.get_running_loop().run_in_executor(None, self._balance.consider, reading)
        self._tell_oversized(look)
        if look.plan is not None and self._balance.carry_out(look):
            self._log.info(
                "rebalanced",
                moves=len(look.plan.moves),
                busiest_before=round(look.imbalance, 3),
                busiest_after=round(look.imbalance_after, 3),
                bound=self._balance.bound,
            )

    def _tell_oversized(self, look: Look) -> None:
        """Once for each slot; its load may be above and below a share by turns."""
        new = [(slot, load) for slot, load in look.oversized if slot not in self._told]
        if not new:
            return
        self._told.update(slot for slot, _ in new)
        slot, load = new[0]
        self._log.warning(
            "slots_too_big",
            slots=len(new),
            biggest=slot,
            share_of_load=round(load / sum(look.loads), 3),
            sources=", ".join(map(str, sources_in(self.group, [slot]).get(slot, []))) or None,
            hint="each is most likely a single source: only --key flow can split it",
        )
