"""What the benchmarks found becomes tables, a judgement of each goal, and plots that are the same each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "plots.py"
MACHINE = {
    "cpu": "Test",
    "cpus": 2,
    "kernel": "6.1",
    "python": "3.11",
    "uvloop": "0.23",
    "aiolb": "0.1",
    "used_by_others": 0.25,
    "stolen": 0.01,
}
RECEIVERS = {
    "uvloop callback": 2.0,
    "uvloop task each": 4.0,
    "aiolb handle": 0.25,
    "aiolb plain handle": 2.5,
    "C recvmmsg": 0.8,
    "C recvmmsg + UDP_GRO": 0.05,
}
PROGRAMS = {
    "empty": 60,
    "load the source": 90,
    "load it, select a socket": 140,
    "balancer, 1 member": 180,
    "balancer, 3 members": 190,
    "guard, limit": 300,
}
PERCENTILES = {"p50": 40, "p90": 60, "p99": 900, "p99.9": 4000, "max": 12_000}


def receive() -> dict[str, object]:
    """Two rounds of each receiver, the second one a little dearer."""
    runs = {name: [{"microseconds": cost + n / 100} for n in range(2)] for name, cost in RECEIVERS.items()}
    live = {name: [{**run, "gap": 12.0} for run in found] for name, found in runs.items()}
    return {"baseline": "uvloop callback", "backlog": {"1": runs, "16": runs}, "live": {"16": live}}


def results() -> dict[str, dict[str, object]]:
    """What each benchmark could have written."""
    echoes = {"uvloop callback": 20.0, "aiolb handle": 25.0}
    rates = {name: [{**PERCENTILES, "microseconds": cost, "rate": 49_900}] for name, cost in echoes.items()}
    sends = {"trains of 60: C": [0.07], "trains of 60: aiolb": [0.08], "no trains: C": [3.0], "no trains: aiolb": [3.1]}
    steered = {name: {load: [float(cost)] for load in ("1", "100", "flood", "cold")} for name, cost in PROGRAMS.items()}
    floor = {"wall": 0.1, "cpu": 0.1, "rss": 3e7}
    return {
        "receive": receive(),
        "shares": {"microseconds": {"16": {"the kernel": 0.05, "other": 0.15}, "1": {"the kernel": 0.9, "other": 0.2}}},
        "send": {"microseconds": {"trains": sends, "full": sends}},
        "echo": {"baseline": "uvloop callback", "rates": {"50000": rates}},
        "steering": {
            "baseline": "empty",
            "floor": "load it, select a socket",
            "nanoseconds_per_packet": steered,
        },
        "startup": {
            "settings": {"sources": 1000},
            "runs": {"python": [floor], "aiolb serve": [{**floor, "wall": 0.25, "growth": 1e6}]},
        },
    }


GOALS = ("receive", "echo", "steering", "startup")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of every benchmark, and a page with a place for each."""
    found = results()
    for name, content in found.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"machine": MACHINE, **content}))
    places = "".join(
        f"<!-- {name}: written by make bench -->\nBEFORE\n<!-- end of {name} -->\n"
        for name in (*found, *(f"goals of {name}" for name in GOALS), "machine")
    )
    (tmp_path / "performance.md").write_text(f"# Text\n\n{places}\nMore text.\n")
    return tmp_path


def draw(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the program on a folder."""
    environment = {**os.environ, "AIOLB_RESULTS": str(folder)}
    command = [sys.executable, "-W", "error", BENCHMARK, "--docs", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_same_each_time(folder: Path) -> None:
    """A second run writes the same bytes, and keeps the text around the tables."""
    assert draw(folder).returncode == 0
    files = sorted([*folder.glob("*.svg"), folder / "performance.md"])
    assert [path.name for path in files] == ["echo.svg", "performance.md", "receive.svg", "send.svg", "steering.svg"]
    before = [path.read_bytes() for path in files]
    assert draw(folder).returncode == 0
    assert [path.read_bytes() for path in files] == before
    page = (folder / "performance.md").read_text()
    assert page.startswith("# Text\n")
    assert page.endswith("\nMore text.\n")
    assert "BEFORE" not in page


def test_tables_and_goals(folder: Path) -> None:
    """Medians, ratios of one round and differences are right, and a goal that was missed is said to be."""
    assert draw(folder, "--no-plots").returncode == 0
    lines = (folder / "performance.md").read_text().splitlines()
    aiolb = "| aiolb handle | 0.26 (0.25 to 0.26) | x 0.13 | 0.26 (0.25 to 0.26) | x 0.13 | 12 |"
    assert aiolb in lines
    assert "| load it, select a socket | 80 | 80 | 80 | 80 |" in lines
    assert "| 50,000 | aiolb handle | 40 | 60 | 900 | 4000 | 12 ms | 25.0 (25.0 to 25.0) | x 1.25 | 100% |" in lines
    assert "| together | 200 | 1100 |" in lines
    assert any(
        "other processes used up to 25% of the CPUs, and other virtual machines up to 1%. **The" in line
        for line in lines
    )
    goals = {cells[1].strip(): cells[4].strip() for line in lines if len(cells := line.split("|")) == 6}
    assert goals["aiolb handle, trains of 16: cost beside uvloop callback"] == "yes"
    assert goals["aiolb handle, trains of 16: cost beside C recvmmsg + UDP_GRO"] == "**no**"
    assert goals["echo, 50,000 per second: CPU beside a uvloop callback"] == "**no**"
    assert goals["start of a member until it receives"] == "yes"
    assert goals["steering, over an empty program"] == "**no**"
    assert goals["steering with a guard, under a flood"] == "yes"


def test_what_was_not_run_stays(folder: Path) -> None:
    """Without the results of one benchmark its tables are left alone."""
    (folder / "echo.json").unlink()
    done = draw(folder, "--no-plots")
    assert done.returncode == 0
    assert "echo: was not run, and stays as it was" in done.stdout
    page = (folder / "performance.md").read_text()
    for name in ("echo", "goals of echo"):
        assert f"<!-- {name}: written by make bench -->\nBEFORE\n" in page
    assert page.count("BEFORE") == 2


def test_a_page_without_a_place(folder: Path) -> None:
    """A marker that is gone is an error, and the page is left as it was."""
    page = folder / "performance.md"
    page.write_text(page.read_text().replace("<!-- end of send -->", ""))
    before = page.read_text()
    done = draw(folder, "--no-plots")
    assert (done.returncode, done.stderr) == (1, "Error: the page has no place for 'send'\n")
    assert page.read_text() == before


def test_an_echo_that_fell_behind(folder: Path) -> None:
    """A server that did not reach the rate has not met the goal, however cheap it was."""
    path = folder / "echo.json"
    content = json.loads(path.read_text())
    content["rates"]["50000"]["aiolb handle"][0].update(microseconds=10.0, rate=20_000)
    path.write_text(json.dumps(content))
    assert draw(folder, "--no-plots").returncode == 0
    page = (folder / "performance.md").read_text()
    assert "| not dearer | not known: only 40% of the rate (x 0.50 there) | **no** |" in page
