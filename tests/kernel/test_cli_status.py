"""`aiolb status` and `aiolb route`: what they say of real groups, and with which exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest
import streams
from click.testing import CliRunner
from deadline import DEADLINE
from serving import AIOLB, Member, flood
from supervision import Supervisor, until

from aiolb import sockets
from aiolb.bpf.group_name import GroupName
from aiolb.cli import main


@pytest.fixture
def aiolb(bpffs):
    """Run a command: ``aiolb("status", ...)``; its exit status, its lines, and what it said on standard error."""

    def run(*arguments, prefix=()):
        command = [*prefix, *AIOLB, *map(str, arguments), "--bpffs", str(bpffs)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run


@pytest.fixture
def look(aiolb):
    """The groups that `aiolb status --json` tells of, looked at once."""

    def run(*arguments):
        _, lines, error = aiolb("status", "--json", "--interval", "0", *arguments)
        assert error == ""
        return json.loads(lines[0])["groups"]

    return run


async def test_status_agrees_with_publisher_and_collectors(bpffs, address, tmp_path, look):
    """At rest it is what the publisher sent, what the collectors say they handled, and what the kernel counted."""
    options = ["discard", "--bind", str(address), "--bpffs", str(bpffs), "--count", "3"]
    async with (
        Member(*options, "--index", "0", report=tmp_path / "0") as zero,
        Member(*options, "--index", "1", report=tmp_path / "1") as one,
        Member(*options, "--index", "2", report=tmp_path / "2") as two,
    ):
        members = [zero, one, two]
        for member in members:
            await member.ready()
        sent = await flood(address, 3000)
        found = {}

        def at_rest():
            (found["group"],) = look()
            told = [member["sources"] for member in found["group"]["members"]]
            handled = sum(member["handled"] for member in found["group"]["members"])
            return (handled, sum(told)) == (sent["sent_datagrams"], 100)

        await until(at_rest, f"status tells of {sent}: {found}")
        ends = [await member.stop() for member in members]
    group = found["group"]
    assert (group["address"], group["balancer"], group["key"], group["count"]) == (str(address), "ebpf", "source", 3)
    assert group["stale"] is False
    for member, end in zip(group["members"], ends, strict=True):
        assert (member["state"], member["pid"], member["slots"] in (5461, 5462)) == ("alive", end["pid"], True)
        for name in ("received", "received_bytes", "handled", "errors", "kernel_drops", "messages"):
            assert member[name] == end[name], name
        assert member["packets"] == end["messages"]
        assert member["bytes"] == end["received_bytes"]
    (after,) = look(str(address))
    assert after["stale"] is True
    assert [member["received"] for member in after["members"]] == [end["received"] for end in ends]


async def test_connections(bpffs, tmp_path, aiolb, look):
    """Of a TCP group it tells of connections: accepted, open, closed."""
    app = streams.write_app(tmp_path / "app.py")
    async with AsyncExitStack() as stack:
        address = stack.enter_context(sockets.reserved_port(streams.LOCAL, "tcp"))
        options = [app, "--protocol", "tcp", "--bind", str(address), "--bpffs", str(bpffs)]
        member = await stack.enter_async_context(Member(*options, report=tmp_path / "report"))
        await member.ready()
        await streams.ask(*await stack.enter_async_context(streams.connected(address)))
        await streams.who(address, "127.0.0.3")

        def told():
            (group,) = look(f"tcp:{address}")
            return [group["members"][0][name] for name in ("received", "handled", "in_flight", "sources")]

        await until(lambda: told() == [2, 1, 1, 2], "two accepted, one of them closed")
        status, lines, _ = aiolb("status", f"tcp:{address}", "--interval", "0")
        assert (status, lines[0]) == (0, f"tcp {address}  1 of 1 members alive")
        assert lines[2].startswith("sources 2, ")
        assert {"CONNECTIONS", "OPEN", "SOURCES", "QUEUE", "P99"} <= set(lines[3].split())


def test_dead_members(cluster, aiolb, look, bpffs):
    """A dead member is told of, and what to do; the exit status is 1, for a living member alone it is 0."""
    group = cluster(3, members=[0, 2])
    status, lines, error = aiolb("status", "--interval", "0")
    assert (status, error) == (1, "")
    assert lines[0] == f"udp {group.address}  2 of 3 members alive"
    rows = [line.split() for line in lines if line.split()[0] in "012"]
    assert [(row[0], row[1]) for row in rows] == [("0", "alive"), ("1", "dead"), ("2", "alive")]
    assert lines[-1] == (
        "hint: member 1 is dead, others get the sources: "
        f"aiolb serve APP --bind {group.address} --index 1 --bpffs {bpffs}"
    )
    assert [aiolb("status", "--member", index, "--interval", "0")[0] for index in range(3)] == [0, 1, 0]
    assert [member["index"] for member in look("--member", "2")[0]["members"]] == [2]
    status, _, error = aiolb("status", "--member", "3", "--interval", "0")
    assert (status, error) == (2, f"aiolb: error: the group at {group.address} has 3 members: no index 3\n")


def test_a_stale_group(cluster, aiolb, look, bpffs):
    """A group in which nobody is left is told of, and how to remove it."""
    group = cluster(1)
    assert aiolb("status", "--interval", "0")[0] == 0
    group.kill(0)
    status, lines, _ = aiolb("status", "--interval", "0")
    assert (status, lines[0]) == (1, f"udp {group.address}  stale: nobody is alive")
    assert lines[-1] == (
        f"hint: nobody is alive: start a collector; or, to forget the group: aiolb group delete --stale --bpffs {bpffs}"
    )
    assert look()[0]["stale"] is True


def test_all_groups(cluster, look):
    """Without an address it tells of every group of the network namespace, in order."""
    groups = [cluster(1), cluster(2)]
    assert Counter(group["group"] for group in look()) == Counter(str(group.address) for group in groups)
    assert [group["count"] for group in look(str(groups[1].address))] == [2]


def test_a_group_of_another_version(cluster, aiolb):
    """A group that cannot be opened is told of, and does not hide the others; alone, or asked for, it is an error."""
    other = cluster(1)
    config = other.group.config
    other.group._maps.write("config", 0, replace(config, layout=config.layout + 1).pack())
    said = f"holds a group with layout {config.layout + 1}, and this aiolb works with layout {config.layout}\n  hint: "
    assert aiolb("status")[0] == 3
    name = str(cluster(1, host="127.0.0.9").address)
    status, lines, error = aiolb("status", "--interval", "0")
    assert (status, lines[0]) == (1, f"udp {name}  1 of 1 members alive")
    assert error.startswith("aiolb: warning: ")
    assert said in error
    assert [group["group"] for group in json.loads(aiolb("status", "--json")[1][0])["groups"]] == [name]
    status, lines, error = aiolb("status", str(other.address))
    assert (status, lines) == (3, [])
    assert said in error
    status, lines, _ = aiolb("group", "show")
    assert (status, {name, str(other.address)} <= set(lines)) == (0, True)
    other.group._maps.write("config", 0, config.pack())


def test_no_group(aiolb):
    """Where there is none it says so, and fails: nothing is healthy there."""
    for arguments in ((), ("127.0.0.99:1",), ("--json",), ("--member", "0")):
        status, lines, error = aiolb("status", *arguments)
        assert (status, lines) == (3, [])
        assert error.splitlines()[1].startswith("  hint: start a collector")


def test_looks_that_are_too_close(aiolb):
    """Between two looks each member must have told of itself, or a busy one would seem to get nothing."""
    status, lines, error = aiolb("status", "--interval", "0.1")
    assert (status, lines) == (2, [])
    assert error.splitlines() == [
        "aiolb: error: 0.1 s is too short: members tell of themselves four times a second",
        "  hint: --interval 0.5, or 0 for one look",
    ]


def test_groups_that_are_deleted_meanwhile(bpffs, monkeypatch):
    """Where all of several groups go between they are listed and looked at, it fails: nothing is healthy there."""
    names = [GroupName.parse("127.0.0.99:1"), GroupName.parse("127.0.0.99:2")]
    monkeypatch.setattr("aiolb.cli.status.group_names", lambda _: names)
    done = CliRunner().invoke(main, ["status", "--interval", "0", "--bpffs", str(bpffs)])
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr.splitlines()[1] == "  hint: start a collector there first"


@pytest.mark.parametrize("balancer", ["classic", "none"])
@pytest.mark.parametrize(
    "command", [("status", "--interval", "0"), ("top", "--once"), ("route", "127.0.0.1", "--group")]
)
async def test_a_port_without_pins(aiolb, tmp_path, balancer, command):
    """Where a collector without pins has the port, it is named, and so is where to look instead."""
    async with Member("discard", "--bind", "127.0.0.1:0", "--balancer", balancer, report=tmp_path / "0") as member:
        bind = (await member.ready())["bind"]
        status, lines, error = aiolb(*command, bind)
    assert (status, lines) == (3, [])
    first, hint = error.splitlines()
    who = f"pid {member.process.pid}, user root"
    assert first == f"aiolb: error: no group is pinned for udp {bind}; who has the port: {who}"
    assert hint.startswith("  hint: a collector with --balancer classic or none, or without a BPF file system, tells")


async def test_the_other_protocol(cluster, aiolb, bpffs):
    """Where there is a group of the other protocol at the address, its name is told."""
    group = cluster(1)
    status, _, error = aiolb("status", f"tcp:{group.address}")
    assert (status, error.splitlines()) == (
        3,
        [
            f"aiolb: error: there is no tcp group at {group.address}, but a udp group",
            f"  hint: aiolb status udp:{group.address} --bpffs {bpffs}",
        ],
    )


def test_a_prepared_group(cluster, aiolb):
    """A group that waits for its user's members is not stale, and it takes its name to delete it."""
    group = cluster(1)
    group.kill(0)
    group.group.prepare(65534, 65534)
    status, lines, _ = aiolb("status", group.address, "--interval", "0")
    assert (status, lines[0]) == (1, f"udp {group.address}  prepared for nobody: nobody is alive")
    assert "start a collector as nobody; or, to forget the group:" in lines[-1]
    assert lines[-1].split(" --bpffs")[0].endswith(f"aiolb group delete {group.address}")
    status, lines, _ = aiolb("status", group.address, "--interval", "0", "--json")
    (told,) = json.loads(lines[0])["groups"]
    assert (status, told["stale"], told["prepared"]) == (1, False, "nobody")


