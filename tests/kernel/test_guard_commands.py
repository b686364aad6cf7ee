"""The guard as operators meet it: `aiolb serve` with one, alone and with workers, and `aiolb guard`."""

from __future__ import annotations

import itertools
import json
import socket
from contextlib import AsyncExitStack, closing

import pytest
import serving
import supervision

from aiolb.address import Address
from aiolb.bpf.group import Group

Supervised, script = supervision.Supervised, supervision.script

# Joins with a guard, as one member or as two, sends from two sources, and prints what became of it.
JOIN = """
import json, socket, sys
from pathlib import Path
from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf import steering
from aiolb.bpf.group import GroupOptions
from aiolb.bpf.members import join_all
from aiolb.bpf.rules import GuardOptions
from aiolb.bpf.steering import JoinOptions, join
from aiolb.errors import AiolbError

how, balancer, bpffs = sys.argv[1], sys.argv[2], Path(sys.argv[3])
guard = GuardOptions.parse(deny=["127.3.0.0/16"], limit="0.001:2")
group = GroupOptions(count=2 if how == "all" else 1, guard=guard, bpffs=bpffs)
options = JoinOptions(balancer=balancer, group=group)
try:
    with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
        joined = (join_all if how == "all" else join)(address, sockets.bind_reuseport, options)
    for source in ("127.3.0.1", "127.4.0.1"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            for _ in range(5):
                sender.sendto(b"x", (address.host, address.port))
    found = joined.statistics() if how == "all" else joined.place.group.statistics()
    answer = {"denied": found.denied, "limited": found.limited, "got": sum(m.packets for m in found.members)}
    answer["pinned"] = how == "all" and joined.pinned
    if how == "all":
        joined.close()
    else:
        joined.sock.close()
        joined.place.close()
except AiolbError as error:
    answer = {"error": type(error).__name__, "message": str(error), "hint": error.hint}
print(json.dumps(answer))
"""


@pytest.fixture
async def start(bpffs, tmp_path, address):
    """Members with the given options, started and ready; killed at the end."""
    numbers = itertools.count()
    async with AsyncExitStack() as stack:

        async def start(*options):
            report = tmp_path / f"{next(numbers)}.json"
            arguments = ["discard", "--bind", str(address), "--bpffs", str(bpffs), *options]
            member = await stack.enter_async_context(serving.Member(*arguments, report=report))
            await member.ready()
            return member

        yield start


@pytest.fixture
def guard(aiolb):
    """What `aiolb guard` with the given options prints as JSON."""

    def run(*arguments):
        answer = aiolb("guard", "--json", *arguments)
        assert (answer.returncode, answer.stderr) == (0, "")
        return json.loads(answer.stdout)

    return run


def send(address, source, number):
    """Send so many datagrams from a source."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((source, 0))
        for _ in range(number):
            sender.sendto(b"datagram", (address.host, address.port))


def rules(answer):
    """Action and packets of each rule."""
    return {rule["network"]: (rule["action"], rule["packets"]) for rule in answer["rules"]}


async def test_a_member_with_a_guard(start, address, guard, tmp_path):
    """Python sees what passes and nothing else, and `aiolb guard` tells the rest."""
    path = tmp_path / "allowed"
    path.write_text("127.3.0.0/16  # exporters\n")
    member = await start("--allow", f"@{path}", "--deny", "127.3.4.0/24", "--limit-source", "0.001:3")
    for source, number in (("127.3.0.1", 5), ("127.3.0.2", 2), ("127.3.4.1", 4), ("127.5.0.1", 6)):
        send(address, source, number)
    assert guard("--group", str(address)) == {
        "group": str(address),
        "rules": [
            {"network": "127.3.0.0/16", "action": "allow", "packets": 7, "bytes": 56},
            {"network": "127.3.4.0/24", "action": "deny", "packets": 4, "bytes": 32},
        ],
        "others": "drop",
        "limit": {"pps": 0.001, "burst": 3},
        "denied": 4,
        "unlisted": 6,
        "limited": 2,
        "offenders": [{"source": "127.3.0.1", "packets": 2}],
    }
    assert (await member.stop())["received"] == 5


async def test_the_newest_guard_wins(start, guard):
    """Who joins with rules replaces those of the group; who joins with a limit alone leaves them, and so on."""
    await start("--count", "4", "--allow", "127.3.0.0/16", "--limit-source", "7")
    await start("--index", "1")
    found = guard()
    assert (rules(found), found["limit"]) == ({"127.3.0.0/16": ("allow", 0)}, {"pps": 7, "burst": 7})
    await start("--index", "2", "--limit-source", "off")
    found = guard()
    assert (rules(found), found["limit"]) == ({"127.3.0.0/16": ("allow", 0)}, None)
    await start("--index", "3", "--deny", "127.4.0.0/16")
    found = guard()
    assert (rules(found), found["others"], found["limit"]) == ({"127.4.0.0/16": ("deny", 0)}, "pass", None)


async def test_a_refused_join_changes_nothing(start, address, guard, aiolb):
    """The guard of a member that cannot join is not the group's."""
    await start("--deny", "127.4.0.0/16")
    refused = aiolb("serve", "discard", "--bind", str(address), "--allow", "127.3.0.0/16")
    assert (refused.returncode, "is held by pid" in refused.stderr) == (3, True)
    assert rules(guard()) == {"127.4.0.0/16": ("deny", 0)}


