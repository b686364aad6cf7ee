"""Samples of perf are told apart by who had the CPU, and add up to what a datagram costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "shares.py"
PERF = """#!/bin/sh
if [ "$1" = report ]; then
    cat <<'END'
# Overhead|Shared Object|Symbol
    40.00%|[kernel.kallsyms]|[k] udp_recvmsg|-
    20.00%|libpython3.11.so.1.0|[.] _PyEval_EvalFrameDefault|-
    10.00%|python3.11|[.] _PyObject_Malloc|-
    10.00%|_fast_step.cpython-311-x86_64-linux-gnu.so|[.] step|-
    10.00%|libc.so.6|[.] __memmove_avx_unaligned_erms|-
     5.00%|loop.cpython-311-x86_64-linux-gnu.so|[.] uv__io_poll|-
     5.00%|ld-linux-x86-64.so.2|[.] lookup|-
END
    exit
fi
while [ "$1" != --output ]; do shift; done
: > "$2"
trap 'exit 0' INT
while :; do read line || sleep 0.01; done < /dev/null
"""


def run(folder: Path, path: str) -> str:
    """Run the benchmark with these folders to look for commands in; what it prints."""
    environment = {**os.environ, "AIOLB_RESULTS": str(folder), "PATH": path}
    command = [sys.executable, BENCHMARK, "--cycles", "1"]
    return subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.usefixtures("nothing_left")
def test_shares_of_the_cost(tmp_path: Path, needs: Callable[[str, str], str]) -> None:
    """Each function counts for the place that it belongs to, with trains and with single datagrams."""
    needs("cc", "gcc")
    perf = tmp_path / "perf"
    perf.write_text(PERF)
    perf.chmod(0o755)
    run(tmp_path, f"{tmp_path}:{os.environ['PATH']}")
    content = json.loads((tmp_path / "shares.json").read_text())
    assert list(content["microseconds"]) == ["16", "1"]
    for costs in content["microseconds"].values():
        total = sum(costs.values())
        assert total > 0
        assert {name: round(cost / total, 6) for name, cost in costs.items()} == {
            "the kernel: recvmmsg(2), poll": 0.4,
            "aiolb's compiled parts": 0.1,
            "Python: making and freeing objects": 0.1,
            "Python: running the handler": 0.2,
            "the event loop: uvloop, asyncio": 0.05,
            "the C library: copying": 0.1,
            "other": 0.05,
        }


def test_without_perf(tmp_path: Path) -> None:
    """Where perf is missing the benchmark says so, and leaves nothing."""
    assert "perf is not installed" in run(tmp_path, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
