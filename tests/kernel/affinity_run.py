"""Runs members and a publisher in the network namespace that it is started in, and prints the outcome as JSON."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
from contextlib import AsyncExitStack
from pathlib import Path

from aiolb import sockets
from aiolb.address import Address
from aiolb.cli.members import MemberProcess
from aiolb.publisher import Publisher
from aiolb.verification import Summary, merge_reports


async def run(options: argparse.Namespace) -> Summary:
    """Send ``count`` datagrams from ``sources`` to a new group of ``members``; what became of them."""
    async with AsyncExitStack() as stack:
        with sockets.reserved_port(Address(options.host, 0)) as address:
            common = ["verify", "--bind", str(address), "--count", str(options.members), "--bpffs", options.bpffs]
            members = [
                await stack.enter_async_context(
                    MemberProcess(*common, "--index", str(index), report=options.folder / f"{index}.json")
                )
                for index in range(options.members)
            ]
            for member in members:
                await member.ready()
        settings = {"rate": options.rate, "count": options.count, "sources": options.sources, "stamp": True}
        async with Publisher(address, **settings) as publisher:
            sent = await publisher.run()
        reports = [await member.stop() for member in members]
    verified = [{**report["collector"], "member": report["index"]} for report in reports]
    return merge_reports(verified, sent.sent_per_source)


parser = argparse.ArgumentParser()
parser.add_argument("host")
parser.add_argument("sources")
parser.add_argument("--members", type=int)
parser.add_argument("--count", type=int)
parser.add_argument("--rate", type=float)
parser.add_argument("--bpffs")
parser.add_argument("--folder", type=Path)
print(json.dumps(dataclasses.asdict(asyncio.run(run(parser.parse_args())))))  # noqa: T201 - what it is for
