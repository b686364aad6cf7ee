"""The ledger of the chaos suite, and what it is said to prove: a suite that cannot fail would prove nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from aiolb.stamp import Stamp

ROOT = Path(__file__).parent.parent.parent
SOURCES, CAPACITY = 3, 10


@pytest.fixture
def modules(monkeypatch):
    """A module of the suite by name."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: import_module(f"chaos.{name}")


@pytest.fixture
def ledger(modules, tmp_path):
    """An empty ledger."""
    with modules("ledger").Ledger.create(tmp_path / "ledger", sources=SOURCES, capacity=CAPACITY) as ledger:
        yield ledger


@pytest.fixture
def enrol(ledger):
    """Enrol a process of a member; its lines are given back in the end."""
    pens = []

    def enrol(member):
        pens.append(ledger.enrol(member))
        return pens[-1]

    yield enrol
    for pen in pens:
        pen.close()


def mark(pen, source, *sequences, late=0):
    """Mark datagrams that were handled ``late`` nanoseconds after they were sent."""
    for sequence in sequences:
        pen.mark(Stamp(1, source, sequence, 1000), 1000 + late)


@pytest.fixture
def findings(modules, ledger):
    """What the ledger proves of what was sent: ``findings({source: datagrams})``."""
    return lambda sent: modules("findings").Findings(ledger, sent)


def test_all_is_well(enrol, findings):
    """Two members that handle their sources in order lose, double and split nothing."""
    mark(enrol(0), 0, *range(10))
    mark(enrol(1), 1, *range(5))
    found = findings({0: 10, 1: 5})
    assert (found.sent, found.received, found.lost) == (15, 15, 0)
    assert (found.duplicated, found.reordered, found.stray) == (0, 0, 0)
    assert (found.split, found.torn, found.holes()) == (set(), set(), [])


def test_what_is_missing_is_lost(enrol, findings):
    """Datagrams without a mark are lost, the last ones and sources that nobody handled too."""
    mark(enrol(0), 0, 1, 2, 4)
    found = findings({0: 6, 1: 2})
    assert (found.sent, found.received, found.lost) == (8, 3, 5)
    assert [(source, hole.first, hole.last) for source, hole, _, _ in found.holes()] == [
        (0, 0, 0),
        (0, 3, 3),
        (0, 5, 5),
        (1, 0, 1),
    ]


def test_a_second_mark_is_a_duplicate(enrol, findings):
    """What two processes, or one, handle twice counts once as received, and each further time as a duplicate."""
    first, second = enrol(0), enrol(0)
    mark(first, 0, 0, 1, 1)
    mark(second, 0, 1, 2)
    found = findings({0: 3})
    assert (found.received, found.lost, found.duplicated) == (3, 0, 2)
    assert [process.handled for process in found.processes.values()] == [2, 1]


def test_order_is_that_of_the_source(enrol, findings):
    """A datagram that is handled after a later one of its source is reordered, whoever handled that one."""
    first, second = enrol(0), enrol(0)
    mark(first, 0, 0, 2)
    mark(second, 0, 1)
    mark(second, 1, 0, 1)
    found = findings({0: 3, 1: 2})
    assert [process.reordered for process in found.processes.values()] == [0, 1]
    assert found.torn == {0}


def test_a_source_of_two_members_is_split(enrol, findings):
    """A source is split that was with two members, and not one that two processes of a member had."""
    one, two, other = enrol(0), enrol(0), enrol(1)
    mark(one, 0, 0, 1)
    mark(two, 0, 2)
    mark(one, 1, 0)
    mark(other, 1, 1, 2)
    mark(two, 1, 3)
    found = findings({0: 3, 1: 4})
    assert found.split == {1}
    assert (found.members_of(0), found.members_of(1)) == ([0], [0, 1, 0])


