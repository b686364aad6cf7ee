"""The steering benchmark runs, and every program sees every datagram."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

GUARDS = [
    "guard, 1 rule",
    "guard, 4,097 rules",
    "guard, limit",
    "guard, 4,097 rules, limit",
    "guard, no rule allows",
    "guard, over the limit",
]
BENCHMARK = Path(__file__).parent.parent.parent / "benchmarks" / "steering.py"


def test_every_program_sees_every_datagram(
    tmp_path: Path, needs: Callable[[str, str], str], private_mounts: Sequence[str]
) -> None:
    """The shortest run ends well: the benchmark compares what was sent with what the kernel counted."""
    needs("cc", "gcc")
    options = ["--repeats", "2", "--count", "500", "--members", "2", "--sources", "1", "--sources", "300"]
    command = [*private_mounts, sys.executable, str(BENCHMARK), *options]
    environment = {**os.environ, "AIOLB_RESULTS": str(tmp_path)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    content = json.loads((tmp_path / "steering.json").read_text())
    runs = content["nanoseconds_per_packet"]
    traces = ["trace, of another source", "trace, one of 1,000", "trace, all, buffer full"]
    assert list(runs) == [
        "empty",
        "load the source",
        "load it, select a socket",
        "balancer, 2 members",
        *GUARDS,
        *traces,
    ]
    for loads in runs.values():
        assert {load: len(costs) for load, costs in loads.items()} == {"1": 2, "300": 2, "flood": 2, "cold": 2}
        assert all(cost > 0 for costs in loads.values() for cost in costs)
