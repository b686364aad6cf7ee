"""`aiolb serve` and `aiolb demo` with the eBPF balancer: places, counts, takeover, what a member loads and leaves."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import socket
import subprocess
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest
import serving
import structlog.testing

from aiolb import Collector, sockets
from aiolb.address import Address, parse_address
from aiolb.bpf import program as bpf_program
from aiolb.bpf.group import Group
from aiolb.config import ServeConfig
from aiolb.errors import UnsupportedError
from aiolb.server import Server

AIOLB, DEADLINE, Member = serving.AIOLB, serving.DEADLINE, serving.Member
NO_CAPABILITIES = ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]


@pytest.fixture
async def start(bpffs, tmp_path):
    """Members with the given options, started and ready; killed at the end."""
    numbers = itertools.count()
    async with AsyncExitStack() as stack:

        async def start(address, *options, app="discard"):
            report = tmp_path / f"{next(numbers)}.json"
            arguments = [app, "--bind", str(address), "--bpffs", str(bpffs), *options]
            member = await stack.enter_async_context(Member(*arguments, report=report))
            await member.ready()
            return member

        yield start


@pytest.fixture
def powerless(needs):
    """The start of a command line that takes every capability away from root."""
    return [needs("setpriv", "util-linux"), *NO_CAPABILITIES]


async def test_a_held_index_is_refused(start, address, aiolb):
    """Joining at the index of a live member fails with its pid, and does not disturb it."""
    holder = await start(address, "--index", "1", "--count", "2")
    refused = await asyncio.to_thread(aiolb, "serve", "discard", "--bind", str(address), "--index", "1")
    assert (refused.returncode, refused.stdout) == (3, "")
    said = refused.stderr.splitlines()
    assert said[0].startswith(
        f"aiolb: error: index 1 of the group at {address} is held by pid {holder.process.pid} since "
    )
    assert said[1:] == ["  hint: choose another --index, or replace it with --takeover"]
    assert (await holder.stop())["count"] == 2


async def test_an_index_outside_of_the_groups_count(start, address, aiolb):
    """Without a count of its own a member must fit in the group's."""
    await start(address, "--count", "2")
    refused = await asyncio.to_thread(aiolb, "serve", "discard", "--bind", str(address), "--index", "2")
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        f"aiolb: error: index 2 is outside of the group at {address}, which has 2 members",
        "  hint: an --index below 2, or a larger --count",
    ]


async def test_counts(start, address):
    """A member without a count joins with the group's; another count is logged by the others."""
    first = await start(address, "--count", "2")
    second = await start(address, "--index", "1")
    assert (await second.ready())["count"] == 2
    third = await start(address, "--index", "2", "--count", "3")
    for member in (first, second):
        changed = await member.event("count_changed")
        assert (changed["before"], changed["now"], changed["bind"]) == (2, 3, str(address))
    assert [(await member.stop())["count"] for member in (first, second, third)] == [3, 3, 3]
    assert [event["count"] for event in first.events if event["event"] == "stopped"] == [3]
    assert not [event for event in third.events if event["event"] == "count_changed"]


async def test_takeover_of_a_free_index(start, address):
    """Where nobody holds the index, a takeover is a join."""
    member = await start(address, "--takeover")
    assert (await member.stop())["index"] == 0


async def test_takeover_on_two_addresses(start, address):
    """A member with two addresses is taken over on both."""
    with sockets.reserved_port(Address("::1", 0)) as other:
        old = await start(address, "--bind", str(other))
        new = await start(address, "--bind", str(other), "--takeover")
        assert (await old.ended())["handled"] == 0
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six, socket.socket(type=socket.SOCK_DGRAM) as four:
            for _ in range(10):
                six.sendto(b"x", (other.host, other.port))
                four.sendto(b"x", (address.host, address.port))
        report = await new.stop()
    assert [(sock["bind"], sock["handled"]) for sock in report["sockets"]] == [(str(address), 10), (str(other), 10)]


