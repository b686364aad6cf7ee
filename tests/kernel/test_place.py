"""`aiolb.join`: any bound socket becomes a member, is located, left and taken over, and remains the caller's."""

from __future__ import annotations

import asyncio
import socket
import warnings
from contextlib import ExitStack, closing
from ipaddress import ip_address

import pytest

import aiolb
from aiolb.address import Address
from aiolb.errors import ConfigurationError, GroupError, GroupNotFoundError, MemberTakenError, PrivilegeError

ANY = "127.0.0.1:0"


@pytest.fixture
def sock():
    """Make sockets that are closed at the end: ``sock("tcp")``, ``sock("udp", "127.0.0.1:9000")``."""
    with ExitStack() as stack:
        yield lambda protocol="udp", address=ANY: stack.enter_context(aiolb.bind(address, protocol=protocol))


@pytest.fixture
def join(bpffs):
    """As ``aiolb.join``, in the tests' own bpffs; places are closed, and their groups forgotten, at the end."""
    made = []

    def run(sock, **options):
        made.append(aiolb.join(sock, bpffs=bpffs, **{"balancer": "ebpf", **options}))
        return made[-1]

    yield run
    for place in reversed(made):
        place.leave()
        place.close(forget=True)


def where(sock):
    """Its address as text."""
    return str(Address(*sock.getsockname()[:2]))


def three(sock, join, protocol="udp"):
    """Three members on one port: their sockets and places."""
    socks = [sock(protocol)]
    socks += [sock(protocol, where(socks[0])) for _ in range(2)]
    return socks, [join(one, index=index, count=3) for index, one in enumerate(socks)]


def send(to, *sources):
    """A datagram from each source, with the source in it."""
    for source in sources:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            sender.sendto(source.encode(), to.getsockname())


def received(sock):
    """What is in a socket's queue."""
    found = []
    while True:
        try:
            found.append(sock.recv(100).decode())
        except BlockingIOError:
            return found


SOURCES = [f"127.7.0.{number}" for number in range(1, 61)]


def test_datagrams(sock, join):
    """Each source is on the member that `locate` names, by its slot's owner; the counters agree."""
    socks, places = three(sock, join)
    send(socks[0], *SOURCES, *SOURCES)
    located = {source: places[1].group.locate(source) for source in SOURCES}
    for index, one in enumerate(socks):
        mine = [source for source in SOURCES if located[source].member == index]
        assert sorted(received(one)) == sorted(mine * 2)
        assert mine
        assert places[0].group.statistics().members[index].packets == 2 * len(mine)
    assert {(found.alive, found.owner == found.member) for found in located.values()} == {(True, True)}
    assert [(place.balancer, place.count, place.index, place.others) for place in places] == [
        ("ebpf", 3, index, ()) for index in range(3)
    ]


def test_ways_to_name_a_source(sock, join):
    """A source is an address as text, as an object, with a port, or as the socket module gives it."""
    _, (place, *_) = three(sock, join)
    group = place.group
    expected = group.locate("127.7.0.9")
    for same in (ip_address("127.7.0.9"), "127.7.0.9:53", ("127.7.0.9", 53), Address("127.7.0.9", 53)):
        assert group.locate(same) == expected
    assert group.locate(("::ffff:127.7.0.9", 53, 0, 0)) == group.locate("::ffff:127.7.0.9") == expected
    for wrong in ("localhost", "127.7.0.9:x", "", "[::1"):
        with pytest.raises(ConfigurationError):
            group.locate(wrong)


def test_where_a_port_matters(sock, join):
    """With the key `flow` a source has no place without its port; the error says so."""
    one = sock()
    place = join(one, index=0, count=4, key="flow")
    assert place.group.key == "flow"
    with pytest.raises(ConfigurationError, match="the key is flow"):
        place.group.locate("127.7.0.9")
    assert {place.group.locate(("127.7.0.9", port)).slot for port in range(1, 9)} != {0}
    with pytest.raises(GroupError, match="has the key flow, not source"):
        join(sock("udp", where(one)), index=1, key="source")


