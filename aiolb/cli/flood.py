"""``aiolb flood``: send datagrams to a collector at a steady rate, and tell what really went out."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aiolb.cli.flood_options import Gso, Rate, check_together, given, read_payload
from aiolb.cli.flood_progress import REFRESH, progress

if TYPE_CHECKING:
    from aiolb.cli.flood_summary import Sending
    from aiolb.send.statistics import PublisherStatistics


@click.command(short_help="Send datagrams, or replay a capture, to a collector.")
@click.argument("target", default="127.0.0.1:10001", metavar="[HOST:PORT]")
@click.option(
    "--rate",
    type=Rate(),
    metavar="RATE",
    default="100",
    help="Datagrams per second, or max for as many as possible.  [default: 100, or as recorded]",
)
@click.option("--count", type=int, metavar="N", help="Stop after N datagrams.")
@click.option("--duration", type=float, metavar="SECONDS", help="Stop after that time.")
@click.option("--size", type=int, metavar="BYTES", help="Size of a datagram.  [default: 64, or that of the payload]")
@click.option(
    "--sources",
    metavar="N|CIDR",
    default="1",
    help="Send from N addresses of 127.0.0.0/8, or from every host address of a network, in turn.  "
    "[default: 1, or those of the capture]",
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
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    default=1,
    show_default=True,
    help="Processes that share the sending.",
)
@click.option(
    "--replay",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Send the UDP payloads of a capture (pcap or pcapng) as they were recorded, "
    "from a source for each that it has.",
)
@click.option("--speed", type=float, metavar="X", help="With --replay: X times as fast as recorded.  [default: 1]")
@click.option("--loop", type=int, metavar="N", default=1, show_default=True, help="With --replay: replay it N times.")
@click.option("--port", type=int, metavar="PORT", help="With --replay: only what went to this port.")
@click.option("--echo", is_flag=True, help="Measure round trips to a collector that echoes, from when each is due.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@click.option(
    "--event-loop", type=click.Choice(["uvloop", "asyncio"]), default="uvloop", show_default=True, help="Event loop."
)
def flood(*, target: str, replay: Path | None, echo: bool, as_json: bool, event_loop: str, **settings: Any) -> None:
    """Send datagrams to HOST:PORT (default 127.0.0.1:10001) until --count, --duration or Ctrl-C.

    The summary says what was sent and at which rate; Ctrl-C and SIGTERM give it too. Exits 1 if nothing of a capture
    was sent, or nothing was answered with --echo.
    """
    from aiolb import loops
    from aiolb.cli.flood_summary import as_json as to_json
    from aiolb.cli.flood_summary import check, summary

    check_together(replay=replay, echo=echo)
    target = _with_port(target)
    if replay is not None:
        publisher: Sending = _replay(target, replay, **settings)
    elif echo:
        publisher = _echo(target, **settings)
    else:
        publisher = _publisher(target, event_loop, **settings)
    with loops.runner(event_loop) as runner:
        statistics = runner.run(_run(publisher))
    click.echo((to_json if as_json else summary)(publisher, statistics))
    check(publisher, statistics)


_OF_PUBLISHER = ("rate", "count", "duration", "size", "sources", "stamp", "gso")
_OF_ECHO = ("rate", "count", "duration", "size", "sources")


def _publisher(target: str, event_loop: str, *, payload: str | None, workers: int, **settings: Any) -> Sending:
    taken = {"payload": read_payload(payload), **{name: settings[name] for name in _OF_PUBLISHER}}
    if workers == 1:
        from aiolb.publisher import Publisher

        return Publisher(target, **taken)
    from aiolb.cli.flood_workers import Workers

    refresh = REFRESH if sys.stderr.isatty() else None
    return Workers(target, workers, loop=event_loop, refresh=refresh, **taken)


def _echo(target: str, *, payload: str | None, **settings: Any) -> Sending:
    from aiolb.echo import EchoPublisher

    return EchoPublisher(target, payload=read_payload(payload), **{name: settings[name] for name in _OF_ECHO})


def _replay(target: str, file: Path, *, rate: float | None, sources: str, loop: int, **settings: Any) -> Sending:
    from aiolb.replay import Replay

    return Replay(
        target,
        file,
        rate=(math.inf if rate is None else rate) if given("rate") else None,
        rounds=loop,
        sources=sources if given("sources") else None,
        **{name: settings[name] for name in ("speed", "port", "count", "duration")},
    )


def _with_port(target: str) -> str:
    """The target with the port that collectors have by default, where it names none."""
    from aiolb.address import Address, split_host_port

    return str(Address(*split_host_port(target)))


async def _run(publisher: Sending) -> PublisherStatistics:
    from aiolb import signals

    async with publisher:
        with signals.captured(lambda _: publisher.stop()):
            async with progress(publisher):
                return await publisher.run()
