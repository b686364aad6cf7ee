"""Checks of the kernel: what is asked, and how bad another answer than yes is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiolb.bpf import probe
from aiolb.bpf.probe import Finding, Support
from aiolb.diagnosis import Diagnosis, Level

_NOT_ASKED = Finding(Support.UNKNOWN, "not asked, as bpf(2) is blocked")


@dataclass(frozen=True, slots=True)
class Rated:
    """A probe, how bad another answer than yes is, and in ``lost`` what is missing then.

    ``bpf``: whether it calls bpf(2).
    """

    check: str
    ask: Callable[[], Finding]
    lost: str
    no: Level = Level.WARNING
    unknown: Level = Level.WARNING
    bpf: bool = False

    def diagnose(self, *, bpf: bool = True) -> Diagnosis:
        """Ask, but not where it takes bpf(2) and ``bpf`` says that this may not be called."""
        finding = self.ask() if bpf or not self.bpf else _NOT_ASKED
        if finding:
            return Diagnosis(self.check, Level.OK, finding.reason)
        if finding.support is Support.UNKNOWN and self.unknown is not Level.PROBLEM:
            return Diagnosis(self.check, self.unknown, finding.reason, finding.hint, finding.lasting)
        level = self.no if finding.support is Support.NO else self.unknown
        return Diagnosis(self.check, level, f"{finding.reason}; {self.lost}", finding.hint, finding.lasting)


KERNEL = (
    Rated(
        "balancer",
        probe.balancer,
        "without it there is no failover, no takeover and no `aiolb status`",
        no=Level.PROBLEM,
        unknown=Level.PROBLEM,
        bpf=True,
    ),
    Rated("batch updates", probe.batch_updates, "a group cannot be made without", no=Level.PROBLEM, bpf=True),
    Rated("batch lookups", probe.batch_lookups, "without, statistics cost a call for each value", bpf=True),
    Rated("ring buffer", probe.ring_buffer, "a group cannot be made without", no=Level.PROBLEM, bpf=True),
    Rated("memlock", probe.memlock, "where maps count, each group takes some MiB of it", bpf=True),
    Rated("membarrier", probe.packets_in_flight, "without, a member that leaves waits 0.2 s"),
)
"""What each collector needs of the kernel."""

OF_PROTOCOL = {
    "udp": (
        Rated("UDP GRO", probe.receive_trains, "without, datagrams are received one by one"),
        Rated("UDP GSO", probe.send_trains, "without, aiolb flood sends datagrams one by one"),
    ),
    "tcp": (
        Rated(
            "migration",
            probe.migration,
            "without, connections that wait at a socket that is closed are broken",
            bpf=True,
        ),
    ),
}
"""And what only collectors of datagrams, or of connections, do."""

BCC = Rated("bcc", probe.bcc, "only --compile and --debug need it")
