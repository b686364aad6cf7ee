"""What the benchmarks share: medians with their spread, the machine, JSON files."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

FOLDER = Path(os.environ.get("AIOLB_RESULTS") or Path(__file__).parent.parent / "build" / "benchmarks")
"""Where the JSON files go; AIOLB_RESULTS names another folder, as tests do."""

console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeated measurements of one thing."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarise at least one value."""
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int) -> tuple[str, str]:
        """The median, and the lowest to the highest value."""
        return f"{self.median:.{digits}f}", f"{self.low:.{digits}f}-{self.high:.{digits}f}"


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds so far: of everybody, of this process and children that have ended, and taken by the hypervisor."""

    everybody: float
    ours: float
    stolen: float
    wall: float

    @classmethod
    def now(cls) -> Usage:
        """What proc(5), ``/proc/stat``, and getrusage(2) say; interrupts count as nobody's."""
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, _, _, stolen, *_ = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields)
        used = os.times()
        return cls(user + nice + system, sum(used[:4]), stolen, time.monotonic())

    def shares_since(self, before: Usage) -> dict[str, float]:
        """The shares of all CPUs that were used by others since then."""
        available = (self.wall - before.wall) * (os.cpu_count() or 1)
        others = (self.everybody - before.everybody) - (self.ours - before.ours)
        return {
            "used_by_others": max(others, 0.0) / available,
            "stolen": (self.stolen - before.stolen) / available,
        }


_AT_START = Usage.now()  # a benchmark is a process of its own


def machine() -> dict[str, Any]:
    """Where this ran: numbers of two machines cannot be compared, ratios can. And who else used the CPUs meanwhile."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "uvloop": version("uvloop"),
        "aiolb": version("aiolb"),
        **Usage.now().shares_since(_AT_START),
    }


def write(name: str, content: dict[str, Any]) -> None:
    """Write ``NAME.json`` into the folder of results and say so."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **content}, indent=2) + "\n")
    console.print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}\n")


def read(name: str) -> dict[str, Any] | None:
    """What ``write`` wrote under a name; None where nothing was."""
    path = FOLDER / f"{name}.json"
    content: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return content
