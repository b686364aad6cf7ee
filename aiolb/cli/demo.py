"""``aiolb demo``: real member processes, a flood from many sources, and a table that shows the affinity."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aiolb.bpf.abi import MAX_MEMBERS
from aiolb.cli.groups import bpffs_option
from aiolb.cli.texts import plain_console

if TYPE_CHECKING:
    from aiolb.address import Address
    from aiolb.publisher import Publisher
    from aiolb.verification import Summary


@click.command()
@click.option(
    "--members",
    type=click.IntRange(1, MAX_MEMBERS),
    metavar="N",
    default=3,
    show_default=True,
    help="Collector processes to start.",
)
@click.option(
    "--sources",
    type=click.IntRange(min=1),
    metavar="N",
    default=60,
    show_default=True,
    help="Source addresses to send from, out of 127.0.0.0/8.",
)
@click.option("--rate", type=float, default=2000, show_default=True, help="Datagrams per second in all.")
@click.option("--seconds", type=float, default=3, show_default=True, help="How long to send.")
@click.option(
    "--balancer",
    type=click.Choice(["auto", "ebpf", "classic"]),
    default="auto",
    show_default=True,
    help="auto: eBPF, or the classic balancer where privileges are missing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@bpffs_option
@click.pass_context
def demo(ctx: click.Context, /, members: int, as_json: bool, balancer: str, bpffs: Path, **flood: Any) -> None:
    """Show that every source stays on one member.

    Starts MEMBERS collector processes on a free port of 127.0.0.1, sends from SOURCES addresses, and counts who got
    what. Exits 0 only if nothing was lost or duplicated, and no source was seen by two members.
    """
    from aiolb import loops

    with loops.runner("uvloop") as runner:
        balancer, summary = runner.run(_run_until_signal(_run(members, balancer, bpffs, flood, quiet=as_json)))
    if as_json:
        click.echo(json.dumps(_as_json(balancer, summary)))
    else:
        _show(summary)
    if summary.lost or summary.duplicated or summary.split_sources:
        ctx.exit(1)


async def _run_until_signal(work: Coroutine[Any, Any, tuple[str, Summary]]) -> tuple[str, Summary]:
    """Clean up after a signal too: the members are processes of their own and would go on."""
    import asyncio
    import signal

    from aiolb import signals

    running = asyncio.ensure_future(work)

    def stop(_: signal.Signals) -> None:
        # Once: a second Ctrl-C must not cut the cleaning up short.
        if not running.cancelling():
            running.cancel()

    with signals.captured(stop, (*signals.STOP_SIGNALS, signal.SIGHUP)):
        try:
            return await running
        except asyncio.CancelledError:
            raise click.Abort from None


async def _run(count: int, balancer: str, bpffs: Path, flood: dict[str, Any], *, quiet: bool) -> tuple[str, Summary]:
    import asyncio

    from aiolb import sockets
    from aiolb.address import Address
    from aiolb.cli.members import MemberProcess
    from aiolb.verification import merge_reports

    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aiolb-demo-")))
        # The port stays reserved until every member is bound to it.
        with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
            publisher = _publisher(address, **flood)
            stack.enter_context(_group_removed(address, bpffs))
            common = ["verify", "--bind", str(address), "--count", str(count)]
            common += ["--balancer", balancer, "--bpffs", str(bpffs)]
            running = [
                await stack.enter_async_context(
                    MemberProcess(*common, "--index", str(index), report=folder / f"{index}.json")
                )
                for index in range(count)
            ]
            balancer = str([(await member.ready())["balancer"] for member in running].pop())
        if not quiet:
            _introduce(balancer, address, count, publisher)
        async with publisher:
            sent = await publisher.run()
        reports = await asyncio.gather(*(member.stop() for member in running))
    verified = [{**report["collector"], "member": report["index"]} for report in reports]
    return balancer, merge_reports(verified, sent.sent_per_source)


def _publisher(address: Address, *, sources: int, rate: float, seconds: float) -> Publisher:
    from aiolb.errors import ConfigurationError
    from aiolb.publisher import Publisher

    if not (0 <= seconds < math.inf and math.isfinite(rate)):
        raise ConfigurationError(
            f"{rate:g} datagrams per second for {seconds:g} seconds cannot be sent", hint="--rate 2000 --seconds 3"
        )
    return Publisher(address, rate=rate, count=round(rate * seconds), sources=sources, stamp=True)


@contextmanager
def _group_removed(address: Address, bpffs: Path) -> Iterator[None]:
    """Remove the pins that the members made, at the end."""
    from aiolb.bpf.group import Group
    from aiolb.errors import AiolbError

    try:
        yield
    finally:
        with suppress(AiolbError, OSError), closing(Group.open(address, bpffs=bpffs)) as group:
            group.delete()  # the classic balancer pins nothing: then there is no group


def _introduce(balancer: str, address: Address, count: int, publisher: Publisher) -> None:
    config = publisher.config
    if balancer == "classic":
        click.echo(
            "Without CAP_BPF and a BPF file system the classic balancer steers: affinity,\n"
            "but no failover, slots, takeover or aiolb status. As root the eBPF balancer would."
        )
    click.echo(
        f"{count} members at {address}, {balancer} balancer\n"
        f"sending {config.count:,} datagrams from {config.sources:,} sources at {config.rate:,g}/s …"
    )


def _as_json(balancer: str, summary: Summary) -> dict[str, Any]:
    return {
        "balancer": balancer,
        "members": [
            {"index": member.member, "sources": member.sources, "datagrams": member.datagrams}
            for member in summary.members
        ],
        "sources": summary.sources,
        "split_sources": summary.split_sources,
        "sent": summary.sent,
        "received": summary.received,
        "lost": summary.lost,
        "duplicated": summary.duplicated,
    }


def _show(summary: Summary) -> None:
    from rich.table import Table

    table = Table("member")
    for name in ("sources", "datagrams", "share"):
        table.add_column(name, justify="right")
    for member in summary.members:
        share = member.datagrams / (summary.received or 1)
        table.add_row(str(member.member), f"{member.sources:,}", f"{member.datagrams:,}", f"{share:.1%}")
    console = plain_console()
    console.print(table)
    console.print(
        f"sent {summary.sent:,}, received {summary.received:,}, lost {summary.lost:,}, "
        f"duplicated {summary.duplicated:,}\nsources on more than one member {summary.split_sources:,}"
    )
