"""``aiolb flood``: send datagrams to a collector at a steady rate, and tell what really went out."""

from __future__ import annotations

import json
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aiolb.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiolb.cli.flood_workers import Workers
    from aiolb.publisher import Publisher
    from aiolb.send.statistics import PublisherStatistics

REFRESH = 0.25
"""Seconds between two progress lines."""

WINDOW = 5.0
"""Seconds over which the progress line measures the rate."""


class Rate(click.ParamType):  # type: ignore[type-arg] # generic in new versions only
    """Datagrams per second, or ``max``, which becomes None."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Read the number; whether it can be a rate is the publisher's to say."""
        if value == "max":
            return None
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is no rate; e.g. 100 or max", param, ctx)


class Gso(click.ParamType):  # type: ignore[type-arg] # generic in new versions only
    """``auto``, ``off``, or the datagrams of a train."""

    name = "gso"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        """Read the number; whether trains can have so many is the publisher's to say."""
        if value in {"auto", "off"}:
            return str(value)
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is no number of datagrams, and neither auto nor off", param, ctx)


@click.command()
@click.argument("target", default="127.0.0.1:10001", metavar="[HOST:PORT]")
@click.option(
    "--rate",
    type=Rate(),
    metavar="RATE",
    default="100",
    show_default=True,
    help="Datagrams per second, or max for as many as possible.",
)
@click.option("--count", type=int, metavar="N", help="Stop after N datagrams.")
@click.option("--duration", type=float, metavar="SECONDS", help="Stop after that time.")
@click.option("--size", type=int, metavar="BYTES", help="Size of a datagram.  [default: 64, or that of the payload]")
@click.option(
    "--sources",
    metavar="N|CIDR",
    default="1",
    show_default=True,
    help="Send from N addresses of 127.0.0.0/8, or from every host address of a network, in turn.",
)
@click.option(
    "--payload",
    metavar="TEXT|@FILE",
    help="What to send, repeated or cut to the size.  [default: some text]",
)
@click.option(
    "--stamp", is_flag=True, help="Number the datagrams, so that `aiolb serve verify` can prove none is lost."
)
@click.option(
    "--gso",
    type=Gso(),
    metavar="auto|off|N",
    default="auto",
    show_default=True,
    help="Send trains of N datagrams in one system call (UDP_SEGMENT), or, at high rates, of as many as are due.",
)
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that share the sending."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@click.option(
    "--loop", type=click.Choice(["uvloop", "asyncio"]), default="uvloop", show_default=True, help="Event loop."
)
def flood(target: str, payload: str | None, as_json: bool, loop: str, workers: int, **settings: Any) -> None:
    """Send datagrams to HOST:PORT (default 127.0.0.1:10001) until --count, --duration or Ctrl-C.

    The summary says what was sent and at which rate; Ctrl-C and SIGTERM give it too.
    """
    from aiolb import loops

    publisher = _publisher(_with_port(target), workers, loop, payload=_payload(payload), **settings)
    with loops.runner(loop) as runner:
        statistics = runner.run(_run(publisher))
    if as_json:
        click.echo(json.dumps(_as_json(publisher, statistics)))
    else:
        click.echo(_summary(publisher, statistics))


def _publisher(target: str, workers: int, loop: str, **settings: Any) -> Publisher | Workers:
    if workers == 1:
        from aiolb.publisher import Publisher

        return Publisher(target, **settings)
    from aiolb.cli.flood_workers import Workers

    return Workers(target, workers, loop=loop, refresh=REFRESH if sys.stderr.isatty() else None, **settings)


def _with_port(target: str) -> str:
    """The target with the port that collectors have by default, where it names none."""
    from aiolb.address import Address, split_host_port

    return str(Address(*split_host_port(target)))


def _payload(text: str | None) -> bytes | None:
    if text is None or not text.startswith("@"):
        return None if text is None else text.encode(errors="surrogateescape")
    try:
        return Path(text[1:]).read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the payload from {text[1:]!r}: {error.strerror}",
            hint="--payload TEXT, or @FILE to read a file",
        ) from None