async def test_a_collector_that_is_stuck_is_silent(bpffs, address, aiolb):
    """A supervised worker that is stopped is silent, while its socket lives; when it goes on it is alive again."""
    options = ["--bind", str(address), "--bpffs", str(bpffs), "--workers", "1", "--worker-timeout", "3600"]
    async with Supervisor("discard", *options) as supervisor:
        await supervisor.event("supervising")
        worker = supervisor.worker(0)

        def state():
            return aiolb("status", "--interval", "0")

        await until(lambda: state()[0] == 0, "it is alive")
        os.kill(worker, signal.SIGSTOP)
        try:
            await until(lambda: state()[0] == 1, "it is silent")
            lines = state()[1]
            assert "silent" in lines[4]
            assert lines[-1] == "hint: member 0 is silent: the collector hangs or was killed: see its log"
        finally:
            os.kill(worker, signal.SIGCONT)
        await until(lambda: state()[0] == 0, "it is alive again")


def test_routes_are_the_kernels(cluster, aiolb):
    """Where it says that a source goes is where the kernel sends it, failover included."""
    group = cluster(5)
    group.kill(1, 3)
    sources = [IPv4Address("127.0.3.1") + i for i in range(100)]
    status, lines, error = aiolb("route", *sources, "--group", group.address, "--json")
    assert (status, error) == (0, "")
    routes = {ip_address(one["source"]): one for one in json.loads(lines[0])["routes"]}
    assert {source: one["member"] for source, one in routes.items()} == group.route(sources)
    assert {one["owner"] for one in routes.values()} == set(range(5))
    for one in routes.values():
        assert one["owner"] == group.group.slots[one["slot"]]
        assert one["owner_alive"] == (one["owner"] not in (1, 3)) == (one["member"] == one["owner"])


