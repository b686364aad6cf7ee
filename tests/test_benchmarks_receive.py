"""The receive benchmark runs, and counts every datagram that it puts into a queue."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "receive.py"
COUNT, CYCLES = 128, 2
RECEIVERS = ["aiolb handle", "C recvmmsg + UDP_GRO"]
BASELINE = "uvloop callback"


@pytest.fixture
def benchmark_run(tmp_path: Path, needs: Callable[[str, str], str]) -> Callable[..., dict]:
    """Run the shortest benchmark of a few receivers with more options: what it wrote, and what it printed."""
    needs("cc", "gcc")

    def run(*options: str, receivers: list[str] = RECEIVERS) -> dict:
        only = [part for name in receivers for part in ("--only", name)]
        command = [sys.executable, BENCHMARK, "--repeats", "1", "--seconds", "0.1", *options, *only]
        environment = {**os.environ, "AIOLB_RESULTS": str(tmp_path), "COLUMNS": "80"}
        done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
        return {"printed": done.stdout, **json.loads((tmp_path / "receive.json").read_text())}

    return run


@pytest.mark.usefixtures("nothing_left")
def test_a_backlog_is_counted_to_the_last_datagram(benchmark_run: Callable[..., dict]) -> None:
    """From a backlog each receiver takes exactly what was sent, as single datagrams and in trains."""
    found = benchmark_run("--from", "backlog", "--count", str(COUNT), "--cycles", str(CYCLES))
    assert found["live"] == {}
    assert found["backlog"].keys() == {"1", "16"}
    for runs in found["backlog"].values():
        assert runs.keys() == {BASELINE, *RECEIVERS}
        for (run,) in runs.values():
            assert (run["sent"], run["datagrams"], run["drops"]) == (COUNT * CYCLES, COUNT * CYCLES, 0)
            assert run["microseconds"] > 0


@pytest.mark.usefixtures("nothing_left")
def test_a_flood_is_measured(benchmark_run: Callable[..., dict]) -> None:
    """Live, each receiver counts datagrams, and the table has room for every number at 80 columns."""
    found = benchmark_run("--from", "live", "--train", "16")
    assert found["backlog"] == {}
    (runs,) = found["live"].values()
    assert runs.keys() == {BASELINE, *RECEIVERS}
    for (run,) in runs.values():
        assert run["datagrams"] > 0
        assert run["microseconds"] > 0
    assert runs["C recvmmsg + UDP_GRO"][0]["gap"] is None
    assert "…" not in found["printed"]
    assert max(map(len, found["printed"].splitlines())) <= 80