async def test_a_displaced_member_leaves_the_place_to_the_new_one(start, address, bpffs):
    """The end of a displaced member does not remove the member that displaced it."""
    old = await start(address)
    new = await start(address, "--takeover")
    await old.ended()
    with closing(Group.open(address, bpffs=bpffs)) as group:
        assert [member.pid for member in group.statistics().members] == [new.process.pid]


@pytest.mark.parametrize("options", [(), ("--compile",), ("--debug",)], ids=["shipped", "compile", "debug"])
async def test_a_member_holds_no_compiler(start, address, compiled, options):
    """A running member has neither bcc nor LLVM in memory, also when the balancer was compiled at its start."""
    member = await start(address, *options)
    maps = await asyncio.to_thread(Path(f"/proc/{member.process.pid}/maps").read_text)
    # The files only: addresses are hexadecimal, and may spell bcc.
    loaded = "\n".join(line[line.index("/") :] for line in maps.splitlines() if "/" in line)
    assert "python" in loaded
    assert not re.search(r"bcc|llvm|clang", loaded, re.IGNORECASE)
    assert compiled.compiler


async def test_a_chosen_port_is_forgotten(start, bpffs):
    """The group at a port that the kernel chose goes with its last member; at a named port it stays."""
    member = await start("127.0.0.1:0")
    bound = (await member.ready())["bind"]
    assert len(list(bpffs.glob("aiolb/*/*"))) == 1
    assert (await member.stop())["sockets"][0]["bind"] == bound
    assert list(bpffs.glob("aiolb")) == []


async def test_a_named_port_is_kept(start, address, bpffs):
    """The group at a named port, and with it the seed, stays for members to come back."""
    await (await start(address, "--seed", "42")).stop()
    with closing(Group.open(address, bpffs=bpffs)) as group:
        assert group.config.seed == 42
        assert group.alive() == set()


def test_without_privilege(aiolb, powerless):
    """`--balancer ebpf` without capabilities fails in one line with a hint, exit status 3."""
    failed = aiolb("serve", "discard", "--bind", "127.0.0.1:0", "--balancer", "ebpf", prefix=powerless)
    assert (failed.returncode, failed.stdout) == (3, "")
    assert failed.stderr.splitlines() == [
        "aiolb: error: the kernel does not let this user load BPF programs (BPF_MAP_CREATE: Operation not permitted)",
        "  hint: run as root or with CAP_BPF (docker run --cap-add BPF); --balancer classic needs no privilege",
    ]


def test_without_bpffs(aiolb, powerless, tmp_path):
    """Where no bpffs is mounted and mounting is forbidden, the error says how root would."""
    options = ["serve", "discard", "--bind", "127.0.0.1:0", "--balancer", "ebpf"]
    failed = aiolb(*options, prefix=powerless, bpffs=tmp_path)
    assert failed.returncode == 3
    assert failed.stderr.splitlines() == [
        f"aiolb: error: no BPF file system is mounted at {tmp_path}, and mounting it failed: Operation not permitted",
        f"  hint: as root: mount -t bpf bpf {tmp_path}; docker run -v {tmp_path}:{tmp_path}",
    ]


async def test_a_kernel_without_the_program_type(bpffs, monkeypatch):
    """Where the kernel lacks SK_REUSEPORT programs, `auto` steers with the classic balancer and says why."""

    def refuse(*_, **__):
        raise UnsupportedError("this kernel has no SK_REUSEPORT programs", hint="Linux 5.8 has")

    class Discard(Collector):
        async def handle(self, datagram, addr):
            pass

    monkeypatch.setattr(bpf_program, "load", refuse)
    server = Server(Discard(), ServeConfig(bind=(Address("127.0.0.1", 0),), count=3, bpffs=bpffs))
    with structlog.testing.capture_logs() as logged:
        await server.start()
        await server.stop()
    assert server.statistics().sockets[0].balancer == "classic"
    (fallback,) = (event for event in logged if event["event"] == "balancer_fallback")
    assert fallback["log_level"] == "warning"
    assert (fallback["reason"], fallback["hint"]) == ("this kernel has no SK_REUSEPORT programs", "Linux 5.8 has")
    assert list(bpffs.glob("aiolb")) == []


