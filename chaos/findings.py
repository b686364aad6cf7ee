"""What a ledger proves about what was sent: lost, duplicated, split, and who handled which part of a source; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from chaos.ledger import Ledger, Process

NOBODY = 0
"""The process of what was lost."""


@dataclass(frozen=True, slots=True)
class Run:
    """Datagrams of one source in a row that one process handled, or nobody did."""

    process: int
    first: int
    last: int

    @property
    def size(self) -> int:
        """How many they are."""
        return self.last + 1 - self.first


class Findings:
    """The end of a run: a ledger that nobody writes any more, and what was sent of each source (by number)."""

    def __init__(self, ledger: Ledger, sent: Mapping[int, int]) -> None:
        self.sent_of = dict(sent)
        self.processes = {process.number: process for process in ledger.processes}
        self.runs = {source: _runs(ledger, source, number) for source, number in sent.items()}
        """By source, all that was sent in order of sending."""
        self.beyond = sum(max(0, ledger.next_of(source) - number) for source, number in sent.items())
        """Datagrams handled that nobody sent."""

    @property
    def sent(self) -> int:
        """Datagrams sent."""
        return sum(self.sent_of.values())

    @property
    def lost(self) -> int:
        """Datagrams that no process handled."""
        return sum(run.size for runs in self.runs.values() for run in runs if run.process == NOBODY)

    @property
    def received(self) -> int:
        """Datagrams that a process handled."""
        return self.sent - self.lost

    @property
    def duplicated(self) -> int:
        """Datagrams that were handled again."""
        return sum(process.duplicated for process in self.processes.values())

    @property
    def reordered(self) -> int:
        """Datagrams that were handled after a later one of their source."""
        return sum(process.reordered for process in self.processes.values())

    @property
    def stray(self) -> int:
        """Datagrams that the publisher cannot have sent."""
        return self.beyond + sum(process.stray for process in self.processes.values())

    def process_of(self, run: Run) -> Process:
        """Who handled it."""
        return self.processes[run.process]

    def members_of(self, source: int) -> list[int]:
        """The members that a source was with, in order of its datagrams; a member again when it came back."""
        members = [self.process_of(run).member for run in self.runs[source] if run.process != NOBODY]
        return [member for member, _ in groupby(members)]

    @property
    def split(self) -> set[int]:
        """The sources that were with more than one member."""
        return {source for source in self.runs if len(set(self.members_of(source))) > 1}

    def holes(self) -> list[tuple[int, Run, Process | None, Process | None]]:
        """What was lost: source, run, and who handled the datagrams right before and after it."""
        found = []
        for source, runs in self.runs.items():
            for before, hole, after in zip([None, *runs], runs, [*runs[1:], None], strict=False):
                if hole.process == NOBODY:
                    found.append((source, hole, self._by(before), self._by(after)))
        return found

    def _by(self, run: Run | None) -> Process | None:
        return None if run is None else self.process_of(run)

    def lost_after(self) -> Counter[int]:
        """How many datagrams were lost right after each process's last one of a source, by process."""
        lost: Counter[int] = Counter()
        for _, hole, before, _ in self.holes():
            if before is not None:
                lost[before.number] += hole.size
        return lost

    @property
    def torn(self) -> set[int]:
        """The sources of which a process handled datagrams before and after some that it did not."""
        return {source for source, runs in self.runs.items() if _has_repeated(run.process for run in runs)}


def _has_repeated(processes: Iterable[int]) -> bool:
    times = Counter(processes)
    del times[NOBODY]
    return times.total() > len(times)


def _runs(ledger: Ledger, source: int, sent: int) -> list[Run]:
    runs, at = [], 0
    for process, marks in groupby(ledger.marks(source, sent)):
        size = sum(1 for _ in marks)
        runs.append(Run(process, at, at + size - 1))
        at += size
    return runs
