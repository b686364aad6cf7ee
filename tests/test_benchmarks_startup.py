"""The start-up benchmark runs, and the member receives a datagram from every source."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "startup.py"


@pytest.mark.usefixtures("nothing_left")
def test_the_member_hears_every_source(tmp_path: Path, needs: Callable[[str, str], str]) -> None:
    """The shortest run measures each process, and the member's own report says how many datagrams came."""
    needs("cc", "gcc")
    options = ["--repeats", "1", "--sources", "3000", "--balancer", "none"]
    environment = {**os.environ, "AIOLB_RESULTS": str(tmp_path)}
    subprocess.run([sys.executable, BENCHMARK, *options], check=True, env=environment, stdout=subprocess.DEVNULL)
    runs = json.loads((tmp_path / "startup.json").read_text())["runs"]
    assert list(runs) == ["python", "python with the libraries", "aiolb serve"]
    for (run,) in runs.values():
        assert run["wall"] > 0
        assert run["cpu"] > 0
        assert run["rss"] > 0
    assert runs["aiolb serve"][0]["received"] == 3000
