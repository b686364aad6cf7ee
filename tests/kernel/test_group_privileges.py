"""What a process can do in its group after it has given up its privileges, through what it opened before."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys

import pytest

from aiolb.bpf.group import Group

# Joins as root, becomes nobody for good, waits for a line, and says what then works.
DROPPED = """
import json, os, sys
from pathlib import Path
from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf import pins, spec
from aiolb.bpf.group import GroupOptions
from aiolb.bpf.members import join_all
from aiolb.bpf.steering import JoinOptions, join, wait_for_packets_in_flight
from aiolb.errors import GroupError, KernelError

how, bpffs, port = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
spec.BYTECODE["aiolb_balancer"] = Path(sys.argv[4])
address = Address("127.0.0.1", port)
options = JoinOptions(balancer="ebpf", group=GroupOptions(count=2, bpffs=None if how == "unpinned" else bpffs))
if how == "alone":
    joined = join(address, sockets.bind_reuseport, options)
    place, group = joined.place, joined.place.group
else:
    members = join_all(address, sockets.bind_reuseport, options)
    place, group = members[0].place, members._chosen.group
other = sockets.bind_reuseport(address)

os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
try:
    sys.exit(f"still sees {list(bpffs.iterdir())}")
except PermissionError:
    print("dropped", flush=True)
sys.stdin.readline()

pins.LOCK_TIMEOUT = 0.05
answer = {}
try:
    place.leave()
except GroupError as error:
    print(error, flush=True)
    sys.stdin.readline()
    pins.LOCK_TIMEOUT = 10.0
    place.leave()
answer["left"] = [place.held, place.leave(), group.alive() - {1}]
answer["restored"] = [place.restore(), place.held, place.restore(), place.displaced]
successor = group.join(other, 0, takeover=True)
answer["displaced"] = [place.displaced, successor.held]
other.close()
answer["back"] = [place.displaced, place.restore(), place.held]
statistics = group.statistics()
answer["statistics"] = [statistics.count, place.count, statistics.members[0].uid, statistics.members[0].alive]
wait_for_packets_in_flight()
if how == "alone":
    joined.sock.close()
    place.close(forget=True)
else:
    try:
        members.add(members.bind())
    except KernelError as error:
        answer["added"] = str(error).partition(" (")[0]
    members.remove().sock.close()
    answer["removed"] = [group.cookie_of(1), group.config.count, sorted(set(group.slots))]
    members.close(forget=True)
answer["left"][2] = sorted(answer["left"][2])
print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def private(bpffs):
    """The bpffs as an init system mounts it: for root alone, and no other user can even look into it."""
    bpffs.chmod(0o700)
    yield bpffs
    bpffs.chmod(0o755)


@pytest.fixture
def dropped(private, address, program, tmp_path):
    """A process that has joined and become nobody: ``dropped("alone")``; ended at the end."""
    bytecode = tmp_path / "balancer.bin"
    bytecode.write_bytes(program.to_bytes())
    started = []

    def start(how):
        command = [sys.executable, "-W", "error", "-c", DROPPED, how, str(private), str(address.port), str(bytecode)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(child)
        assert child.stdout.readline() == "dropped\n"
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def answer_of(child):
    """What the process found."""
    out, _ = child.communicate("go\n", timeout=30)
    assert child.returncode == 0
    return json.loads(out)


EVERYTHING = {
    "left": [False, False, []],
    "restored": [True, True, False, False],
    "displaced": [True, True],
    "back": [False, True, True],
    "statistics": [2, 2, 65534, True],
}
ALL_MEMBERS = {"removed": [None, 1, [0]]}


@pytest.mark.parametrize("how", ["alone", "together"])
def test_as_nobody(dropped, private, address, how):
    """A member that is nobody now waits for the lock, leaves, returns, sees who displaced it, counts and closes."""
    child = dropped(how)
    (folder,) = private.glob("aiolb/*/*")
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        child.stdin.write("go\n")
        child.stdin.flush()
        assert child.stdout.readline() == f"another process has held the lock on {folder} for 0.05 s\n"
    finally:
        os.close(lock)
    answer = answer_of(child)
    alone = how == "alone"
    assert answer == EVERYTHING | ({} if alone else ALL_MEMBERS | {"added": f"{address} is held by another user"})
    # What root pinned is not nobody's to remove.
    group = Group.open(address, bpffs=private)
    assert group.alive() == set()
    group.delete_if_empty()
    group.close()
    assert list(private.glob("aiolb")) == []


def test_as_nobody_without_pins(dropped, address):
    """The same in a group that is not pinned, which has no lock."""
    child = dropped("unpinned")
    child.stdin.write("go\n")
    assert answer_of(child) == EVERYTHING | ALL_MEMBERS | {"added": f"{address} is held by another user"}


def test_the_pins_are_gone(dropped, private, address):
    """When root removes the pins meanwhile, the members that are nobody now go on without the lock."""
    child = dropped("together")
    group = Group.open(address, bpffs=private)
    group.delete()
    group.close()
    child.stdin.write("go\n")
    assert answer_of(child) == EVERYTHING | ALL_MEMBERS | {"added": f"{address} is held by another user"}