def test_losses_have_neighbours(enrol, findings):
    """A loss is told with who handled what was right before and after it, and counted for the former."""
    dead, heir = enrol(2), enrol(2)
    mark(dead, 0, 0, 1)
    mark(heir, 0, 4, 5)
    mark(dead, 1, 0)
    mark(heir, 1, 2)
    found = findings({0: 6, 1: 3})
    assert [(before.number, after.number) for _, _, before, after in found.holes()] == [(1, 2), (1, 2)]
    assert found.lost_after() == {1: 3}
    assert found.torn == set()


def test_what_nobody_sent_is_stray(enrol, findings):
    """Datagrams without a stamp, with numbers beyond the ledger, and beyond what was sent are stray."""
    pen = enrol(0)
    pen.stray()
    mark(pen, SOURCES, 0)
    mark(pen, 0, CAPACITY, 0, 1, 2)
    assert findings({0: 1}).stray == 5


def test_latencies(enrol, ledger):
    """Latencies are in microseconds, of what was handled alone; clocks that differ make none below 0."""
    pen = enrol(0)
    mark(pen, 0, 0, late=5_000)
    mark(pen, 0, 2, late=-5_000)
    mark(pen, 0, 3, late=1 << 50)
    assert ledger.latencies(0, 5) == [5, 0, (1 << 32) - 1]


def test_reached(enrol, ledger):
    """A number of datagrams is reached when the last of them was handled, whatever is missing before it."""
    mark(enrol(0), 0, 0, 3)
    assert ledger.has_reached({0: 4, 1: 0})
    assert not ledger.has_reached({0: 5})
    assert not ledger.has_reached({0: 4, 1: 1})


WRITER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from aiolb.stamp import Stamp
from chaos.ledger import Ledger
pen = Ledger.open(Path(sys.argv[2])).enrol(1)
for sequence in range(5):
    pen.mark(Stamp(1, 0, sequence, 0), 0)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("ledger")
def test_what_a_killed_process_marked_stays(findings, tmp_path):
    """The marks and counters of a process that was killed are there, and the next one goes on after them."""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", WRITER, str(ROOT), str(tmp_path / "ledger")], check=False)
        assert done.returncode == -signal.SIGKILL
    found = findings({0: 5})
    counts = [(process.member, process.handled, process.duplicated) for process in found.processes.values()]
    assert counts == [(1, 5, 0), (1, 0, 5)]
    assert found.lost == 0


def test_a_verdict_tells_what_does_not_hold(modules, enrol, findings):
    """A loss, a duplicate and a split source that nobody expects are each named, and so fail their scenario."""
    one, two = enrol(0), enrol(1)
    mark(one, 0, 0, 0)
    mark(two, 0, 2)
    verdict = modules("arena").Verdict(findings({0: 3}), "")
    verdict.require_nothing_lost()
    assert verdict.broken == ["1 duplicated", "1 split", "1 lost"]
    expected = modules("arena").Verdict(findings({0: 3}), "", expected_split=frozenset({0}))
    assert expected.broken == ["1 duplicated"]


BROKEN_SUITE = """
import subprocess, sys
sys.path.insert(0, sys.argv.pop(1))
from chaos import scenarios
async def fails(arena):
    assert False, "a defect"
async def leaves(arena):
    subprocess.Popen(["sleep", "600"])
    await fails(arena)
scenarios.SCENARIOS.update({"stall": fails, "soak": leaves})
from chaos.__main__ import NAMESPACES, main
main()
"""


def test_scenarios_that_do_not_hold_fail_the_run(modules, needs, tmp_path):
    """What does not hold is said of its scenario, and so is what it left behind; the exit status is 1."""
    namespaces = [needs("unshare", "util-linux"), *modules("__main__").NAMESPACES]
    arguments = [str(ROOT), "--inside", "--json", "--scenario", "stall", "--scenario", "soak"]
    command = [*namespaces, sys.executable, "-c", BROKEN_SUITE, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    stall, soak = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 1
    assert (stall["scenario"], stall["sent"], stall["broken"]) == ("stall", None, ["AssertionError: a defect"])
    assert soak["broken"][0] == "AssertionError: a defect"
    assert [what.startswith("process ") for what in soak["broken"][1:]] == [True]
