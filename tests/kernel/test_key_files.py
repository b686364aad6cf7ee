"""Key files: the examples steer as they say, a broken one is refused with its line, and nothing is left pinned."""

from __future__ import annotations

import hashlib
import secrets
import socket
import struct
from functools import cache
from ipaddress import IPv4Address, ip_address

import pytest
from documents import ROOT, blocks

from aiolb import sockets
from aiolb.bpf import compiler, steering
from aiolb.bpf.group import GroupOptions
from aiolb.bpf.key_file import KeyFile
from aiolb.bpf.keys import Key, custom_key, key_of
from aiolb.bpf.program import VerifierError
from aiolb.bpf.steering import JoinOptions
from aiolb.errors import CompileError, ConfigurationError, GroupError

DOCUMENT, EXAMPLES = "docs/how-to/keys.md", ROOT / "examples/keys"
SOURCE = IPv4Address("127.0.0.1")
UDP_SEGMENT = 103
TABLE = """
int key_of(const struct packet *packet, struct key *key)
{
	u64 table[4] = {1, 2, 3, 4};
	u32 id;

	if (load_u32(packet, 4, &id))
		return -1;
	return set_key(key, table[id & 7], id);
}
"""
LOAD = """
import json, os, sys
from pathlib import Path
from aiolb.bpf import compiler, program
from aiolb.bpf.key_file import KeyFile
from aiolb.bpf.maps import Maps

maps = Maps.create("udp")
for path in sys.argv[1:]:
    os.close(program.load(compiler.compile_balancer(key_file=KeyFile.read(Path(path))), maps.by_placeholder()))
maps.close()
print(json.dumps("loaded"))
"""


@pytest.fixture
def program(compiled):
    """Groups here are made with a program that bcc compiles."""
    return compiled


@cache
def compile_key(key_file):
    """The program with a key file, compiled once."""
    return compiler.compile_balancer(key_file=key_file)


@pytest.fixture
def keyed(cluster):
    """Make a group of five with an example's key: ``keyed("session")``."""

    def make(name, **options):
        key_file = KeyFile.read(EXAMPLES / f"{name}.c")
        return cluster(5, key=key_file.key, program=compile_key(key_file), **options)

    return make


def steered(group, datagrams):
    """Which member got each of some (source, payload), in the order in which they were sent; all payloads differ."""
    for source, payload in datagrams:
        group.send([source], payload)
    members = {(taken.source, taken.payload): taken.socket for taken in group.take(len(datagrams))}
    return [members[datagram] for datagram in datagrams]


def low_high(source):
    """The two halves of a source's address, as source_low() and source_high() say them."""
    number = int.from_bytes(key_of(source), "big")
    return (0xFFFF << 32 | number, 0) if source.version == 4 else (number & (1 << 64) - 1, number >> 64)


def ipfix(domain, number):
    """An IPFIX message without any set."""
    return struct.pack("!HHIII", 10, 16, 0, number, domain)


def netflow_9(domain, number):
    """A NetFlow v9 packet without any set."""
    return struct.pack("!HHIIII", 9, 0, 0, 0, number, domain)


@pytest.mark.parametrize("message", [ipfix, netflow_9])
def test_ipfix_domains(keyed, sources_v4, message):
    """All messages of one observation domain of one exporter reach the twin's member, and its domains are spread."""
    group = keyed("ipfix_domain")
    domains = [(source, domain) for source in sources_v4(10) for domain in (0, 1, 7, 256, 0xFFFFFFFF)]
    datagrams = [(source, message(domain, number)) for number in range(3) for source, domain in domains]
    received = steered(group, datagrams)
    keys = []
    for source, domain in domains:
        low, high = low_high(source)
        keys.append(custom_key(low, high ^ domain))
    assert received == group.members_of(keys, range(5)) * 3
    assert len(set(received[:5])) > 1


def test_ipfix_domains_of_v6(netns, keyed, sources_v6):
    """An IPv6 exporter's domain is mixed into its address."""
    netns.add_local("fd00::/8")
    group = netns.call(keyed, "ipfix_domain", host="::1")
    domains = [(source, domain) for source in sources_v6(30) for domain in (1, 2)]
    received = netns.call(steered, group, [(source, ipfix(domain, 0)) for source, domain in domains])
    halves = [(*low_high(source), domain) for source, domain in domains]
    assert received == group.members_of([custom_key(low, high ^ domain) for low, high, domain in halves], range(5))


@pytest.mark.parametrize(
    "payload",
    [b"", b"\0", b"\0\x0a", ipfix(1, 1)[:15], netflow_9(1, 1)[:19], b"\0\x05" + bytes(22)],
    ids=["empty", "one byte", "version only", "IPFIX without domain", "v9 without source id", "v5"],
)
def test_no_ipfix_is_steered_by_its_source(keyed, sources_v4, payload):
    """A payload that is too short, or of another version, goes where its source belongs."""
    group, sources = keyed("ipfix_domain"), sources_v4(20)
    group.send(sources, payload)
    expected = group.members_of(map(key_of, sources), range(5))
    assert group.receive(20) == dict(zip(sources, expected, strict=True))