def test_routes_of_denied_sources(cluster, aiolb):
    """A source that the guard drops is at nobody, and the rule is named: as the kernel has it."""
    group = cluster(2)
    assert aiolb("guard", "--deny", "127.0.4.0/24", "--allow", "127.0.4.9", "--allow", "127.0.0.0/8")[0] == 0
    sources = [IPv4Address("127.0.4.8"), IPv4Address("127.0.4.9")]
    _, lines, _ = aiolb("route", *sources, "--json")
    denied, allowed = json.loads(lines[0])["routes"]
    assert (denied["dropped_by"], denied["member"], allowed["dropped_by"]) == ("deny 127.0.4.0/24", None, None)
    assert group.route(sources[1:]) == {sources[1]: allowed["member"]}
    _, lines, _ = aiolb("route", *sources)
    assert lines[0].split()[-1] == "GUARD"
    assert lines[1].split()[-3:] == ["nobody", "deny", "127.0.4.0/24"]


def test_a_table_of_routes(cluster, aiolb):
    """For people: a line for each source; who gets it now while its owner is dead."""
    group = cluster(2, members=[0])
    status, lines, _ = aiolb("route", *[f"127.0.0.{i}" for i in range(1, 20)], "::ffff:127.0.0.20", "[fd00::1]:5")
    assert (status, lines[0].split()) == (0, ["SOURCE", "SLOT", "OWNER", "STATE", "NOW", "AT"])
    rows = [line.split() for line in lines[1:]]
    assert [rows[-2][0], rows[-1][0]] == ["127.0.0.20", "[fd00::1]:5"]
    assert {(owner, state, now) for _, _, owner, state, now in rows} == {("0", "alive", "0"), ("1", "dead", "0")}
    group.kill(0)
    assert {line.split()[-1] for line in aiolb("route", "127.0.0.1")[1][1:]} == {"nobody"}


