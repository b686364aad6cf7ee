"""What is said of a port, as far as it takes no privilege to find out."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

import pytest

from aiolb import port_check, sockets
from aiolb.address import Address
from aiolb.bpf import syscall
from aiolb.bpf.group_name import GroupName
from aiolb.diagnosis import Diagnosis, Level
from aiolb.sockets import Holder

pytestmark = pytest.mark.usefixtures("nothing_left")
LOCAL = Address("127.0.0.1", 0)
ME = f"({Holder(os.geteuid(), os.getpid())})"
STOP = f"choose another port, or: kill {os.getpid()}"


@pytest.fixture
def stack():
    """What is opened in it is closed at the end."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def check(tmp_path):
    """Look at a port where no group is pinned."""

    def look(address):
        return port_check.check(GroupName("udp", address), tmp_path, bpf=False)

    return look


def test_free(check):
    """A port that nobody has is free, and still is when it was looked at."""
    with sockets.reserved_port(LOCAL) as address:
        pass
    assert check(address) == check(address) == Diagnosis(str(address), Level.OK, "free")


def test_not_to_be_bound(check):
    """What the kernel says of an address that is not this machine's is a problem, with its hint."""
    found = check(Address("192.0.2.1", 9000))
    assert (found.level, found.found) == (
        Level.PROBLEM,
        "cannot bind 192.0.2.1:9000: Cannot assign requested address",
    )
    assert found.fix == "use an address of this machine (ip address), or 0.0.0.0 for all"


def test_taken(check, stack):
    """A socket without SO_REUSEPORT takes the port: a problem, with who and how to end it."""
    sock = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    sock.bind(("127.0.0.1", 0))
    address = Address(*sock.getsockname())
    found = f"held by a socket without SO_REUSEPORT {ME}"
    assert check(address) == Diagnosis(str(address), Level.PROBLEM, found, STOP)


def test_shared(check, stack):
    """A socket with SO_REUSEPORT that is in no group is a warning; it keeps its datagrams meanwhile."""
    sock = stack.enter_context(sockets.bind_reuseport(LOCAL))
    address = Address(*sock.getsockname())
    found = f"a socket with SO_REUSEPORT is in no eBPF group {ME}: with members on the same port it gets nothing"
    assert check(address) == Diagnosis(
        str(address), Level.WARNING, found, f"unless it is a collector with another balancer: {STOP}"
    )


def test_shared_elsewhere(check, stack):
    """One that is bound to a part of what is asked for is told with its address."""
    sock = stack.enter_context(sockets.bind_reuseport(LOCAL))
    own = Address(*sock.getsockname())
    found = check(Address("0.0.0.0", own.port))
    assert found.level is Level.WARNING
    assert f"it is bound to {own}, and the narrower address gets what is sent to it" in found.found


def test_nothing_to_see(check, stack, monkeypatch, tmp_path):
    """Where the socket may not be looked at it is said so, with how to see more."""

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted", "pidfd_getfd")

    monkeypatch.setattr(syscall, "pidfd_getfd", refuse)
    sock = stack.enter_context(sockets.bind_reuseport(LOCAL))
    address = Address(*sock.getsockname())
    found = f"held by a socket that this user may not look at {ME}: SO_REUSEPORT or not is unknown"
    fix = f"look as root: aiolb doctor {address} --bpffs {tmp_path}"
    assert check(address) == Diagnosis(str(address), Level.WARNING, found, fix)


def test_nobody_is_bound_where_others_listen(check, stack, monkeypatch):
    """Where sockets could share the port with ours none is bound, as it would take their datagrams."""
    sock = stack.enter_context(sockets.bind_reuseport(LOCAL))
    monkeypatch.setattr(sockets, "bind_reuseport", lambda _: pytest.fail("bound"))
    check(Address(*sock.getsockname()))
