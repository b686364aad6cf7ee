"""Reuseport sockets on the loopback device: binding, who holds a port, buffers, counters."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys

import pytest

from aiolb import sockets
from aiolb.address import Address
from aiolb.errors import ConfigurationError, KernelError
from aiolb.sockets import Holder

LOCAL = Address("127.0.0.1", 0)

pytestmark = pytest.mark.usefixtures("nothing_left")


def udp(host="127.0.0.1", family=socket.AF_INET):
    """A UDP socket on a free port, as any other program makes one."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    return sock


def address_of(sock):
    """Where a socket is bound."""
    return Address(*sock.getsockname()[:2])


def send(address, number, size=1):
    """Send datagrams to an address."""
    with socket.socket(address.family, socket.SOCK_DGRAM) as sender:
        for _ in range(number):
            sender.sendto(b"x" * size, (address.host, address.port))


def queued(sock):
    """How many datagrams are in a socket's queue; takes them out."""
    number = 0
    while True:
        try:
            sock.recv(65536)
        except BlockingIOError:
            return number
        number += 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9", "127.0.0.1:9"),
        ("127.0.0.1", "127.0.0.1:10001"),
        (":9", "0.0.0.0:9"),
        ("[::1]:9", "[::1]:9"),
        ("[::ffff:127.0.0.1]:9", "127.0.0.1:9"),
        ("[fe80::1%lo]:9", "[fe80::1%lo]:9"),
        ("127.1:9", "127.0.0.1:9"),
    ],
)
def test_resolve_numbers(text, expected):
    """Numeric addresses of either family are read, with the interface of a link-local one."""
    assert str(sockets.resolve(text)) == expected


