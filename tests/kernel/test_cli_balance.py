"""aiolb move, drain, undrain, weight and rebalance: what they do, what they say, what they refuse."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from click.testing import CliRunner
from zipf import MEMBERS, SOURCES, Numbered

from aiolb import join, sockets
from aiolb.address import Address
from aiolb.bpf import abi, spec
from aiolb.cli import main
from aiolb.sketch import packed

SLOTS = 16_384


@pytest.fixture
def program():
    """One loader is enough: both count and move alike (test_balancer_statistics.py, test_group_count.py)."""
    return spec.shipped()


@pytest.fixture
def group(cluster):
    """A group of four."""
    return cluster(MEMBERS)


@pytest.fixture
def aiolb(bpffs):
    """Run the command line: exit status, standard output, standard error."""

    def run(*arguments):
        result = CliRunner().invoke(main, [*arguments, "--bpffs", str(bpffs)], env={"COLUMNS": "80"})
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.fixture
def intervals(monkeypatch):
    """What happens in each interval that a command waits for: functions, and then it is to stop."""
    waiting = []

    async def happens(_stopping, *, seconds):
        assert seconds == 7
        if not waiting:
            return True
        waiting.pop(0)()
        return False

    monkeypatch.setattr("aiolb.waiting.happens", happens)
    return waiting


def test_move_a_source(group, aiolb):
    """The slot of a source goes to the member, and with it everything that is in it, which is said."""
    source = IPv4Address("127.0.0.5")
    slot, owner = group.group.slot_of(source), group.group.locate(source)
    to = (owner + 1) % MEMBERS
    assert aiolb("move", str(source), "--to", str(to)) == (
        0,
        f"slot {slot} (127.0.0.5, and all sources in it): member {owner} -> member {to}\n1 slot moved to member {to}\n",
        "",
    )
    assert group.route([source]) == {source: to}


def test_move_slots(group, aiolb):
    """Slots by number go to the member; one that is there already stays, which is said."""
    before = group.group.slots
    there, here = before.index(1), before.index(2)
    status, said, _ = aiolb("move", str(here), str(there), "--to", "1")
    assert (status, said.splitlines()) == (
        0,
        [
            f"slot {here}: member 2 -> member 1",
            f"slot {there}: member 1 owns it already",
            "1 slot moved to member 1",
        ],
    )
    status, said, _ = aiolb("move", str(here), "--to", "2", "--json")
    move = {"slot": here, "source": None, "owner": 1, "to": 2, "moved": True}
    assert json.loads(said) == {"group": str(group.address), "moves": [move]}
    assert group.group.slots == before


def test_moves_that_are_refused(group, aiolb):
    """What cannot be moved, or moved there, is refused with what to do, and nothing moves."""
    group.kill(3)
    before = group.group.slots
    refused = {
        ("16384", "--to", "0"): "16384 is no slot: they are numbered from 0 to 16383",
        ("example", "--to", "0"): "'example' is no IP address",
        ("5", "--to", "4"): f"the group at {group.address} has no member 4: it has 4 members, 0 to 3",
        ("5", "--to", "3"): "member 3 is dead: what is moved there would go to others",
    }
    for arguments, message in refused.items():
        status, said, error = aiolb("move", *arguments)
        assert (status, said) == (2, "")
        assert error.startswith(f"aiolb: error: {message}\n")
    assert "hint: start it first: aiolb serve --index 3" in error
    assert group.group.slots == before


def test_drain_and_undrain(group, aiolb):
    """A member is drained and has its share again; each is done once, and said."""
    said = f"member 1 is drained: 4,096 slots moved, and it owns 0 of {SLOTS:,}\n"
    assert aiolb("drain", "1") == (0, said, "")
    assert aiolb("drain", "1") == (0, said.replace("4,096", "no"), "")
    status, said, _ = aiolb("undrain", "1", "--json")
    expected = {"group": str(group.address), "member": 1, "weight": 100, "drained": False, "slots": 4096, "moved": 4096}
    assert (status, json.loads(said)) == (0, expected)
    assert aiolb("undrain", "1")[1].startswith("member 1 was not drained: no slots moved")
    status, _, error = aiolb("undrain", "9")
    assert (status, "has no member 9" in error) == (2, True)


def test_the_last_one_is_not_drained(group, aiolb):
    """The last member that is alive is not drained, and the hint says what can be done."""
    group.kill(0, 1, 2)
    status, _, error = aiolb("drain", "3")
    assert status == 2
    assert "member 3 of the group" in error
    assert "hint: start another member, or undrain one, first" in error


def test_weight(group, aiolb):
    """A member gets its part; a dead one too, with a word about it."""
    status, said, _ = aiolb("weight", "1", "300")
    assert (status, said) == (0, "member 1 has the weight 300: 4,096 slots moved, and it owns 8,192 of 16,384\n")
    group.kill(2)
    status, _, error = aiolb("weight", "2", "0")
    assert (status, error) == (0, "  it is dead: what it owns goes to others until it is back\n")
    status, _, error = aiolb("weight", "0", "1001")
    assert (status, error) == (2, "aiolb: error: the weight of member 0 is 0 to 1000, not 1001\n")


def test_rebalance_once(group, aiolb, intervals):
    """It shows what moves and what becomes of it, in 80 columns, and moves it; then there is nothing to do."""
    numbered = Numbered(group)
    intervals.append(numbered.interval)
    before = group.group.slots
    status, said, progress = aiolb("rebalance", "--interval", "7")
    assert (status, progress) == (0, f"counting the packets of {group.address} for 7 s …\n")
    assert "packets/s for 4 members\nthe busiest has 2.52 times its share; the bound is 1.1\n" in said
    assert "9 slots to move; then the busiest has 1.05 times its share\n" in said
    assert said.endswith("\nmoved\n")
    assert max(map(len, said.splitlines())) <= 80
    moved = {slot for slot in range(SLOTS) if group.group.slots[slot] != before[slot]}
    assert len(moved) == 9
    intervals.append(numbered.interval)
    status, said, _ = aiolb("rebalance", "--interval", "7")
    assert (status, said.splitlines()[2]) == (0, "nothing to move")


def test_rebalance_dry_run(group, aiolb, intervals):
    """With --dry-run nothing moves, also as JSON, which has every number."""
    intervals.append(Numbered(group).interval)
    generation = group.group.config.generation
    status, said, progress = aiolb("rebalance", "--interval", "7", "--dry-run", "--json", "--max-moves", "2")
    found = json.loads(said)
    assert (status, progress) == (0, "")
    assert (found["group"], found["bound"], found["applied"]) == (str(group.address), 1.1, False)
    assert (found["limited"], found["reached"], len(found["moves"])) == (True, False, 2)
    assert found["busiest_before"] > found["busiest_after"] > 1.1
    assert [member["index"] for member in found["members"]] == list(range(MEMBERS))
    assert group.group.config.generation == generation


def test_rebalance_what_is_too_big(group, aiolb, intervals):
    """A source that is bigger than a share is named by its slot, with the only remedy."""
    numbered = Numbered(group)
    intervals.append(lambda: numbered.interval(each=[8000] + [100] * (SOURCES - 1)))
    status, said, _ = aiolb("rebalance", "--interval", "7")
    slot = group.group.slot_of(numbered.address(0))
    assert status == 0
    too_big = [
        "too big, for a member's share is 25.0% of all packets:",
        f"  slot {slot} of member {group.group.slots[slot]} has 73.4%",
        "  each is most likely a single source: only --key flow can split it",
        "moved",
    ]
    assert said.splitlines()[-4:] == too_big
    assert max(map(len, said.splitlines())) <= 80


def tell(group, index, counts):
    """Let a member tell of its busiest sources."""
    entries = b"".join(struct.pack("=16sQ", packed(source), count) for source, count in counts.items())
    top = struct.unpack(f"={abi.TOP_WORDS}Q", entries.ljust(8 * abi.TOP_WORDS, b"\0"))
    nothing = abi.Report.unpack(bytes(abi.Report.STRUCT.size))
    group.group.reports.write(index, replace(nothing, cookie=group.group.cookie_of(index), top=top))


def test_rebalance_names_who_is_too_big(group, aiolb, intervals):
    """Of a slot that is bigger than a share its sources are named, as far as they are worth it and members tell."""
    numbered = Numbered(group)
    big, slot = numbered.address(0), group.group.slot_of(numbered.address(0))
    little = next(source for n in range(1 << 20) if group.group.slot_of(source := IPv4Address("127.9.0.1") + n) == slot)
    others = {numbered.address(source): 100 for source in range(1, 15)}
    tell(group, 0, others | {little: 300})
    tell(group, 1, {big: 8000})
    interval = lambda: numbered.interval(each=[8000] + [100] * (SOURCES - 1))  # noqa: E731 - done twice
    intervals.append(interval)
    _, said, _ = aiolb("rebalance", "--interval", "7", "--dry-run")
    line = said.splitlines()[-3]
    assert line.startswith(f"  slot {slot} of member ")
    assert line.endswith(f" has 73.4%: {big}")
    intervals.append(interval)
    tell(group, 0, {little: 500})
    _, said, _ = aiolb("rebalance", "--interval", "7", "--json", "--dry-run")
    (found,) = json.loads(said)["oversized"]
    assert (found["slot"], found["sources"]) == (slot, [str(big), str(little)])


@pytest.mark.parametrize(
    ("each", "message"),
    [
        ([0] * SOURCES, "so there is nothing to even out"),
        ([9] + [0] * (SOURCES - 1), "nothing to move for certain: 9 packets are few, and more would tell (--interval)"),
        ([9000] + [0] * (SOURCES - 1), "nothing to move: what is too big cannot be split"),
    ],
)
def test_rebalance_nothing(group, aiolb, intervals, each, message):
    """Where nothing is moved it says why."""
    numbered = Numbered(group)
    intervals.append(lambda: numbered.interval(each=each) if any(each) else None)
    status, said, _ = aiolb("rebalance", "--interval", "7")
    assert status == 0
    assert message in said


def test_rebalance_with_a_dead_member(group, aiolb):
    """While a member is dead nothing is planned, and it says what to do."""
    group.kill(2)
    status, _, error = aiolb("rebalance")
    assert (status, error.splitlines()) == (
        1,
        [
            "aiolb: error: member 2 is dead: others do the work, and nothing can be planned",
            "  hint: start it again, or: aiolb drain 2",
        ],
    )


def test_rebalance_watch(group, aiolb, intervals):
    """With --watch it goes on until it is to stop, and tells of plans, and of members that die, once."""
    numbered = Numbered(group)
    intervals += [numbered.interval, numbered.interval, lambda: group.kill(2), numbered.interval]
    status, said, error = aiolb("rebalance", "--interval", "7", "--watch")
    assert status == 0
    assert said.count("moved\n") == 1
    assert error.splitlines() == [
        f"counting the packets of {group.address} every 7 s …",
        "member 2 is dead: others do the work, and nothing can be planned; start it again, or: aiolb drain 2",
    ]
    assert intervals == []


def test_rebalance_changed_meanwhile(group, aiolb, intervals, monkeypatch):
    """A plan that somebody else's move has made stale is not carried out, which is an error."""
    intervals.append(Numbered(group).interval)
    monkeypatch.setattr("aiolb.bpf.table.SlotTable.move_slots_since", lambda *_: False)
    status, said, error = aiolb("rebalance", "--interval", "7")
    assert (status, said.splitlines()[-1]) == (1, "not moved")
    assert error.splitlines()[1:] == [
        "aiolb: error: somebody else has moved slots meanwhile: nothing was moved",
        "  hint: run it again",
    ]


