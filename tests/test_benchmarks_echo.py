"""The echo benchmark runs, and every datagram it sends is answered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "echo.py"
RATE, COUNT, WARM_UP = 5000, 250, 200


@pytest.mark.usefixtures("nothing_left")
def test_every_datagram_is_answered(tmp_path: Path, needs: Callable[[str, str], str]) -> None:
    """The shortest run measures every datagram behind the warm-up, and loses none."""
    needs("cc", "gcc")
    options = ["--repeats", "1", "--seconds", str(COUNT / RATE), "--rate", str(RATE), "--only", "aiolb handle"]
    environment = {**os.environ, "AIOLB_RESULTS": str(tmp_path)}
    subprocess.run([sys.executable, BENCHMARK, *options], check=True, env=environment, stdout=subprocess.DEVNULL)
    content = json.loads((tmp_path / "echo.json").read_text())
    runs = content["rates"][str(RATE)]
    assert runs.keys() == {"uvloop callback", "aiolb handle"}
    for (run,) in runs.values():
        assert (run["sent"], run["received"], run["lost"]) == (WARM_UP + COUNT, WARM_UP + COUNT, 0)
        assert run["measured"] == COUNT
        assert 0 < run["p50"] <= run["p90"] <= run["p99"] <= run["p99.9"] <= run["max"]
        assert run["microseconds"] > 0
        assert run["rate"] > 0