def test_resolve_a_name(monkeypatch):
    """A name is resolved to its first address."""
    answer = [(socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("fd00::5", 9, 0, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [*answer, None])
    assert sockets.resolve("collector.example:9") == Address("fd00::5", 9)


@pytest.mark.parametrize("name", ["a..b", "a" * 64, "a\0b"])
def test_resolve_what_is_no_name(name):
    """What is neither an address nor a name is one clear error."""
    with pytest.raises(ConfigurationError, match="is neither an IP address nor a known name") as caught:
        sockets.resolve(name if ":" in name else f"{name}:9")
    assert caught.value.hint == "e.g. 127.0.0.1:10001 or [::1]:10001"


def test_resolve_all():
    """One address or several, as text or as addresses."""
    one, two = Address("127.0.0.1", 1), Address("::1", 2)
    assert sockets.resolve_all("127.0.0.1:1") == sockets.resolve_all(one) == (one,)
    assert sockets.resolve_all(["127.0.0.1:1", two]) == (one, two)


def test_several_sockets_share_a_port():
    """Sockets that are bound here share an address, and do not block."""
    with sockets.bind_reuseport(LOCAL) as first, sockets.bind_reuseport(address_of(first)) as second:
        assert address_of(first) == address_of(second)
        assert first.getblocking() is second.getblocking() is False


def test_a_v6_wildcard_takes_v4():
    """A socket on [::] receives IPv4 datagrams too."""
    with sockets.bind_reuseport(Address("::", 0)) as sock:
        send(Address("127.0.0.1", address_of(sock).port), 1)
        sock.settimeout(10)
        assert sock.recvfrom(10)[1][0] == "::ffff:127.0.0.1"


def test_a_reserved_port_is_for_reuseport_sockets_only():
    """Inside the block reuseport sockets may be bound to the port, and others may not."""
    with sockets.reserved_port(LOCAL) as address:
        assert address.host == "127.0.0.1"
        assert address.port > 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other, pytest.raises(OSError, match="in use"):
            other.bind((address.host, address.port))
        with sockets.bind_reuseport(address) as first, sockets.bind_reuseport(address) as second:
            assert address_of(first) == address_of(second) == address


def test_a_port_that_was_asked_for_is_not_reserved():
    """An address with a port is given back as it is."""
    address = Address("127.0.0.1", 9)
    with sockets.reserved_port(address) as same:
        assert same is address


def test_reserving_at_an_address_of_another_machine():
    """An address that is not this machine's is an error that says so."""
    with pytest.raises(KernelError, match=r"cannot bind 192\.0\.2\.1:0: Cannot assign"), reserve("192.0.2.1"):
        pytest.fail("reserved")


def reserve(host):
    """Reserve a port."""
    return sockets.reserved_port(Address(host, 0))


def our_own(address):
    """The holders of a port among this process's sockets; other programs may hold the same port elsewhere."""
    return [holder for holder in sockets.holders_of(address) if holder.pid == os.getpid()]


def test_holders():
    """Who holds a port is named with pid and user, and other addresses are not held."""
    me = Holder(os.geteuid(), os.getpid())
    with udp() as sock:
        address = address_of(sock)
        assert sockets.holders_of(address) == [me]
        assert our_own(Address("0.0.0.0", address.port)) == [me]
        assert our_own(Address("::", address.port)) == [me]
        assert our_own(Address("127.0.0.2", address.port)) == []
    assert our_own(address) == []


@pytest.mark.parametrize(
    ("host", "family", "asked", "overlaps"),
    [
        ("0.0.0.0", socket.AF_INET, "127.0.0.1", True),
        ("::", socket.AF_INET6, "127.0.0.1", True),
        ("::", socket.AF_INET6, "::1", True),
        ("::1", socket.AF_INET6, "::1", True),
        ("::1", socket.AF_INET6, "127.0.0.1", False),
        ("::1", socket.AF_INET6, "0.0.0.0", False),
        ("::1", socket.AF_INET6, "::", True),
        ("127.0.0.1", socket.AF_INET, "::", True),
        ("127.0.0.1", socket.AF_INET, "::1", False),
        ("0.0.0.0", socket.AF_INET, "::1", False),
        ("::ffff:127.0.0.1", socket.AF_INET6, "127.0.0.1", True),
    ],
)
def test_holders_of_an_overlapping_address(host, family, asked, overlaps):
    """A wildcard holds every address, and a mapped address is the IPv4 one."""
    with udp(host, family=family) as sock:
        found = our_own(Address(asked, address_of(sock).port))
    assert found == ([Holder(os.geteuid(), os.getpid())] if overlaps else [])


def test_all_holders_of_a_shared_port():
    """Each of several sockets on a port is listed."""
    with sockets.bind_reuseport(LOCAL) as first, sockets.bind_reuseport(address_of(first)):
        assert len(sockets.holders_of(address_of(first))) == 2


def test_the_words_for_a_holder():
    """A holder reads as its pid, where it is known, and its user, by name where it has one."""
    assert str(Holder(0, 7)) == "pid 7, user root"
    assert str(Holder(0, None)) == "user root"
    assert str(Holder(4_000_000_000, None)) == "user 4000000000"


def test_processes_that_end_while_they_are_looked_at(monkeypatch):
    """A process that ends during the search is no error."""
    real = os.listdir

    def vanish(path):
        if path.endswith("/fd"):
            raise ProcessLookupError(errno.ESRCH, "No such process")
        return real(path)

    monkeypatch.setattr(os, "listdir", vanish)
    with udp() as sock:
        assert sockets.holders_of(address_of(sock)) == [Holder(os.geteuid(), None)]


def test_a_port_that_is_held_without_the_option():
    """A socket without SO_REUSEPORT on the port is named with its pid."""
    with udp() as sock:
        address = address_of(sock)
        with pytest.raises(KernelError) as caught:
            sockets.bind_reuseport(address)
    user = Holder(os.geteuid(), os.getpid())
    assert str(caught.value) == f"{address} is held by a socket without SO_REUSEPORT ({user})"
    assert caught.value.errno == errno.EADDRINUSE
    assert caught.value.hint == "stop that process, or choose another port"


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_port_that_another_user_holds():
    """Another user's socket on the port is named with its user and pid, SO_REUSEPORT or not."""
    code = """
import os, socket, sys
os.setresuid(65534, 65534, 65534)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
sock.bind(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
sock.close()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        address = Address("127.0.0.1", int(other.stdout.readline()))
        with pytest.raises(KernelError) as caught:
            sockets.bind_reuseport(address)
    assert str(caught.value) == f"{address} is held by another user ({Holder(65534, other.pid)})"
    assert caught.value.hint == "all sockets of a group need the same effective user"


def test_an_address_of_another_machine():
    """An address that is not this machine's is an error that says what to use."""
    with pytest.raises(KernelError, match=r"cannot bind 192\.0\.2\.1:9: Cannot assign requested address") as caught:
        sockets.bind_reuseport(Address("192.0.2.1", 9))
    assert caught.value.hint == "use an address of this machine (ip address), or 0.0.0.0 for all"


def test_a_machine_without_ipv6(monkeypatch):
    """Where there is no IPv6, an IPv6 address is refused with what to use."""

    def refuse(*_):
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(socket, "socket", refuse)
    for use in (lambda: sockets.bind_reuseport(Address("::1", 9)), lambda: reserve("::1").__enter__()):
        with pytest.raises(KernelError, match=r"cannot bind \[::1\]:\d: Address family not supported") as caught:
            use()
        assert caught.value.hint == "this machine has no IPv6: use an IPv4 address"


def test_an_interface_that_is_not_there():
    """A link-local address of an interface that this machine lacks is an error with the address."""
    with pytest.raises(KernelError, match=r"cannot bind \[fe80::1%nothere\]:9: no interface with this name"):
        sockets.bind_reuseport(Address("fe80::1%nothere", 9))


def test_the_most_of_a_receive_buffer(monkeypatch, tmp_path):
    """What the kernel says is read, and where it says nothing, nothing is known."""
    monkeypatch.setattr(sockets, "_RMEM_MAX", tmp_path / "rmem_max")
    assert sockets.receive_buffer_limit() is None
    (tmp_path / "rmem_max").write_text("212992\n")
    assert sockets.receive_buffer_limit() == 212_992


def test_the_receive_buffer():
    """The buffer that was asked for is given, up to the limit, and read back in the same bytes."""
    with sockets.bind_reuseport(LOCAL) as sock:
        sockets.set_receive_buffer(sock, 100_000)
        assert sockets.receive_buffer(sock) == 100_000


def test_drops_are_counted_exactly():
    """What does not fit into the queue is counted as dropped: sent is received and dropped."""
    with sockets.bind_reuseport(LOCAL) as sock:
        sockets.set_receive_buffer(sock, 50_000)
        send(address_of(sock), 500, size=1_000)
        memory = sockets.memory(sock)
        assert memory.limit == 100_000
        assert 0 < memory.queued <= memory.limit
        received = queued(sock)
        assert 0 < received < 500
        assert received + memory.drops == 500
        after = sockets.memory(sock)
        assert (after.queued, after.drops) == (0, memory.drops)


def test_refusing_datagrams():
    """From now on everything is dropped and counted; what is queued stays."""
    with sockets.bind_reuseport(LOCAL) as sock:
        address = address_of(sock)
        send(address, 3)
        sockets.refuse_datagrams(sock)
        send(address, 40)
        assert queued(sock) == 3
        assert sockets.memory(sock).drops == 40


def test_accepting_datagrams_again():
    """Whoever gets a socket that was drained lets datagrams in again; one that was not is left as it is."""
    with sockets.bind_reuseport(LOCAL) as sock:
        address = address_of(sock)
        sockets.accept_datagrams(sock)
        sockets.refuse_datagrams(sock)
        send(address, 2)
        sockets.accept_datagrams(sock)
        send(address, 3)
        assert (queued(sock), sockets.memory(sock).drops) == (3, 2)
