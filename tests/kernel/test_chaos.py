"""The short version of every chaos scenario: what `make chaos` proves at length."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DEADLINE = 180

LOSES = {
    "rolling-restarts": False,
    "rolling-restarts-classic": False,
    "takeovers": False,
    "resizing": False,
    "stall": False,
    "rebalance": False,
    "killed-workers": True,
    "killed-members": True,
    "broken-worker": True,
    "killed-supervisor": True,
    "kept-sockets": False,
    "raising": False,
    "blocking": False,
    "overload": True,
    "overload-trains": True,
    "spoofed": False,
    "soak": False,
}
"""Whether something may be lost: then the scenario itself says what."""


@pytest.fixture
def chaos(needs):
    """Run the suite with these arguments; its exit status, and what it says of each scenario."""
    needs("unshare", "util-linux")

    def run(*arguments):
        command = [sys.executable, "-m", "chaos", "--json", *arguments]
        env = {**os.environ, "PYTHONWARNINGS": "error"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert done.stderr == ""
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    return run


@pytest.mark.parametrize("name", LOSES)
def test_scenario(chaos, name):
    """Every datagram of the scenario is accounted for, none is handled twice, and no source is with two members."""
    status, (line,) = chaos("--short", "--scenario", name)
    assert line["broken"] == []
    assert status == 0
    assert line["sent"] > 0
    assert line["received"] + line["lost"] == line["sent"]
    assert (line["duplicated"], line["split"]) == (0, 0)
    assert LOSES[name] or line["lost"] == 0


def test_every_scenario_is_tested(python):
    """The scenarios here are those that `make chaos` runs."""
    code = "import json, sys; sys.path.insert(0, sys.argv[1]); from chaos.scenarios import SCENARIOS as S"
    assert python(f"{code}; print(json.dumps(list(S)))", ROOT) == list(LOSES)
