"""What ``aiolb flood`` tells in the end: for people, and as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aiolb.errors import AiolbError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiolb.cli.flood_workers import Workers
    from aiolb.echo import EchoPublisher
    from aiolb.publisher import Publisher
    from aiolb.replay import Replay
    from aiolb.replay_config import ReplayConfig, ReplayStatistics
    from aiolb.round_trips import EchoStatistics
    from aiolb.send.statistics import PublisherStatistics

    Sending = Publisher | Workers | Replay | EchoPublisher

PORTS_TOLD = 4
"""Ports that the summary names; a capture of everything may have thousands."""


def digits(rate: float) -> int:
    """Digits of a rate after the point that still mean something."""
    return 0 if rate >= 1000 else 1 if rate >= 10 else 2  # noqa: PLR2004 - powers of ten


def errors(statistics: PublisherStatistics) -> list[str]:
    """What went wrong, by name."""
    failed = [f"failed {statistics.failed:,}"] if statistics.failed else []
    return failed + [f"{name} {number:,}" for name, number in statistics.errors.items()]


def summary(publisher: Sending, statistics: PublisherStatistics) -> str:
    """Some lines for people."""
    from aiolb.replay_config import ReplayStatistics
    from aiolb.round_trips import EchoStatistics

    lines = _sent(publisher, statistics)
    if isinstance(statistics, ReplayStatistics):
        lines += _replayed(statistics)
    if isinstance(statistics, EchoStatistics):
        lines += _answered(statistics)
    if found := errors(statistics):
        lines.append("errors: " + ", ".join(found))
    if statistics.errors.get("refused"):
        lines.append("refused: nobody listens there, or did not all the time, or a guard drops these sources")
    return "\n".join(lines)


def check(publisher: Sending, statistics: PublisherStatistics) -> None:
    """Raise AiolbError where nothing came of it: nothing of a capture was sent, no round trip was answered."""
    from aiolb.replay_config import ReplayConfig
    from aiolb.round_trips import EchoStatistics

    if isinstance(publisher.config, ReplayConfig) and not statistics.sent:
        raise AiolbError(f"nothing of the capture {publisher.config.file} was sent")
    asked = statistics.sent or statistics.errors
    if isinstance(statistics, EchoStatistics) and asked and not statistics.answered:
        target = publisher.config.target
        raise AiolbError(
            f"no answer came from {target}",
            hint=f"who receives has to send back what it gets, as this one does: aiolb serve echo --bind {target}",
        )


def _sent(publisher: Sending, statistics: PublisherStatistics) -> list[str]:
    rate = statistics.rate_reached
    asked = "" if statistics.rate_asked is None else f" of {statistics.rate_asked:,g}/s asked"
    reached = f"{rate:,.{digits(rate)}f}/s{asked}"
    trains = f", {statistics.trains:,} trains" if statistics.trains else ""
    sent = _number(statistics.sent, "datagram")
    return [
        f"sent {sent} ({statistics.bytes:,} bytes{trains}) to {publisher.config.target}",
        f"from {_number(statistics.sources, 'source')} in {statistics.seconds:,.2f} s, {reached}",
    ]


def _number(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _replayed(statistics: ReplayStatistics) -> list[str]:
    rounds = "" if statistics.rounds == 1 else f" in {_number(statistics.rounds, 'round')}"
    origin = f"datagrams from {_number(statistics.captured_sources, 'source')}"
    lines = [f"read {_number(statistics.packets, 'packet')}{rounds}: {origin}{_ports(statistics)}"]
    if statistics.skipped:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in _by_number(statistics.skipped))
        lines.append(f"skipped {_number(sum(statistics.skipped.values()), 'packet')}: {reasons}")
    if statistics.late_us and statistics.sent:
        lines.append(f"sent late: {_times(statistics.late_us)}")
    return lines


def _ports(statistics: ReplayStatistics) -> str:
    """Where the datagrams of the capture went to; several ports have a line of their own."""
    ports = _by_number(statistics.captured_ports)
    if len(ports) <= 1:
        return "".join(f" to port {port}" for port, _ in ports)
    named = ", ".join(f"{port} ({number:,})" for port, number in ports[:PORTS_TOLD])
    more = f" and {len(ports) - PORTS_TOLD:,} more" if len(ports) > PORTS_TOLD else ""
    return f"\nto ports {named}{more}"


def _by_number(counts: Mapping[Any, int]) -> list[tuple[Any, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])


def _answered(statistics: EchoStatistics) -> list[str]:
    foreign = f", not ours {statistics.foreign:,}" if statistics.foreign else ""
    lines = [
        f"answered {statistics.answered:,}, lost {statistics.lost:,}, duplicated {statistics.duplicated:,}{foreign}"
    ]
    if statistics.answered:
        lines.append(f"round trip: {_times(statistics.round_trip_us)}")
        lines.append(f"sent late:  {_times(statistics.late_us)}")
        lines.append("a round trip begins when its datagram is due, so being sent late is a part of it")
    return lines


def _times(microseconds: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {_time(value)}" for name, value in microseconds.items())


def _time(microseconds: float) -> str:
    """Three digits that mean something, and the unit."""
    if microseconds < 999.5:  # noqa: PLR2004 - what rounds to 1 ms
        return f"{microseconds:.3g} µs"
    if microseconds < 999_500:  # noqa: PLR2004 - what rounds to 1 s
        return f"{microseconds / 1e3:.3g} ms"
    return f"{microseconds / 1e6:,.4g} s"


def as_json(publisher: Sending, statistics: PublisherStatistics) -> str:
    """One object; its keys name the units."""
    from aiolb.replay_config import ReplayConfig, ReplayStatistics
    from aiolb.round_trips import EchoStatistics

    found: dict[str, Any] = {
        "target": str(publisher.config.target),
        "sent_datagrams": statistics.sent,
        "sent_bytes": statistics.bytes,
        "failed_datagrams": statistics.failed,
        "elapsed_seconds": round(statistics.seconds, 6),
        "rate_asked_datagrams_per_second": statistics.rate_asked,
        "rate_reached_datagrams_per_second": round(statistics.rate_reached, 3),
        "sources": statistics.sources,
        "sent_datagrams_per_source": statistics.sent_per_source,
        "errors": statistics.errors,
    }
    if isinstance(publisher.config, ReplayConfig):
        found |= {"file": str(publisher.config.file), "speed": _speed(publisher.config)}
    else:
        found |= _of_publisher(publisher, statistics)
    if isinstance(statistics, ReplayStatistics):
        found |= _of_replay(statistics)
    if isinstance(statistics, EchoStatistics):
        found |= _of_echo(statistics)
    return json.dumps(found)


def _speed(config: ReplayConfig) -> float | None:
    """None where a rate stands in its place."""
    return (config.speed or 1.0) if config.rate is None else None


def _of_publisher(publisher: Any, statistics: PublisherStatistics) -> dict[str, Any]:
    return {
        "run": f"{publisher.run_id:016x}" if publisher.config.stamp else None,
        "sent_trains": statistics.trains,
        "datagram_bytes": publisher.config.datagram_size,
        "workers": publisher.config.workers,
    }


def _of_replay(statistics: ReplayStatistics) -> dict[str, Any]:
    return {
        "rounds": statistics.rounds,
        "captured_packets": statistics.packets,
        "captured_sources": statistics.captured_sources,
        "captured_datagrams_per_port": statistics.captured_ports,
        "skipped_packets": statistics.skipped,
        "late_microseconds": statistics.late_us or None,
    }


def _of_echo(statistics: EchoStatistics) -> dict[str, Any]:
    return {
        "answered_datagrams": statistics.answered,
        "lost_datagrams": statistics.lost,
        "duplicated_datagrams": statistics.duplicated,
        "foreign_datagrams": statistics.foreign,
        "round_trip_microseconds": statistics.round_trip_us,
        "late_microseconds": statistics.late_us,
    }