def test_demo(aiolb, bpffs):
    """The demo sends what it says, loses and doubles nothing, splits no source, and leaves no pin."""
    done = aiolb("demo", "--json", "--seconds", "0.5")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    members = result.pop("members")
    assert result == {
        "balancer": "ebpf",
        "sources": 60,
        "split_sources": 0,
        "sent": 1000,
        "received": 1000,
        "lost": 0,
        "duplicated": 0,
    }
    assert [sorted(member) for member in members] == [["datagrams", "index", "sources"]] * 3
    assert [member["index"] for member in members] == [0, 1, 2]
    assert sum(member["sources"] for member in members) == 60
    assert sum(member["datagrams"] for member in members) == 1000
    assert list(bpffs.glob("aiolb")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_demo_cut_short(bpffs, tmp_path, number):
    """A signal in the middle of the demo leaves no process, no pin and no file."""
    command = [*AIOLB, "demo", "--seconds", "600", "--bpffs", str(bpffs)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    ) as demo:
        assert demo.stdout is not None
        assert demo.stdout.readline().startswith("3 members at 127.0.0.1:")
        assert demo.stdout.readline() == "sending 1,200,000 datagrams from 60 sources at 2,000/s …\n"
        children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
        assert len(children) == 3
        demo.send_signal(number)
        rest, errors = demo.communicate(timeout=DEADLINE)
    assert (demo.returncode, rest, errors.strip()) == (1, "", "Aborted!")
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert list(bpffs.glob("aiolb")) == []
    assert list(tmp_path.iterdir()) == []


def test_demo_killed(bpffs, tmp_path, wait_until):
    """Members end by themselves, gracefully, when the demo that started them is killed."""
    command = [*AIOLB, "demo", "--seconds", "600", "--bpffs", str(bpffs)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as demo:
        assert demo.stdout is not None
        address = demo.stdout.readline().split()[3].rstrip(",")
        demo.stdout.readline()
        children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
        assert len(children) == 3
        demo.kill()
    wait_until(lambda: not [pid for pid in children if is_running(pid)], "the members to end")
    reports = [json.loads(report.read_text()) for report in tmp_path.glob("*/*.json")]
    assert [report["abandoned"] for report in reports] == [0, 0, 0]
    with closing(Group.open(parse_address(address), bpffs=bpffs)) as group:
        group.delete()


def is_running(pid):
    """Whether the process is there, and no zombie that its new parent has not looked after yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_demo_without_a_bpffs(aiolb, tmp_path):
    """When its members cannot start, the demo says what they said, once."""
    nowhere = tmp_path / "file"
    nowhere.touch()
    failed = aiolb("demo", bpffs=nowhere)
    assert failed.returncode == 3
    assert failed.stderr.splitlines()[0].startswith(
        f"aiolb: error: a member did not start: no BPF file system is mounted at {nowhere}, and mounting it failed: "
    )
    assert len(failed.stderr.splitlines()) == 2


def test_demo_without_privilege(aiolb, powerless, bpffs):
    """Without capabilities the demo falls back to the classic balancer, says so, and splits no source."""
    done = aiolb("demo", "--json", "--seconds", "0.5", prefix=powerless)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["balancer"], result["sent"], result["received"]) == ("classic", 1000, 1000)
    assert (result["lost"], result["duplicated"], result["split_sources"], result["sources"]) == (0, 0, 0, 60)
    said = aiolb("demo", "--seconds", "0.1", prefix=powerless).stdout
    assert said.startswith("Without CAP_BPF and a BPF file system the classic balancer steers: affinity,\n")
    assert list(bpffs.glob("aiolb")) == []