def test_rebalance_stopped(group, aiolb, intervals):
    """Stopped before the interval is over it moves nothing, and says so."""
    assert group.group.alive() == set(range(MEMBERS))
    assert intervals == []
    status, said, error = aiolb("rebalance", "--interval", "7")
    assert (status, said) == (0, "")
    assert error.splitlines()[1] == "stopped before the interval was over: nothing was moved"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bound", "1"], "the bound is above 1.0 times the mean, not 1"),
        (["--max-moves", "0"], "the limit is 1 move or more, not 0"),
        (["--interval", "0"], "Invalid value for '--interval': 0.0 is not in the range 0.1<=x<=600"),
    ],
)
def test_rebalance_refuses(group, aiolb, arguments, message):
    """Settings that cannot be are refused before anything is counted."""
    assert group.group.alive() == set(range(MEMBERS))
    status, said, error = aiolb("rebalance", *arguments)
    assert (status, said) == (2, "")
    assert message in error
    assert "\n  hint: " in error


def test_json_names_the_group(bpffs, aiolb, intervals):
    """A group of connections has the name in JSON by which commands find it."""
    commands = ["weight 0 50", "undrain 0", "move 5 --to 0", "rebalance --interval 7"]
    with (
        sockets.bind_listening(Address("127.0.0.1", 0), backlog=1) as sock,
        join(sock, index=0, balancer="ebpf", bpffs=bpffs),
    ):
        name = f"tcp:{sockets.address_of(sock, 'tcp')}"
        intervals.append(lambda: None)
        for command in commands:
            status, said, error = aiolb(*command.split(), "--json", "--group", name)
            assert (status, error) == (0, ""), command
            assert json.loads(said)["group"] == name
