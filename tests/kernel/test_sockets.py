"""Sockets where it takes a namespace, or the lack of a privilege, to see what happens."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest

from aiolb import sockets
from aiolb.address import Address
from aiolb.errors import KernelError
from aiolb.send.config import PublisherConfig
from aiolb.send.sources import open_socket, resolve

BUFFER = """
import json
from aiolb import sockets
from aiolb.address import Address
with sockets.bind_reuseport(Address("127.0.0.1", 0)) as sock:
    sockets.set_receive_buffer(sock, 1 << 28)
    print(json.dumps(sockets.receive_buffer(sock)))
"""
LOW_PORT = """
import json
from aiolb import sockets
from aiolb.address import Address
from aiolb.errors import KernelError
try:
    sockets.bind_reuseport(Address("127.0.0.1", 9)).close()
except KernelError as error:
    print(json.dumps([str(error), error.hint]))
"""


@pytest.fixture
def one_port(netns):
    """A namespace in which a port that the kernel chooses can only be 40000."""
    netns.call(Path("/proc/sys/net/ipv4/ip_local_port_range").write_text, "40000 40000")
    return netns


def test_two_programs_get_the_same_free_port(one_port):
    """Two that ask for any free port, with SO_REUSEPORT, can be given the same one: why ports are reserved without."""
    with ExitStack() as stack:
        ports = [
            stack.enter_context(one_port.call(sockets.bind_reuseport, Address("127.0.0.1", 0))).getsockname()[1]
            for _ in range(2)
        ]
    assert ports == [40000, 40000]


def test_a_reserved_port_is_given_to_one(one_port):
    """A port that was reserved is not given to anybody else that asks for a free one."""

    def reserve():
        with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
            with pytest.raises(KernelError), sockets.reserved_port(Address("127.0.0.1", 0)):
                pytest.fail("reserved twice")
            return address.port

    assert one_port.call(reserve) == 40000


def test_holders_in_another_namespace(netns):
    """The sockets of a thread's own network namespace are looked at, whatever namespace its process began in."""
    with netns.call(sockets.bind_reuseport, Address("127.0.0.1", 0)) as sock:
        address = Address(*sock.getsockname())
        assert len(netns.call(sockets.holders_of, address)) == 1


def test_a_link_local_address(netns):
    """A link-local address keeps its interface, is bound, and is found again."""
    netns.add_addresses("fe80::1/64")
    address = netns.call(sockets.resolve, "[fe80::1%lo]:0")
    with netns.call(sockets.bind_reuseport, address) as sock:
        host, port, _, scope = sock.getsockname()
        assert (host, scope) == ("fe80::1", 1)
        assert len(netns.call(sockets.holders_of, address.with_port(port))) == 1


def test_a_receive_buffer_beyond_the_limit(python, powerless):
    """With CAP_NET_ADMIN the buffer goes beyond net.core.rmem_max; without, it is what that allows."""
    limit = int(Path("/proc/sys/net/core/rmem_max").read_text())
    assert python(BUFFER) == 1 << 28
    assert python(BUFFER, prefix=powerless) == limit < 1 << 28


def test_a_low_port_without_privilege(netns, python, powerless):
    """A port below 1024 that may not be bound is an error that names the capability."""
    netns.call(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text, "1024")
    message, hint = python(LOW_PORT, prefix=netns.command(*powerless))
    assert message == "cannot bind 127.0.0.1:9: Permission denied"
    assert hint == "ports below 1024 need CAP_NET_BIND_SERVICE"


@pytest.mark.parametrize("interface", ["lo", "1"])
def test_sending_to_a_link_local_address(netns, interface):
    """The interface of a link-local address is kept, by its name, from the text to the socket and back."""
    netns.add_addresses("fe80::1/64")

    def send():
        address = sockets.resolve(f"[fe80::1%{interface}]:0")
        assert address == Address("fe80::1%lo", 0)
        with sockets.bind_reuseport(address) as sock:
            bound = sockets.address_of(sock)
            assert (bound.host, bound.port) == ("fe80::1%lo", sock.getsockname()[1])
            target, sockaddr = asyncio.run(resolve(PublisherConfig(bound, 1.0)))
            with open_socket(target, None, sockaddr) as sender:
                sender.send(b"here")
            return sock.recv(10)  # loopback has brought it before send() returned

    assert netns.call(send) == b"here"


@pytest.mark.parametrize(
    ("host", "hint"),
    [
        ("fe80::1", "a link-local address needs its interface: [fe80::1%eth0]:9; ip link shows which there are"),
        ("fe80::1%nix", "ip link shows the interfaces"),
    ],
)
def test_a_link_local_address_without_its_interface(netns, host, hint):
    """Without an interface, or with one that is not there, it is refused, by who binds and by who sends."""

    def send(address):
        target, sockaddr = asyncio.run(resolve(PublisherConfig(address, 1.0)))
        open_socket(target, None, sockaddr)

    for use in (sockets.bind_reuseport, send):
        with pytest.raises(KernelError) as caught:
            netns.call(use, Address(host, 9))
        assert caught.value.hint == hint
