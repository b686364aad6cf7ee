"""One sending process of ``aiolb flood --workers``: settings in on standard input, statistics out on standard output.

The first line in is a JSON object with the settings of a publisher. When its sockets are open, it says so and waits
for a second line; then it sends. The end of the input ends it, so no worker outlives the command.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from typing import Any

from aiolb import loops
from aiolb.errors import AiolbError
from aiolb.publisher import Publisher
from aiolb.send.statistics import PublisherStatistics


def main() -> None:
    """Run one worker."""
    if not (line := sys.stdin.buffer.readline()):  # reads nothing ahead: the next line comes later
        return
    settings = json.loads(line)
    with loops.runner(settings.pop("loop")) as runner:
        try:
            runner.run(_work(**settings))
        except AiolbError as error:
            number = getattr(error, "errno", None)
            _say(error={"kind": type(error).__name__, "message": str(error), "hint": error.hint, "errno": number})


async def _work(*, run_id: int, payload: str | None, refresh: float | None, **settings: Any) -> None:
    publisher = Publisher(payload=None if payload is None else bytes.fromhex(payload), **settings)
    publisher.run_id = run_id
    async with publisher, _input() as lines:
        _say(ready=asdict(publisher.statistics()))
        if await lines.readline():
            tasks = [asyncio.create_task(_stop_at_end(lines, publisher))]
            if refresh:
                tasks.append(asyncio.create_task(_tell_progress(publisher, refresh)))
            await publisher.run()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        _say(done=asdict(publisher.statistics()))


@asynccontextmanager
async def _input() -> AsyncIterator[asyncio.StreamReader]:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        yield reader
    finally:
        transport.close()


async def _stop_at_end(lines: asyncio.StreamReader, publisher: Publisher) -> None:
    await lines.read()
    publisher.stop()


async def _tell_progress(publisher: Publisher, refresh: float) -> None:
    while True:
        await asyncio.sleep(refresh)
        _say(progress=asdict(_without_sources(publisher.statistics())))


def _without_sources(statistics: PublisherStatistics) -> PublisherStatistics:
    """There may be 100,000 of them, and nobody looks at them before the end."""
    return replace(statistics, sent_per_source={})


def _say(**content: Any) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    main()