def test_leaving(sock, join):
    """What was sent before is in the queue when `leave` returns; then others get it, until `restore`."""
    socks, places = three(sock, join)
    mine = [source for source in SOURCES if places[0].group.locate(source).member == 0]
    send(socks[0], *mine)
    assert places[0].leave()
    send(socks[0], *mine)
    assert sorted(received(socks[0])) == sorted(mine)
    assert sorted(received(socks[1]) + received(socks[2])) == sorted(mine)
    found = places[1].group.locate(mine[0])
    assert (found.alive, found.owner, found.member in {1, 2}) == (False, 0, True)
    assert not places[0].leave()
    assert places[0].restore()
    send(socks[0], *mine)
    assert sorted(received(socks[0])) == sorted(mine)


def test_the_last_member(sock, join):
    """Where nobody is alive a source has no member, and no process."""
    one = sock()
    place = join(one, index=0)
    place.leave()
    found = place.group.locate("127.7.0.9")
    assert (found.owner, found.member, found.pid, found.alive) == (0, None, None, False)


def test_an_index_that_is_taken(sock, join):
    """It is refused, with its holder; with `takeover` the former sees that it was displaced, and drains."""
    socks, places = three(sock, join)
    new = sock("udp", where(socks[0]))
    with pytest.raises(MemberTakenError, match="is held by pid"):
        join(new, index=1)
    assert new.fileno() >= 0
    mine = [source for source in SOURCES if places[0].group.locate(source).member == 1]
    send(socks[0], *mine)
    join(new, index=1, takeover=True)
    assert [place.displaced for place in places] == [False, True, False]
    send(socks[0], *mine)
    assert sorted(received(socks[1])) == sorted(received(new)) == sorted(mine)
    assert not places[1].leave()


def test_as_a_context_manager(sock, bpffs):
    """The end of the block leaves the group and closes it; the socket goes on, outside."""
    one = sock()
    with aiolb.join(one, index=0, balancer="ebpf", bpffs=bpffs) as place:
        assert place.group.statistics().members[0].alive
    with aiolb.open_group(where(one), bpffs=bpffs) as group:
        assert not group.statistics().members[0].alive
    assert one.fileno() >= 0
    with pytest.raises(GroupError):
        assert place.group
    place.close()


async def test_connections(sock, join):
    """Connections of one source reach the server that `locate` names; what waited when it left is served."""
    socks, places = three(sock, join, "tcp")
    group = places[0].group
    mine = [source for source in SOURCES if group.locate(source).member == 0][:5]
    clients = [await asyncio.open_connection(*socks[0].getsockname(), local_addr=(source, 0)) for source in mine]
    await asyncio.to_thread(places[0].leave)

    async def answer(reader, writer):
        writer.write(b"%d %b" % (0, await reader.readline()))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, sock=socks[0]):
        for reader, writer in clients:
            writer.write(b"hello\n")
            assert await reader.read() == b"0 hello\n"
            writer.close()
            await writer.wait_closed()


async def test_what_asyncio_gives_for_a_socket(sock, join):
    """`server.sockets[0]`, and a transport's socket, are as good as the sockets in them."""
    async with await asyncio.start_server(lambda *_: None, sock=sock("tcp")) as server:
        place = join(server.sockets[0], index=0)
        assert place.group.statistics().members[0].alive
        place.leave()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, sock=sock())
    place = join(transport.get_extra_info("socket"), index=0)
    assert place.leave()
    transport.close()
    await asyncio.sleep(0)


def bound(kind=socket.SOCK_DGRAM, *, before=True, after=False, listening=False):
    """A socket of 127.0.0.1 with SO_REUSEPORT set before bind, after it, or not."""
    sock = socket.socket(socket.AF_INET, kind)
    if before:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", 0))
    if listening:
        sock.listen()
    if after:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return sock