async def _run(publisher: Publisher | Workers) -> PublisherStatistics:
    from aiolb import signals

    async with publisher:
        with signals.captured(lambda _: publisher.stop()):
            async with _progress(publisher):
                return await publisher.run()


@asynccontextmanager
async def _progress(publisher: Publisher | Workers) -> AsyncIterator[None]:
    """Show a line on standard error that is kept up to date and gone in the end; nothing without a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    import asyncio

    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        task = asyncio.create_task(_refresh(publisher, live))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])


async def _refresh(publisher: Publisher | Workers, live: Any) -> None:
    import asyncio
    from collections import deque

    from rich.text import Text

    # A low rate takes a longer look: 10 datagrams at least.
    window = max(WINDOW, 10 / (publisher.config.rate or 10))
    samples = deque([(0.0, 0)])
    while True:
        await asyncio.sleep(REFRESH)
        statistics = publisher.statistics()
        samples.append((statistics.seconds, statistics.sent))
        while statistics.seconds - samples[1][0] > window:
            samples.popleft()
        line = _line(statistics, _recent_rate(*samples[0], *samples[-1]))
        live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)


def _recent_rate(seconds_before: float, sent_before: int, seconds: float, sent: int) -> float:
    return (sent - sent_before) / max(seconds - seconds_before, sys.float_info.epsilon)


def _line(statistics: PublisherStatistics, rate: float) -> str:
    asked = "" if statistics.rate_asked is None else f" of {statistics.rate_asked:,g}/s"
    parts = [
        f"{_time(statistics.seconds)}  sent {statistics.sent:,}",
        f"now {rate:,.{_digits(rate)}f}{asked or '/s'}",
        *_errors(statistics),
    ]
    return "  ".join(parts)


def _time(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _digits(rate: float) -> int:
    """Digits after the point that still mean something."""
    return 0 if rate >= 1000 else 1 if rate >= 10 else 2  # noqa: PLR2004 - powers of ten


def _errors(statistics: PublisherStatistics) -> list[str]:
    failed = [f"failed {statistics.failed:,}"] if statistics.failed else []
    return failed + [f"{name} {number:,}" for name, number in statistics.errors.items()]


def _summary(publisher: Publisher | Workers, statistics: PublisherStatistics) -> str:
    plural = "" if statistics.sources == 1 else "s"
    rate = statistics.rate_reached
    asked = "" if statistics.rate_asked is None else f" of {statistics.rate_asked:,g}/s asked"
    reached = f"{rate:,.{_digits(rate)}f}/s{asked}"
    trains = f", {statistics.trains:,} trains" if statistics.trains else ""
    lines = [
        f"sent {statistics.sent:,} datagrams ({statistics.bytes:,} bytes{trains}) to {publisher.config.target}",
        f"from {statistics.sources:,} source{plural} in {statistics.seconds:,.2f} s, {reached}",
    ]
    if errors := _errors(statistics):
        lines.append("but: " + ", ".join(errors))
    if statistics.errors.get("refused"):
        lines.append("refused: nobody listens there, or did not all the time")
    return "\n".join(lines)


def _as_json(publisher: Publisher | Workers, statistics: PublisherStatistics) -> dict[str, Any]:
    return {
        "target": str(publisher.config.target),
        "run": f"{publisher.run_id:016x}" if publisher.config.stamp else None,
        "sent_datagrams": statistics.sent,
        "sent_bytes": statistics.bytes,
        "sent_trains": statistics.trains,
        "failed_datagrams": statistics.failed,
        "elapsed_seconds": round(statistics.seconds, 6),
        "rate_asked_datagrams_per_second": statistics.rate_asked,
        "rate_reached_datagrams_per_second": round(statistics.rate_reached, 3),
        "datagram_bytes": publisher.config.datagram_size,
        "sources": statistics.sources,
        "workers": publisher.config.workers,
        "sent_datagrams_per_source": statistics.sent_per_source,
        "errors": statistics.errors,
    }
