"""All scenarios by name, and the run of one of them: nothing may be left behind."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from aiolb.errors import AiolbError
from chaos import balance, deaths, floods, handlers, restarts
from chaos.arena import Arena, Verdict

SCENARIOS: Mapping[str, Callable[[Arena], Awaitable[Verdict]]] = {
    "rolling-restarts": restarts.rolling_restarts,
    "rolling-restarts-classic": restarts.rolling_restarts_classic,
    "takeovers": restarts.takeovers,
    "resizing": restarts.resizing,
    "stall": restarts.stall,
    "rebalance": balance.rebalance,
    "killed-workers": deaths.killed_workers,
    "killed-members": deaths.killed_members,
    "broken-worker": deaths.broken_worker,
    "killed-supervisor": deaths.killed_supervisor,
    "kept-sockets": deaths.kept_sockets,
    "raising": handlers.raising,
    "blocking": handlers.blocking,
    "overload": handlers.overload,
    "overload-trains": handlers.overload_trains,
    "spoofed": floods.spoofed,
    "soak": handlers.soak,
}
"""In the order in which they run."""


@dataclass(frozen=True, slots=True)
class Line:
    """The outcome of a scenario; the numbers are None when it did not come to its end. ``broken``: what fails."""

    scenario: str
    sent: int | None
    received: int | None
    lost: int | None
    duplicated: int | None
    split: int | None
    remark: str
    broken: tuple[str, ...]
    seconds: float


async def run(name: str, folder: Path, *, short: bool, seed: int) -> Line:
    """Run a scenario, with its files in a new folder inside of this one."""
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(dir=folder) as inside:
            async with Arena(Path(inside), short=short, seed=seed) as arena:
                verdict = await SCENARIOS[name](arena)
    except (AiolbError, AssertionError, TimeoutError, OSError) as error:
        what = f"{type(error).__name__}: {error}"
        return Line(name, None, None, None, None, None, "", (what, *_left()), _since(started))
    found = verdict.findings
    return Line(
        name,
        found.sent,
        found.received,
        verdict.lost,
        found.duplicated,
        verdict.split,
        verdict.remark,
        (*verdict.broken, *_left()),
        _since(started),
    )


def _since(started: float) -> float:
    return round(time.monotonic() - started, 1)


def _left() -> list[str]:
    """The processes that are there besides this one, which is the first of its namespace."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    others = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()} - {os.getpid()}
    return [f"process {pid} is left" for pid in sorted(others)]
