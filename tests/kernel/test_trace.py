"""``aiolb trace``: decisions as an operator reads them, and the flag that is off after every end."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

import pytest

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf import hashing, spec
from aiolb.bpf.abi import FLAG_EVENTS
from aiolb.bpf.group import Group, GroupOptions
from aiolb.bpf.group_name import GroupName
from aiolb.bpf.keys import key_of

ROOM = 5_461
"""Events that the buffer has room for."""


@contextmanager
def tracing(group, bpffs, *options, ready=True, **streams):
    """A running ``aiolb trace``, killed at the end of the block; with ``ready``, it has said that it began."""
    command = [sys.executable, "-W", "error", "-m", "aiolb", "trace", "--bpffs", str(bpffs)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | streams
    name = getattr(group, "name", group.address)
    with subprocess.Popen([*command, "--group", str(name), *options], **streams) as child:
        try:
            if ready:
                begin = child.stderr.readline()
                assert begin.startswith(f"aiolb: decisions of the group at {name}, whose key is source"), begin
            yield child
        finally:
            child.kill()


def is_on(group):
    """Whether the program writes decisions."""
    return bool(group.group.config.flags & FLAG_EVENTS)


def slot_of(group, source):
    """The slot of a source."""
    return hashing.slot_of(group.group.config.seed, key_of(source))


def port_of(group):
    """The port that the datagrams come from."""
    return group._senders[4].sock.getsockname()[1]


def test_lines(cluster, bpffs, sources_v4):
    """A line says when, from where, how long, the slot, the member, and what was decided."""
    group, sources = cluster(3), sources_v4(40)
    before = group.route(sources)
    group.kill(1)
    with tracing(group, bpffs, "--count", "40") as child:
        where = group.route(sources)
        out, err = child.communicate()
    assert (child.returncode, err) == (0, "aiolb: 40 decisions shown, 0 lost\n")
    lines = out.splitlines()
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d\.\d{6}", line[:15]) for line in lines)
    assert [line.split()[1:] for line in lines] == [
        [
            f"{source}:{port_of(group)}",
            "1",
            str(slot_of(group, source)),
            str(where[source]),
            *(["failover", "from", "1"] if before[source] == 1 else ["steer"]),
        ]
        for source in sources
    ]
    assert not is_on(group)


def test_json(cluster, bpffs, sources_v4):
    """With --json each line is an object, with the key and the slot's owner too."""
    group, sources = cluster(3, strict=True), sources_v4(20)
    for membership in group.memberships.values():
        membership.leave()
    begin = datetime.now(UTC)
    with tracing(group, bpffs, "--json", "--count", "20") as child:
        group.send(sources)
        out, err = child.communicate()
    assert (child.returncode, err) == (0, "aiolb: 20 decisions shown, 0 lost\n")
    told = [json.loads(line) for line in out.splitlines()]
    assert all(begin <= datetime.fromisoformat(one.pop("time")) <= datetime.now(UTC) for one in told)
    assert told == [
        {
            "source": str(source),
            "port": port_of(group),
            "bytes": 1,
            "key": "source",
            "slot": slot_of(group, source),
            "owner": group.group.slots[slot_of(group, source)],
            "member": None,
            "action": "drop",
        }
        for source in sources
    ]


class Connections:
    """Three members that listen, and clients of any source."""

    def __init__(self, stack, bpffs):
        self._stack = stack
        self.address = stack.enter_context(sockets.reserved_port(Address("127.0.0.1", 0), "tcp"))
        self.name = GroupName("tcp", self.address)
        with Group.opened_or_created(self.address, GroupOptions(3, protocol="tcp", bpffs=bpffs)) as self.group:
            stack.callback(self.group.close)
        stack.callback(self.group.delete)
        self.listeners = [stack.enter_context(sockets.bind_listening(self.address, backlog=512)) for _ in range(3)]
        self.memberships = [self.group.join(sock, index) for index, sock in enumerate(self.listeners)]
        assert self.group.config.program == spec.shipped(spec.MIGRATING).digest

    def connect(self, sources):
        """Connect from each source; the ports."""
        clients = [self._stack.enter_context(socket.socket()) for _ in sources]
        for client, source in zip(clients, sources, strict=True):
            client.settimeout(10)
            client.bind((str(source), 0))
            client.connect((self.address.host, self.address.port))
        return {source: client.getsockname()[1] for source, client in zip(sources, clients, strict=True)}