def long_header(identifier, number):
    """The beginning of a QUIC packet with a long header; the source connection id is empty."""
    return struct.pack("!BIB", 0xC0, 1, len(identifier)) + identifier + b"\0" + number.to_bytes(4, "big")


def short_header(identifier, number):
    """The beginning of a QUIC packet with a short header."""
    return b"\x40" + identifier + number.to_bytes(4, "big")


def test_quic_connections(keyed, sources_v4):
    """All packets with one connection id reach the twin's member, whatever their header and their source."""
    group, ids = keyed("quic_connection"), [secrets.token_bytes(8) for _ in range(20)]
    expected = group.members_of([custom_key(int.from_bytes(each, "big"), 0) for each in ids], range(5))
    assert [group.group.locate_key(int.from_bytes(each, "big"), 0) for each in ids] == expected
    for source, header in zip(sources_v4(4), (long_header, short_header) * 2, strict=True):
        assert steered(group, [(source, header(each, 1)) for each in ids]) == expected
    longer = [(SOURCE, long_header(each + secrets.token_bytes(12), 2)) for each in ids]
    assert steered(group, longer) == expected


def test_connection_ids_of_a_member(keyed):
    """The function that docs/how-to/keys.md shows makes connection ids that steer to the member that asks."""
    group, shown = keyed("quic_connection"), {}
    (text,) = blocks(DOCUMENT, "python")
    exec(text, shown)  # noqa: S102 - our own documentation
    ids = [shown["new_connection_id"](group.group, index) for index in range(5)]
    assert steered(group, [(SOURCE, short_header(each, 1)) for each in ids]) == [0, 1, 2, 3, 4]


def test_no_quic_is_steered_by_its_source(keyed, sources_v4):
    """A packet without 8 bytes of connection id goes where its source belongs."""
    group, sources = keyed("quic_connection"), sources_v4(20)
    expected = dict(zip(sources, group.members_of(map(key_of, sources), range(5)), strict=True))
    for payload in (b"", b"\x40" + bytes(7), long_header(bytes(7), 0), long_header(bytes(8), 0)[:13]):
        group.send(sources, payload)
        assert group.receive(20) == expected


def session(identifier, number=0):
    """A datagram of the session example's protocol."""
    return b"head" + identifier.to_bytes(8, "big") + number.to_bytes(4, "big")


def test_sessions(keyed, sources_v4):
    """A session stays on the twin's member whatever it is sent from, also when members die."""
    group, ids = keyed("session"), [secrets.randbits(64) for _ in range(50)]
    keys = [custom_key(each, 0) for each in ids]
    for source in sources_v4(3):
        assert steered(group, [(source, session(each)) for each in ids]) == group.members_of(keys, range(5))
    group.kill(1, 4)
    assert steered(group, [(SOURCE, session(each, 9)) for each in ids]) == group.members_of(keys, {0, 2, 3})


def test_sessions_of_v6(netns, keyed):
    """The payload of an IPv6 datagram begins at its UDP header too."""
    group, ids = netns.call(keyed, "session", host="::1"), [secrets.randbits(64) for _ in range(30)]
    received = netns.call(steered, group, [(ip_address("::1"), session(each)) for each in ids])
    assert received == group.members_of([custom_key(each, 0) for each in ids], range(5))


def test_no_session_is_steered_by_its_source(keyed, sources_v4):
    """A payload that ends within the session goes where its source belongs."""
    group, sources = keyed("session"), sources_v4(20)
    expected = dict(zip(sources, group.members_of(map(key_of, sources), range(5)), strict=True))
    for payload in (b"", session(1)[:4], session(1)[:11]):
        group.send(sources, payload)
        assert group.receive(20) == expected


@pytest.mark.parametrize("length", [1, 8, 18, 19, 1 << 31, (1 << 32) - 1])
def test_a_length_that_was_written_by_hand(cluster, length):
    """Whatever a key file writes to the length, and behind the words, the key is its two words, as the twin says."""
    text = f"""
int key_of(const struct packet *packet, struct key *key)
{{
	if (load_u64(packet, 4, &key->words[0]))
		return -1;
	key->tail = key->words[0] * 5;
	key->length = {length}U;
	return 0;
}}
"""
    key_file, ids = KeyFile("by_hand.c", text), [secrets.randbits(64) for _ in range(40)]
    group = cluster(5, key=key_file.key, program=compile_key(key_file))
    datagrams = [(SOURCE, session(each)) for each in ids]
    assert steered(group, datagrams) == group.members_of([custom_key(each, 0) for each in ids], range(5))


