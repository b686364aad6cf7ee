"""Many processes at the same instant: one group, and one holder of each index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack

import pytest

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf.group import Group

# Joins when its standard input says so, and stays until that ends.
MEMBER = """
import json, os, sys
from pathlib import Path
from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf.group import GroupOptions
from aiolb.bpf.steering import JoinOptions, join
from aiolb.errors import AiolbError

port, index, bpffs = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
print("imported", flush=True)
sys.stdin.readline()
try:
    joined = join(
        Address("127.0.0.1", port),
        sockets.bind_reuseport,
        JoinOptions(index=index, balancer="ebpf", group=GroupOptions(count=10, bpffs=bpffs)),
    )
    answer = {"joined": index, "seed": joined.place.group.config.seed}
except AiolbError as error:
    answer = {"error": type(error).__name__, "message": str(error)}
print(json.dumps(answer | {"pid": os.getpid()}), flush=True)
sys.stdin.readline()
"""


class Members:
    """Processes that each join one group and stay in it."""

    def __init__(self, stack: ExitStack, port: int, bpffs: os.PathLike[str], indexes: list[int]) -> None:
        self.processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", MEMBER, str(port), str(index), str(bpffs)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for index in indexes
        ]
        for process in self.processes:
            stack.callback(process.kill)
            assert process.stdout.readline() == "imported\n"

    def join(self) -> list[dict[str, object]]:
        """Let all of them join at once; what each found."""
        for process in self.processes:
            process.stdin.write("join\n")
        for process in self.processes:
            process.stdin.flush()
        return [json.loads(process.stdout.readline()) for process in self.processes]


@pytest.fixture
def members(bpffs):
    """Start member processes on a port of their own: ``members([0, 1, 2])``."""
    with ExitStack() as stack, sockets.reserved_port(Address("127.0.0.1", 0)) as address:
        yield address, lambda indexes: Members(stack, address.port, bpffs, indexes)


def test_ten_processes_make_one_group(members, bpffs):
    """Ten processes that start without a group, at the same instant, are ten members of one."""
    address, start = members
    answers = start(list(range(10))).join()
    assert [answer.get("joined") for answer in answers] == list(range(10)), answers
    assert len({answer["seed"] for answer in answers}) == 1
    group = Group.open(address, bpffs=bpffs)
    found = group.statistics()
    group.close()
    assert [(member.alive, member.pid) for member in found.members] == [(True, answer["pid"]) for answer in answers]


def test_ten_processes_want_one_index(members):
    """Of ten processes that ask for the same index at the same instant one gets it, and nine are told who."""
    _, start = members
    answers = start([4] * 10).join()
    (winner,) = [answer for answer in answers if "joined" in answer]
    losers = [answer for answer in answers if "error" in answer]
    assert Counter(answer["error"] for answer in losers) == {"MemberTakenError": 9}
    assert all(f"is held by pid {winner['pid']} since" in answer["message"] for answer in losers)


def test_killed_processes_free_their_indexes(members, bpffs):
    """The indexes of processes that were killed are free at once, and taken by others."""
    address, start = members
    first = start([0, 1, 2])
    first.join()
    for process in first.processes[:2]:
        process.kill()
        process.wait()
    group = Group.open(address, bpffs=bpffs)
    alive = group.alive()
    group.close()
    assert alive == {2}
    assert [answer.get("joined") for answer in start([1, 0]).join()] == [1, 0]
