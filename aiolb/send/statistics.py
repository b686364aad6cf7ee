"""What a publisher did, as a frozen snapshot; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PublisherStatistics:
    """What a publisher did so far.

    ``sent`` datagrams of ``bytes`` payload bytes in all; ``sent_per_source`` splits them by source address.
    ``trains`` is how many trains of two or more some of them left in.
    ``seconds`` were spent in run(), at ``rate_reached`` datagrams per second where ``rate_asked`` were asked
    for (None: as many as possible). ``errors`` counts by name: ``refused`` (nobody listened to an earlier
    datagram), ``blocked`` (the kernel's queue was full and the publisher waited), and others, which left
    ``failed`` datagrams unsent.
    """

    sent: int
    bytes: int
    seconds: float
    rate_asked: float | None
    rate_reached: float
    sources: int
    sent_per_source: Mapping[str, int]
    failed: int
    trains: int
    errors: Mapping[str, int]


def rate_reached(sent: int, seconds: float, rate_asked: float | None) -> float:
    """Datagrams per second; each stands for its interval: 10 at 10/s take 0.9 s, and are 10/s all the same."""
    spent = seconds if rate_asked is None else max(seconds, sent / rate_asked)
    return sent / spent if spent else 0.0


def merge(statistics: Iterable[PublisherStatistics]) -> PublisherStatistics:
    """The statistics of publishers that sent at the same time, as of one; there must be one at least."""
    parts = list(statistics)
    per_source, errors = Counter[str](), Counter[str]()
    for part in parts:
        per_source.update(part.sent_per_source)
        errors.update(part.errors)
    sent, seconds = sum(part.sent for part in parts), max(part.seconds for part in parts)
    rates = [part.rate_asked for part in parts if part.rate_asked is not None]
    rate_asked = sum(rates) if rates else None
    return PublisherStatistics(
        sent=sent,
        bytes=sum(part.bytes for part in parts),
        seconds=seconds,
        rate_asked=rate_asked,
        rate_reached=rate_reached(sent, seconds, rate_asked),
        sources=len(per_source),
        sent_per_source=dict(per_source),
        failed=sum(part.failed for part in parts),
        trains=sum(part.trains for part in parts),
        errors=dict(errors),
    )