WRONG = {
    "not bound": (lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), "the socket is not bound"),
    "not shared": (lambda: bound(before=False), "was bound without SO_REUSEPORT"),
    "shared too late": (lambda: bound(before=False, after=True), "was bound without SO_REUSEPORT"),
    "not listening": (lambda: bound(socket.SOCK_STREAM), "does not listen"),
    "listens, not shared": (lambda: bound(socket.SOCK_STREAM, before=False, listening=True), "without SO_REUSEPORT"),
    "listens, shared too late": (
        lambda: bound(socket.SOCK_STREAM, before=False, after=True, listening=True),
        "without SO_REUSEPORT",
    ),
    "another kind": (lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), "a member is a UDP or a TCP socket"),
    "another protocol": (
        lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262),  # MPTCP
        "a member is a UDP or a TCP socket",
    ),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_a_socket_that_cannot_be_a_member(bpffs, make, message):
    """It is refused with one error that says what to do; nothing is left, and the socket is the caller's."""
    with make() as sock:
        with pytest.raises(ConfigurationError, match=message) as caught:
            aiolb.join(sock, index=0, balancer="ebpf", bpffs=bpffs)
        assert caught.value.hint
        assert sock.fileno() >= 0
    assert list(bpffs.glob("aiolb")) == []


def test_a_closed_socket(bpffs):
    """A closed socket is said to be one."""
    sock = aiolb.bind(ANY)
    sock.close()
    with pytest.raises(ConfigurationError, match="the socket is closed"):
        aiolb.join(sock, index=0, bpffs=bpffs)


@pytest.mark.parametrize(
    "options",
    [
        {"index": -1},
        {"index": 3, "count": 3},
        {"index": 0, "count": 1025},
        {"index": 0, "key": "sauce"},
        {"index": 0, "seed": -1},
        {"index": 0, "balancer": "fair"},
        {"index": 1, "balancer": "classic"},
    ],
)
def test_a_setting_that_cannot_work(sock, bpffs, options):
    """It is refused, and nothing is left."""
    with pytest.raises(ConfigurationError):
        aiolb.join(sock(), bpffs=bpffs, **{"balancer": "ebpf", **options})
    assert list(bpffs.glob("aiolb")) == []


@pytest.mark.parametrize("balancer", ["classic", "none"])
def test_other_balancers(sock, join, balancer):
    """They have no table to look at, cannot leave, and say so."""
    place = join(sock(), index=0, count=1, balancer=balancer)
    assert place.balancer == balancer
    assert not place.leave()
    with pytest.raises(GroupError, match="keeps no table"):
        assert place.group


def test_a_fallback_warns(sock, bpffs, monkeypatch):
    """Where `auto` has to take the classic balancer, it says what that lacks and why."""

    def refused(*_):
        raise PrivilegeError("this user may not")

    monkeypatch.setattr("aiolb.bpf.steering._join_ebpf", refused)
    with pytest.warns(RuntimeWarning, match="no failover.*this user may not"):
        place = aiolb.join(sock(), index=0, count=1, bpffs=bpffs)
    assert (place.balancer, str(place.fallback)) == ("classic", "this user may not")
    with pytest.raises(PrivilegeError), warnings.catch_warnings():
        aiolb.join(sock(), index=0, count=1, balancer="ebpf", bpffs=bpffs)


def test_opening_a_group(sock, join, bpffs):
    """A group is found by its address and its protocol, and can be looked at without joining."""
    one = sock("tcp")
    place = join(one, index=0, count=2)
    with closing(aiolb.open_group(f"tcp:{where(one)}", bpffs=bpffs)) as group:
        assert group.address == place.address
        assert (group.count, group.key) == (2, "source")
        assert group.locate("127.0.0.9") == place.group.locate("127.0.0.9")
        assert [member.alive for member in group.statistics().members] == [True, False]
    with aiolb.open_group(place.address, protocol="tcp", bpffs=bpffs) as group:
        assert group.count == 2
    with pytest.raises(GroupNotFoundError):
        aiolb.open_group(where(one), bpffs=bpffs)


def test_binding(sock):
    """Sockets of `bind` share a port with each other alone, and those for connections listen."""
    first = sock("tcp", "[::1]:0")
    second = sock("tcp", where(first))
    assert first.getsockname() == second.getsockname()
    assert second.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    with aiolb.bind(ANY, rcvbuf=1 << 16) as sized:
        assert sized.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 1 << 17
    with pytest.raises(ConfigurationError):
        aiolb.bind("nowhere:x")