def test_a_train_goes_where_its_first_datagram_belongs(keyed):
    """The datagrams of a train stay together, at the member of the first one's key."""
    group = keyed("session")
    keys = [custom_key(each, 0) for each in range(20)]
    belongs = group.members_of(keys, range(5))
    assert len(set(belongs)) == 5
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(session(0)))
        for first in range(20):
            train = [session((first + step) % 20, first) for step in range(20)]
            sender.sendto(b"".join(train), (group.address.host, group.address.port))
            taken = group.take(20)
            assert {datagram.payload for datagram in taken} == set(train)
            assert {datagram.socket for datagram in taken} == {belongs[first]}


def test_cap_bpf_is_enough(compiled, needs, python):  # noqa: ARG001 - bcc is there
    """The examples pass the verifier of a user who has CAP_BPF and no other capability."""
    only_bpf = [needs("setpriv", "util-linux"), "--bounding-set=-all,+bpf", "--inh-caps=-all"]
    assert python(LOAD, *sorted(EXAMPLES.glob("*.c")), prefix=only_bpf) == "loaded"


@pytest.fixture
def join(bpffs, compiled):  # noqa: ARG001 - bcc is there
    """Join as a member does: ``join(key_file, address=…)``; pins and sockets are removed at the end."""
    joined = []

    def enter(key_file, address, **options):
        group = GroupOptions(key=None if key_file is None else key_file.key, bpffs=bpffs)
        wanted = JoinOptions(key_file=key_file, group=group, balancer="ebpf", **options)
        joined.append(steering.join(address, sockets.bind_reuseport, wanted))
        return joined[-1]

    yield enter
    for each in joined:
        each.sock.close()
        each.place.close(forget=True)


def test_a_verifier_that_refuses_names_the_line(join, bpffs, address):
    """What the verifier refuses is told with the key file's line, its whole log is there, and nothing is pinned."""
    with pytest.raises(VerifierError) as caught:
        join(KeyFile("table.c", TABLE), address)
    assert str(caught.value).startswith("table.c:9: the verifier refused the program: ")
    assert caught.value.hint.startswith("--verifier-log FILE keeps all that it said")
    assert str(caught.value).rpartition(": ")[2] in caught.value.log
    assert len(caught.value.log.splitlines()) > 100
    assert list(bpffs.glob("aiolb/*/*")) == []


def test_a_compiler_that_refuses_leaves_nothing(join, bpffs, address):
    """Where the key file does not compile nothing is pinned."""
    with pytest.raises(CompileError, match=r"^broken\.c:1:6: "):
        join(KeyFile("broken.c", "int x y;"), address)
    assert list(bpffs.glob("aiolb/*/*")) == []


def test_a_group_keeps_its_key_file(join, address):
    """Members join with the same file or with none; another file, another key, or a program without it is refused."""
    session_c = KeyFile.read(EXAMPLES / "session.c")
    first = join(session_c, address)
    assert first.key == session_c.key
    program = first.place.group.config.program
    first.place.group.resize(3)
    assert join(KeyFile("copy.c", session_c.text), address, index=1).key == session_c.key
    without = join(None, address, index=2)
    assert (without.key, without.place.group.config.program) == (session_c.key, program)
    other = KeyFile("other.c", f"{session_c.text}\n")
    with pytest.raises(GroupError, match=f"has the key {session_c.key}, not {other.key}\n"):
        join(other, address)
    with pytest.raises(GroupError, match="a balancer compiled without it cannot steer"):
        join(None, address, debug=True)


def test_without_the_file_the_program_steers_on(keyed):
    """A member that joins without the key file is steered to by it all the same."""
    group = keyed("session", members=range(4))
    group.group.join(group.bind(4), 4)
    ids = list(range(50))
    received = steered(group, [(SOURCE, session(each)) for each in ids])
    assert received == group.members_of([custom_key(each, 0) for each in ids], range(5))
    assert 4 in received


@pytest.mark.parametrize("balancer", ["classic", "auto"])
def test_the_classic_balancer_cannot(monkeypatch, address, balancer):
    """Where no program can be loaded a key file is refused, instead of being left out."""
    key_file = KeyFile.read(EXAMPLES / "session.c")

    def refuse(*_):
        raise steering.UnsupportedError("this kernel has no bpf(2)")

    monkeypatch.setattr(steering, "_join_ebpf", refuse)
    with pytest.raises(GroupError, match=r"^a key file needs the eBPF balancer"):
        steering.join(
            address, sockets.bind_reuseport, JoinOptions(key_file=key_file, balancer=balancer, group=GroupOptions())
        )


def test_tcp_has_no_payload_to_look_at():
    """A key file is refused for TCP, whose connections begin without a payload."""
    with pytest.raises(ConfigurationError, match="a key file is for UDP"):
        GroupOptions(protocol="tcp", key=KeyFile("k.c", "").key)
    assert GroupOptions(protocol="tcp", key=Key.parse("flow")).key == Key.parse("flow")


def test_statistics_say_the_key(keyed):
    """The group's statistics name the key file by the beginning of its SHA-256."""
    group = keyed("session")
    assert group.statistics.key == f"file {hashlib.sha256((EXAMPLES / 'session.c').read_bytes()).hexdigest()[:16]}"