async def test_changes(start, address, guard, aiolb):
    """Rules and the limit are added, replaced and removed while packets come, and those that stay go on counting."""
    member = await start()
    assert rules(guard("--deny", "127.3.0.0/16", "--deny", "127.4.0.0/16")) == {
        "127.3.0.0/16": ("deny", 0),
        "127.4.0.0/16": ("deny", 0),
    }
    send(address, "127.3.0.1", 5)
    send(address, "127.4.0.1", 5)
    found = guard("--allow", "127.3.0.1", "--remove", "127.4.0.0/16", "--limit-source", "0.001:1")
    assert rules(found) == {"127.3.0.0/16": ("deny", 5), "127.3.0.1/32": ("allow", 0)}
    assert (found["others"], found["limit"]) == ("drop", {"pps": 0.001, "burst": 1})
    send(address, "127.3.0.1", 5)
    send(address, "127.4.0.1", 5)
    found = guard("--allow", "127.3.0.0/16", "--limit-source", "off")
    assert rules(found) == {"127.3.0.0/16": ("allow", 0), "127.3.0.1/32": ("allow", 5)}
    assert (found["unlisted"], found["limited"], found["denied"], found["limit"]) == (5, 4, 10, None)
    assert rules(guard("--clear", "--deny", "127.9.0.0/16")) == {"127.9.0.0/16": ("deny", 0)}
    found = guard("--clear")
    assert (found["rules"], found["others"]) == ([], "pass")
    send(address, "127.3.0.1", 5)
    wrong = aiolb("guard", "--remove", "127.3.0.0/16")
    assert (wrong.returncode, wrong.stderr.splitlines()) == (
        2,
        ["aiolb: error: there is no rule for 127.3.0.0/16", "  hint: aiolb guard shows the rules"],
    )
    assert (await member.stop())["received"] == 6


async def test_shown_in_a_terminal(start, address, aiolb):
    """Rules with their counts, what becomes of others, the limit, sums and offenders, for people."""
    assert aiolb("guard").stderr.splitlines()[0] == "aiolb: error: there is no group in this network namespace"
    await start()
    assert aiolb("guard").stdout.splitlines() == [
        f"guard of the group at {address}",
        "",
        "rules: none, every source passes",
        "limit: none",
        "dropped: nothing",
    ]
    send(address, "127.4.0.1", 1)
    assert aiolb("guard", "--allow", "127.3.0.0/16", "--limit-source", "0.001:2").returncode == 0
    send(address, "127.3.0.1", 1_005)
    send(address, "127.4.0.1", 3)
    assert [line.rstrip() for line in aiolb("guard").stdout.splitlines()] == [
        f"guard of the group at {address}",
        "",
        "network        rule    packets   bytes",
        "──────────────────────────────────────",
        "127.3.0.0/16   allow     1,005   8,040",
        "all others     drop",
        "",
        "limit: 0.001 packets a second from each source, 2 at once",
        "dropped: 0 packets by rules, 3 that no rule allows, 1,003 over the limit",
        "",
        "over the limit   packets",
        "────────────────────────",
        "127.3.0.1          1,003",
    ]


