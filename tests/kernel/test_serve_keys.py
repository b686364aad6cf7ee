"""`aiolb serve` with a key: what it logs, what the members get, what it refuses, and what it leaves."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import AsyncExitStack, closing

import pytest
import serving
import supervision
from deadline import DEADLINE
from documents import ROOT, blocks, commands
from serving import AIOLB

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf import compiler, spec
from aiolb.bpf.group import Group, GroupOptions
from aiolb.bpf.key_file import KeyFile

DOCUMENT, SESSION = "docs/how-to/keys.md", ROOT / "examples/keys/session.c"
TABLE = """int key_of(const struct packet *packet, struct key *key)
{
	u64 table[4] = {1, 2, 3, 4};
	u8 type;

	if (load_u8(packet, 0, &type))
		return -1;
	return set_key(key, table[type & 7], 0);
}
"""


@pytest.fixture
async def start(bpffs, address, tmp_path):
    """Members or supervisors with the given options, ready; killed at the end."""
    numbers = itertools.count()
    async with AsyncExitStack() as stack:

        async def start(*options, ready="ready"):
            arguments = ["discard", "--bind", str(address), "--bpffs", str(bpffs), *map(str, options)]
            process = serving.Member(*arguments, report=tmp_path / f"{next(numbers)}.json")
            member = await stack.enter_async_context(process)
            return member, await member.event(ready)

        yield start


@pytest.fixture
def refused(bpffs, address):
    """Run a serve that is expected to fail: its exit status, and what it says."""

    def run(*options, prefix=()):
        command = [*prefix, *AIOLB, "serve", "discard", "--bind", str(address), "--bpffs", str(bpffs)]
        child = subprocess.run(
            [*command, *map(str, options)], capture_output=True, text=True, timeout=DEADLINE, check=False
        )
        assert child.stdout == ""
        return child.returncode, child.stderr.splitlines()

    return run


def send(address, payloads, *, source="127.0.0.1"):
    """Send from one source, and from one port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((source, 0))
        for payload in payloads:
            sender.sendto(payload, (address.host, address.port))


async def stopped(*members):
    """Stop members; how many datagrams each received."""
    return [(await member.stop())["received"] for member in members]


async def received_by_workers(supervisor):
    """Stop a supervisor; how many datagrams each of its members received."""
    return [member["received"] for member in (await supervisor.stop())["members"]]


async def test_the_ready_line_says_the_key(start, address, bpffs):
    """A key is said when it is not the source, by who asked for it and by who joins later without."""
    first, ready = await start("--key", "prefix/24,64", "--count", "2")
    assert ready["key"] == "prefix/24,64"
    second, ready = await start("--index", "1")
    assert ready["key"] == "prefix/24,64"
    with closing(Group.open(address, bpffs=bpffs)) as group:
        assert str(group.key) == "prefix/24,64"
    assert await stopped(first, second) == [0, 0]


async def test_the_source_is_not_said(start):
    """The usual key needs no words."""
    member, ready = await start("--key", "source")
    assert "key" not in ready
    assert await stopped(member) == [0]


async def test_random_members(start, address):
    """With a random key one flow is spread over the members."""
    first, _ = await start("--key", "random", "--count", "2")
    second, _ = await start("--index", "1")
    send(address, [b"x"] * 100)
    received = await stopped(first, second)
    assert sum(received) == 100
    assert all(received)  # one of them gets none once in 2^99


async def test_a_supervisor(start, address):
    """A supervisor's group has the key too, and says it."""
    supervisor, supervising = await start("--key", "random", "--workers", "2", ready="supervising")
    assert supervising["key"] == "random"
    send(address, [b"x"] * 100)
    received = await received_by_workers(supervisor)
    assert sum(received) == 100
    assert all(received)  # one of them gets none once in 2^99


@pytest.mark.usefixtures("compiled")
async def test_a_supervisor_with_a_key_file(start, address):
    """One session of a key file stays on one worker, wherever it is sent from."""
    supervisor, supervising = await start("--key-file", SESSION, "--workers", "2", ready="supervising")
    assert supervising["key"] == str(KeyFile.read(SESSION).key)
    for number in range(20):
        send(address, [b"head" + bytes(8)] * 5, source=f"127.0.0.{number + 1}")
    assert sorted(await received_by_workers(supervisor)) == [0, 100]


@pytest.mark.usefixtures("compiled")
async def test_debug_with_a_key_file(start):
    """A key file can be compiled for debugging."""
    member, ready = await start("--key-file", SESSION, "--debug")
    assert ready["key"] == str(KeyFile.read(SESSION).key)
    assert await stopped(member) == [0]


async def test_a_group_keeps_its_key(start, refused, address):
    """Another key than the group's is refused with both, and how to have it."""
    member, _ = await start("--key", "prefix/24,64")
    status, said = await asyncio.to_thread(refused, "--key", "flow", "--takeover")
    assert (status, said[0]) == (3, f"aiolb: error: the group at {address} has the key prefix/24,64, not flow")
    assert said[1].startswith(
        f"  hint: leave --key out, or start afresh: stop its members, then aiolb group delete {address} "
    )
    assert await stopped(member) == [0]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("command", commands(DOCUMENT))
def test_commands_of_the_documentation(command, namespaces):
    """Each command of docs/how-to/keys.md starts as it is written, and stops."""
    (namespaces.folder / "examples").symlink_to(ROOT / "examples")
    with namespaces.server(command) as server:
        server.wait_for(b"supervising" if "--workers" in command else b"ready")
        server.wait_for(b"key=")
        server.stop()


