"""Several sending processes that look like one publisher: the workers of ``aiolb flood --workers``."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from aiolb import errors
from aiolb.errors import AiolbError
from aiolb.send.config import PublisherConfig
from aiolb.send.statistics import PublisherStatistics, merge

_LONGEST_LINE = 1 << 28
"""Bytes: the statistics of 16 million sources fit."""

_COMMAND = (sys.executable, "-m", "aiolb.cli.flood_worker")


class Workers:
    """Like a :class:`~aiolb.publisher.Publisher`, but each of ``number`` processes sends its share.

    Entering starts them and waits until all have opened their sockets; it raises what a publisher would.
    run() raises AiolbError when one of them ends before its time; leaving ends those that still run.
    """

    def __init__(
        self, target: str, number: int, *, loop: str, refresh: float | None, payload: bytes | None, **settings: Any
    ) -> None:
        self.config = PublisherConfig(target, payload=payload, workers=number, **settings)
        self.run_id = secrets.randbits(64)
        self._settings = {
            "target": target,
            "payload": None if payload is None else payload.hex(),
            "loop": loop,
            "refresh": refresh,
            "run_id": self.run_id,
            **settings,
        }
        self._workers: list[_Worker] = []

    async def __aenter__(self) -> Self:
        try:
            for index in range(self.config.workers):
                settings = {**self._settings, "worker": index, "workers": self.config.workers}
                self._workers.append(await _Worker.start(index, settings))
            for worker in self._workers:
                await worker.ready()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._end()

    async def run(self) -> PublisherStatistics:
        """Let all send at once, and wait for all of them."""
        for worker in self._workers:
            worker.go()
        tasks = [asyncio.create_task(worker.done()) for worker in self._workers]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            self.stop()  # where one has failed, the others are not to go on
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, _WorkerLostError):
                raise AiolbError(
                    f"{result}; the others were stopped, and had sent {self.statistics().sent:,} datagrams",
                    hint="its last messages are above, if it had any",
                )
            if isinstance(result, BaseException):
                raise result
        return self.statistics()

    def stop(self) -> None:
        """End run(), or the next one before it sends."""
        for worker in self._workers:
            worker.stop()

    def statistics(self) -> PublisherStatistics:
        """The sums of what the workers said last."""
        return merge(worker.statistics for worker in self._workers)

    async def _end(self) -> None:
        await asyncio.gather(*(worker.end() for worker in self._workers))


class _WorkerLostError(AiolbError):
    """A worker ended, and did not say why."""


class _Worker:
    """One process, and what it said last."""

    statistics: PublisherStatistics

    def __init__(self, index: int, process: asyncio.subprocess.Process) -> None:
        self._index = index
        self._process = process
        assert process.stdin is not None  # noqa: S101 - what types cannot say
        assert process.stdout is not None  # noqa: S101 - the same
        self._input, self._output = process.stdin, process.stdout

    @classmethod
    async def start(cls, index: int, settings: dict[str, Any]) -> _Worker:
        """Start the process; Ctrl-C in a terminal is for us alone, and we stop the workers."""
        process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            start_new_session=True,
        )
        worker = cls(index, process)
        worker._input.write(json.dumps(settings).encode() + b"\n")
        return worker

    async def ready(self) -> None:
        """Wait until its sockets are open."""
        await self._until("ready")

    def go(self) -> None:
        """Let it send."""
        if not self._input.is_closing():
            self._input.write(b"go\n")

    def stop(self) -> None:
        """Let it come to its end."""
        self._input.close()

    async def done(self) -> None:
        """Wait until it has sent everything, or was stopped."""
        await self._until("done")

    async def end(self) -> None:
        """End it if it still runs, and wait until it is gone."""
        self.stop()
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        while await self._output.read(1 << 16):
            pass
        await self._process.wait()

    async def _until(self, wanted: str) -> None:
        while line := await self._output.readline():
            [(kind, content)] = json.loads(line).items()
            if kind == "error":
                raise _as_error(**content)
            self.statistics = PublisherStatistics(**content)
            if kind == wanted:
                return
        raise _WorkerLostError(f"worker {self._index} (pid {self._process.pid}) {_how(await self._process.wait())}")


def _as_error(kind: str, message: str, hint: str | None, errno: int | None) -> AiolbError:
    """The error that the worker told, as its own class."""
    found: type[AiolbError] = getattr(errors, kind)
    if issubclass(found, errors.KernelError):
        return found(message, hint=hint, errno=errno)
    return found(message, hint=hint)


def _how(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