async def test_connections(start, address, guard):
    """Over TCP the guard is for new connections, and the group's name says that it is one of TCP."""
    await start("--protocol", "tcp", "--deny", "127.3.0.0/16", "--limit-source", "0.001:1")

    def connect(source):
        with socket.socket() as client:
            client.settimeout(serving.DEADLINE)
            client.bind((source, 0))
            client.connect((address.host, address.port))

    connect("127.4.0.1")
    for source in ("127.4.0.1", "127.3.0.1"):
        with pytest.raises(ConnectionRefusedError):
            connect(source)
    found = guard("--group", f"tcp:{address}")
    assert (found["group"], found["denied"], found["limited"]) == (f"tcp:{address}", 1, 1)


async def test_a_supervisor(script, address, bpffs):
    """Under a supervisor the guard stands before all workers, and a new member is behind it too."""
    async with Supervised(
        script, address, count=2, bpffs=bpffs, deny=("127.3.0.0/16",), limit_source="1000:5"
    ) as running:
        await running.supervising()
        send(address, "127.3.0.1", 5)
        with closing(Group.open(address, bpffs=bpffs)) as group:
            found = group.guard.statistics()
        assert (found.denied, found.limit.burst) == (5, 5)
        await running.stop()


@pytest.mark.parametrize("how", ["one", "all"])
def test_with_the_smallest_privilege(python, with_bpf, tmp_path, bpffs, how):
    """CAP_BPF alone is enough for a guard; the members of a group that is pinned nowhere have it too."""
    folder = tmp_path if how == "all" else bpffs
    answer = python(JOIN, how, "auto", folder, prefix=with_bpf)
    assert answer == {"denied": 5, "limited": 3, "got": 2, "pinned": False}


@pytest.mark.parametrize("how", ["one", "all"])
def test_never_dropped_silently(python, powerless, bpffs, how):
    """Where programs cannot be loaded, who asks for a guard is refused instead of served without."""
    answer = python(JOIN, how, "auto", bpffs, prefix=powerless)
    assert answer["error"] == "GroupError"
    assert answer["message"].startswith(
        "--allow, --deny and --limit-source need the eBPF balancer: the kernel does not let this user load BPF programs"
    )
    assert answer["hint"] == "run as root or with CAP_BPF, or leave them out"


@pytest.mark.parametrize(
    ("how", "balancer"), [("one", "none"), ("one", "classic"), ("all", "none"), ("all", "classic")]
)
def test_balancers_without_a_guard(python, bpffs, how, balancer):
    """The balancers that have none say so."""
    answer = python(JOIN, how, balancer, bpffs)
    assert (answer["error"], answer["message"]) == (
        "GroupError",
        "--allow, --deny and --limit-source need the eBPF balancer",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--allow", "10.0.0.1/8"], "'10.0.0.1/8' is no network: 10.0.0.1/8 has host bits set"),
        (["--deny", "@/nowhere"], "'/nowhere' cannot be read: No such file or directory"),
        (["--deny", "10.0.0.0/8", "--allow", "10.0.0.0/8"], "10.0.0.0/8 is allowed and denied"),
        (["--limit-source", "0"], "a limit is 0.001 to 1,000,000,000 packets a second, not 0"),
        (
            ["--balancer", "classic", "--limit-source", "9"],
            "the balancer 'classic' cannot allow, deny or limit sources",
        ),
        (["--balancer", "none", "--deny", "10.0.0.0/8"], "the balancer 'none' cannot allow, deny or limit sources"),
    ],
)
@pytest.mark.parametrize("workers", [(), ("--workers", "1")])
def test_wrong_usage(aiolb, bpffs, options, message, workers):
    """A mistake is told in one line, with status 2, and nothing is left behind."""
    answer = aiolb("serve", "discard", "--bind", "127.0.0.1:0", *options, *workers)
    said = [line for line in answer.stderr.splitlines() if "aiolb: error:" in line]
    assert (answer.returncode, said) == (2, [f"aiolb: error: {message}"])
    assert list(bpffs.glob("aiolb/*/*")) == []


def test_the_group_is_named(aiolb):
    """Which group is meant can be said, and a group that is not there is told of."""
    answer = aiolb("guard", "--group", "127.0.0.1:1")
    assert (answer.returncode, answer.stderr.splitlines()[0]) == (
        3,
        f"aiolb: error: there is no group at {Address('127.0.0.1', 1)}",
    )