def test_functions_of_the_documentation():
    """The table names the functions that a key file may use, each with its arguments, and no other."""
    header = (spec.FOLDER / "key.h").read_text()
    functions = set(re.findall(r"^HELPER \S+ (\w+)\(", header, re.MULTILINE))
    table = (ROOT / DOCUMENT).read_text().partition("| function |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)(?:\(|`)", table)) == functions


@pytest.mark.usefixtures("compiled")
def test_the_file_of_the_documentation_compiles(bpffs):
    """The key file that docs/how-to/keys.md shows is one that the kernel takes."""
    (text,) = blocks(DOCUMENT, "c")
    key_file = KeyFile("shown.c", text)
    program = compiler.compile_balancer(key_file=key_file)
    options = GroupOptions(key=key_file.key, program=program, bpffs=bpffs)
    with sockets.reserved_port(Address("127.0.0.1", 0)) as free, Group.opened_or_created(free, options) as group:
        assert group.key == key_file.key
        group.delete()
    group.close()


@pytest.mark.parametrize(
    ("options", "first"),
    [
        (["--key", "sauce"], "aiolb: error: 'sauce' is no key"),
        (["--key", "flow", "--key-file", "k.c"], "aiolb: error: the key is flow, or what k.c says, but not both"),
        (["--key-file", "/nonexistent"], "aiolb: error: the key file /nonexistent cannot be read: No such file or dir"),
    ],
)
def test_wrong_usage(refused, options, first):
    """What cannot work is refused as wrong usage."""
    status, said = refused(*options)
    assert status == 2
    assert said[0].startswith(first)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("workers", [[], ["--workers", "2"]])
def test_a_verifier_that_refuses(refused, tmp_path, bpffs, workers):
    """The key file's line is told, the whole log is in the file that was named, and nothing is pinned."""
    key_file, log = tmp_path / "table.c", tmp_path / "verifier.log"
    key_file.write_text(TABLE)
    status, said = refused("--key-file", key_file, "--verifier-log", log, *workers)
    assert status == 3
    assert said[0].startswith(f"aiolb: error: {key_file}:8: the verifier refused the program: ")
    assert said[1:] == [f"  hint: all that it said is in {log}"]
    assert said[0].rpartition(": ")[2] in log.read_text()
    assert list(bpffs.glob("aiolb/*/*")) == []
    status, said = refused("--key-file", key_file, "--verifier-log", tmp_path / "none/log", *workers)
    assert status == 2
    assert said[0].endswith(
        f", and the verifier's log cannot be written to {tmp_path}/none/log: No such file or directory"
    )


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("workers", [[], ["--workers", "2"]])
def test_a_key_file_needs_privileges(refused, powerless, workers):
    """Where the classic balancer would have to do, a key file is refused."""
    status, said = refused("--key-file", SESSION, *workers, prefix=[*powerless, "--ambient-caps=-all"])
    assert status == 3
    assert said[0].startswith("aiolb: error: a key file needs the eBPF balancer: ")
    assert said[1] == "  hint: run as root or with CAP_BPF, on Linux 5.8 or newer"


async def test_connections(start, address):
    """A group of TCP listeners has a key too: connections of one source are spread by their port."""
    members = []
    for index in range(2):
        options = ["--protocol", "tcp", "--key", "flow", "--index", index, "--count", 2]
        members.append((await start(*options))[0])
    for _ in range(40):
        with socket.create_connection((address.host, address.port), timeout=DEADLINE) as connection:
            connection.sendall(b"x")
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
    accepted = [(await member.stop())["accepted"] for member in members]
    assert sum(accepted) == 40
    assert all(accepted)  # one of them gets none once in 2^39


# The command line, with a compiler that tells when it begins, and does not end.
_COMPILES_FOR_EVER = """
import sys
from aiolb.bpf import compiler
from aiolb.cli import main
compiler.BCC_FOLDERS = [sys.argv.pop(1)]
main()
"""


@pytest.fixture
def compiles_for_ever(tmp_path):
    """The command line whose compilations do not end, and what returns when one has begun."""
    began, bcc = tmp_path / "began", tmp_path / "bcc"
    os.mkfifo(began)
    bcc.mkdir()
    (bcc / "__init__.py").write_text(f"import signal\nopen({str(began)!r}, 'w').close()\nsignal.pause()")
    (bcc / "libbcc.py").touch()
    command = (sys.executable, "-W", "error", "-c", _COMPILES_FOR_EVER, str(tmp_path))
    return command, lambda: asyncio.to_thread(began.read_text)


@pytest.mark.parametrize("options", [["--debug"], ["--workers", "2", "--key-file", str(SESSION)]], ids=["one", "all"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_ctrl_c_while_it_compiles(compiles_for_ever, bpffs, address, options, loop):
    """Ctrl-C while bcc compiles ends the start at once, with status 0; nothing is pinned, and one line says why."""
    command, begun = compiles_for_ever
    arguments = ["discard", "--bind", str(address), "--bpffs", str(bpffs), "--event-loop", loop, *options]
    async with supervision.Supervisor(*arguments, command=command) as run:
        await begun()
        os.killpg(run.pid, signal.SIGINT)
        assert await run.ended() == 0
    assert run.lines == []
    assert {event["event"] for event in run.events} <= {"signal", "start_given_up"}
    assert run.events[-1]["reason"] == "SIGINT came while bcc compiled the balancer"
    assert list(bpffs.glob("aiolb")) == []
