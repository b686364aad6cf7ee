"""The sockets on a port as the kernel lists them, with the cookies that tell them apart."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

import aiolb
from aiolb import socket_diag
from aiolb.address import Address
from aiolb.bpf import steering
from aiolb.bpf.state import cookie
from aiolb.socket_diag import BoundSocket, bound_sockets


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "[::1]", "[::]"])
def test_the_sockets_of_an_address(host, protocol):
    """All sockets of that very address are found, more than one answer holds, and none of another one's."""
    with ExitStack() as stack:
        bound = [stack.enter_context(aiolb.bind(f"{host}:0", protocol=protocol))]
        address = Address(*bound[0].getsockname()[:2])
        bound += [stack.enter_context(aiolb.bind(address, protocol=protocol)) for _ in range(600)]
        stack.enter_context(aiolb.bind(Address("127.0.0.2", address.port), protocol=protocol))
        expected = {BoundSocket(str(os.fstat(sock.fileno()).st_ino), os.geteuid(), cookie(sock)) for sock in bound}
        assert set(bound_sockets(address, protocol)) == expected


def test_an_error_of_the_kernel(monkeypatch):
    """Where the kernel has no such list, that is an OSError."""
    monkeypatch.setitem(socket_diag._NUMBERS, "none", 200)
    with pytest.raises(FileNotFoundError):
        bound_sockets(Address("127.0.0.1", 9), "none")


@pytest.mark.parametrize("listed", [True, False])
def test_others_on_a_port(cluster, monkeypatch, listed):
    """Who is no member is known by its cookie; where the kernel lists none, by the number of sockets."""
    made = cluster(2)
    new = made.bind("new")
    if not listed:

        def refused(*_):
            raise FileNotFoundError

        monkeypatch.setattr(socket_diag, "bound_sockets", refused)
    assert steering.others_on(made.address, made.group, [new]) == ()
    made.bind("stranger")
    monkeypatch.setattr(os, "getpid", lambda: 1)  # or it would be ours
    monkeypatch.setattr(made.group, "holders", list)
    (found,) = {(holder.uid, holder.pid) for holder in steering.others_on(made.address, made.group, [new])}
    assert found == (os.geteuid(), int(Path("/proc/self").readlink().name))
