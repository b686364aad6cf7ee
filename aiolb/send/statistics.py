"""What a publisher did, as a frozen snapshot; pure."""

from __future__ import annotations

from collections.abc import Mapping
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