async def test_newer(bpffs, address, aiolb, tmp_path):
    """While a member joined before a file was written the status is 1, and 0 as soon as all were taken over."""
    options = ["discard", "--bind", str(address), "--bpffs", str(bpffs), "--count", "2"]
    written = tmp_path / "started"
    ask = ["status", "--interval", "0", "--newer", str(written)]
    assert aiolb(*ask)[0] == 2, "there is no such file"
    async with (
        Member(*options, "--index", "0", report=tmp_path / "0") as zero,
        Member(*options, "--index", "1", report=tmp_path / "1") as one,
    ):
        await zero.ready()
        await one.ready()
        written.touch()
        now = time.time_ns()  # the kernel's time of a file is up to a tick behind, and may be before the last join
        os.utime(written, ns=(now, now))
        code, lines, _ = aiolb(*ask)
        assert (code, lines[-1]) == (1, f"hint: index 0, 1 joined before {written} was written")
        async with Member(*options, "--index", "0", "--takeover", report=tmp_path / "2") as former:
            await former.ready()
            await zero.ended()
            code, lines, _ = aiolb(*ask)
            assert (code, lines[-1]) == (1, f"hint: index 1 joined before {written} was written")
            async with Member(*options, "--index", "1", "--takeover", report=tmp_path / "3") as latter:
                await latter.ready()
                await one.ended()
                assert aiolb(*ask)[0] == 0
                await latter.stop()
            await former.stop()
