"""What of a capture is to be replayed, and how, checked; and what became of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from aiolb.address import MAX_PORT, Address, IPNetwork
from aiolb.capture import check_capture
from aiolb.errors import ConfigurationError
from aiolb.pacing import validate_speed
from aiolb.send.config import LOOPBACK, MAX_LOOPBACK_SOURCES, PublisherConfig, source_addresses
from aiolb.send.statistics import PublisherStatistics


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """What to replay, and how; see :class:`aiolb.replay.Replay`. Raises ConfigurationError."""

    target: Address | str
    file: Path
    speed: float | None = None
    rate: float | None = None
    rounds: int = 1
    sources: int | str | IPNetwork | None = None
    port: int | None = None
    count: int | None = None
    duration: float | None = None

    def __post_init__(self) -> None:
        if self.speed is not None:
            validate_speed(self.speed)
            if self.rate is not None:
                raise ConfigurationError(
                    "a replay has a speed or a rate, and this one has both", hint="give --speed or --rate"
                )
        if self.rounds < 1:
            raise ConfigurationError(f"{self.rounds} rounds cannot be", hint="--loop 1 replays the capture once")
        if self.port is not None and not 0 <= self.port <= MAX_PORT:
            raise ConfigurationError(f"{self.port} is no port", hint=f"a port is a number from 0 to {MAX_PORT}")
        if (target := self.sending.numeric_target) is not None:
            self.addresses(target)
        check_capture(self.file)

    @property
    def sending(self) -> PublisherConfig:
        """The same as a publisher takes it, as far as it does."""
        sources = 1 if self.sources is None else self.sources
        return PublisherConfig(self.target, rate=self.rate, count=self.count, duration=self.duration, sources=sources)

    @property
    def rate_asked(self) -> float | None:
        """Datagrams per second, or None where the recorded times or nothing limits them."""
        return None if self.rate == math.inf else self.rate

    def addresses(self, target: Address) -> tuple[int, Iterator[str | None]]:
        """How many sources there can be, and their addresses. Raises ConfigurationError."""
        if self.sources is None and target.ip not in LOOPBACK:
            raise ConfigurationError(
                f"there are addresses for all sources of a capture on IPv4 loopback only, and the target is {target}",
                hint="--sources 1 sends all from one address, --sources CIDR from addresses of this host",
            )
        sources = MAX_LOOPBACK_SOURCES if self.sources is None else self.sending.source_set
        number, addresses = source_addresses(sources, target)
        return number, iter(addresses)


@dataclass(frozen=True, slots=True)
class ReplayStatistics(PublisherStatistics):
    """What a replay did so far, beside what a publisher tells.

    ``rounds`` were begun, and ``packets`` read in them: datagrams from ``captured_sources`` sources to
    ``captured_ports`` (datagrams by port), and ``skipped`` packets, by the reason why. ``late_us`` tells how
    long after they were due datagrams left, in microseconds, where they were due at a time of their own.
    """

    rounds: int
    packets: int
    captured_sources: int
    captured_ports: Mapping[int, int]
    skipped: Mapping[str, int]
    late_us: Mapping[str, float]