@pytest.fixture
def connections(bpffs):
    """A group of connections."""
    with ExitStack() as stack:
        yield Connections(stack, bpffs)


def test_connections(connections, bpffs, sources_v4):
    """With TCP a line is a new connection, of no bytes, and another one when it moves from a socket that is closed."""
    sources, seed = sources_v4(60), connections.group.config.seed
    slots = {source: hashing.slot_of(seed, key_of(source)) for source in sources}
    owners = {source: connections.group.slots[slots[source]] for source in sources}
    moved = [source for source in sources if owners[source] == 1]
    assert len(moved) > 5
    with tracing(connections, bpffs, "--count", str(len(sources) + len(moved))) as child:
        ports = connections.connect(sources)
        connections.memberships[1].leave()
        connections.listeners[1].close()  # nobody has accepted: the connections that wait move
        out, err = child.communicate(timeout=30)
    where = {source: connections.group.locate(source) for source in sources}
    told = [line.split()[1:] for line in out.splitlines()]
    assert (child.returncode, err) == (0, f"aiolb: {len(told)} decisions shown, 0 lost\n")
    assert told[: len(sources)] == [
        [f"{source}:{ports[source]}", "0", str(slots[source]), str(owners[source]), "steer"] for source in sources
    ]
    assert sorted(told[len(sources) :]) == sorted(
        [f"{source}:{ports[source]}", "0", str(slots[source]), str(where[source]), "failover", "from", "1"]
        for source in moved
    )
    assert connections.group.statistics().migrated == len(moved)
    assert not connections.group.config.flags & FLAG_EVENTS


def test_a_network_and_a_number(cluster, bpffs, sources_v4):
    """--source leaves others out, and --count ends with so many, whatever comes after them."""
    group, sources = cluster(3), sources_v4(300)
    inside = [source for source in sources if source.packed[1] < 128]
    with tracing(group, bpffs, "--source", "127.0.0.0/9", "--count", "100") as child:
        group.route(sources)
        out, err = child.communicate()
    assert [line.split()[1].partition(":")[0] for line in out.splitlines()] == [str(one) for one in inside[:100]]
    assert err == "aiolb: 100 decisions shown, 0 lost\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ends_with_a_signal(cluster, bpffs, sources_v4, number):
    """A signal ends it well: what was decided before is shown, and the balancer tells no more."""
    group = cluster(3)
    with tracing(group, bpffs) as child:
        assert is_on(group)
        group.route(sources_v4(100))
        child.send_signal(number)
        out, err = child.communicate()
    assert (child.returncode, len(out.splitlines()), err) == (0, 100, "aiolb: 100 decisions shown, 0 lost\n")
    assert not is_on(group)


def test_a_reader_of_its_output_that_ends(cluster, bpffs, sources_v4):
    """Where its output goes nowhere any more, as into `head`, it ends silently, and the balancer tells no more."""
    group = cluster(3)
    with tracing(group, bpffs) as child:
        child.stdout.close()
        group.route(sources_v4(100))
        err = child.stderr.read()
    assert (child.returncode, err) == (1, "")
    assert not is_on(group)


def test_output_that_nobody_reads(cluster, bpffs, sources_v4, wait_until):
    """A full pipe holds the command up, not the balancer; a signal ends it, and what was lost is told exactly."""
    group, sources = cluster(3), sources_v4(3 * ROOM)
    with tracing(group, bpffs) as child:
        fcntl.fcntl(child.stdout, fcntl.F_SETPIPE_SZ, 4096)  # a page: anything in it fills it
        group.route(sources)
        wait_until(lambda: queued(child.stdout), "the pipe to be full")
        child.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_on(group), "the flag to be off")
        out, err = child.communicate()
    shown = len(out.splitlines())
    lost = len(sources) - shown
    assert (child.returncode, lost) == (0, group.statistics.events_lost)
    assert lost > 0
    assert err == (
        f"aiolb: {shown:,} decisions shown, {lost:,} lost\n"
        "  hint: choose with --source or --sample; lost ones are counted, and slow nothing down\n"
    )


@pytest.mark.parametrize("awake", [True, False])
def test_after_a_sleep(cluster, bpffs, sources_v4, wait_until, awake):
    """That decisions are missing is told where they are, also when it ends before it has gone on."""
    group = cluster(3)
    said = (
        "aiolb: warning: the balancer stopped telling, for nobody took decisions out for 10 s: those made since then "
        "are neither shown nor counted\n"
    )
    with tracing(group, bpffs) as child:
        group.route(sources_v4(1))
        assert child.stdout.readline()
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        with group.group.locked():  # what the program does when the buffer has been full for long
            group.group._write_config(flags=group.group.config.flags & ~FLAG_EVENTS)
        if not awake:
            child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGCONT)
        if awake:
            wait_until(lambda: is_on(group), "the flag to be on again")
            assert child.stderr.readline() == said
            child.send_signal(signal.SIGTERM)
        out, err = child.communicate()
    assert (child.returncode, out) == (0, "")
    assert err == "aiolb: 1 decision shown, 0 lost\n" + ("" if awake else said)
    assert not is_on(group)


def queued(pipe):
    """Bytes in a pipe."""
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]


def test_after_one_that_was_killed(cluster, bpffs, sources_v4):
    """After SIGKILL the flag is on, and the next one begins at once."""
    group = cluster(3)
    with tracing(group, bpffs):
        pass
    assert is_on(group)
    with tracing(group, bpffs, "--count", "10") as child:
        group.route(sources_v4(10))
        out, _ = child.communicate()
    assert (child.returncode, len(out.splitlines())) == (0, 10)
    assert not is_on(group)


def test_one_at_a_time(cluster, bpffs):
    """A second one is refused, and names the first."""
    group = cluster(3)
    with tracing(group, bpffs) as first, tracing(group, bpffs, ready=False) as second:
        out, err = second.communicate()
    assert (second.returncode, out) == (3, "")
    assert err == (
        f"aiolb: error: process {first.pid} (user {os.getuid()}) reads the decisions of this group already, and one "
        "can at a time\n  hint: end that one first\n"
    )


def test_a_group_that_ends(cluster, bpffs):
    """When the group's pins are removed, it says so and ends."""
    group = cluster(3)
    with tracing(group, bpffs) as child:
        group.group.delete()
        _, err = child.communicate()
    assert child.returncode == 3
    assert err == (
        f"aiolb: 0 decisions shown, 0 lost\naiolb: error: the group at {group.address} is gone\n"
        "  hint: start it again, and aiolb trace then\n"
    )


@pytest.mark.parametrize(("environment", "colour"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_in_a_terminal(cluster, bpffs, sources_v4, environment, colour):
    """A terminal gets a heading, and colours where it wants them."""
    group, sources = cluster(3), sources_v4(1)
    group.kill(*(index for index in range(3) if index == group.route(sources)[sources[0]]))
    leader, follower = pty.openpty()
    variables = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    try:
        with tracing(group, bpffs, "--count", "1", stdout=follower, env=variables | environment) as child:
            os.close(follower)
            group.route(sources)
            child.wait()
            heading, line, _ = os.read(leader, 4096).decode().split("\r\n")
    finally:
        os.close(leader)
    assert heading.split() == ["time", "source", "bytes", "slot", "member", "decision"]
    assert len(re.sub("\x1b.*?m", "", line)) <= 80
    assert ("\x1b[33mfailover from" in line) == colour
    assert ("\x1b" in line) == colour


def test_usage(bpffs):
    """A network that is none is told as a mistake of usage, and without a group it says so."""
    command = [sys.executable, "-m", "aiolb", "trace", "--bpffs", str(bpffs)]
    wrong = subprocess.run([*command, "--source", "x"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("aiolb: error: 'x' is no network")
    none = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (none.returncode, none.stdout) == (3, "")
    assert none.stderr.startswith("aiolb: error: there is no group in this network namespace")
