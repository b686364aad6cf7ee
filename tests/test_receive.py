"""Every receiver on real sockets: batches, trains, errors, counters."""

# ruff: noqa: D102 - methods of fakes are named after what they stand for

from __future__ import annotations

import errno
import socket
import struct
import sys
import time
from ipaddress import ip_address

import pytest

from aiolb.receive import choose, senders
from aiolb.receive.contract import BATCH, DATAGRAMS
from aiolb.receive.plain import PlainReceiver
from aiolb.sketch import Sketch

pytestmark = pytest.mark.usefixtures("nothing_left")

UDP_SEGMENT = 103
UDP_GRO = 104
IP_PKTINFO = 8
SO_RCVBUFFORCE = 33


@pytest.fixture
def receiver_of(parts):
    """The class of a receiver: each test runs on every one."""
    return parts.receiver


@pytest.fixture
def pair():
    """A bound, non-blocking receiving socket, and a sender connected to it."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiving,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending,
    ):
        receiving.bind(("127.0.0.1", 0))
        receiving.setblocking(False)
        sending.bind(("127.0.0.2", 0))
        sending.connect(receiving.getsockname())
        yield receiving, sending


def test_a_buffer_is_not_longer_than_a_message_can_be(parts, pair):
    """More room than any message needs is refused, before the room of all of them overflows."""
    if parts is choose.PLAIN:
        pytest.skip("of the compiled receiver")
    for size in (65537, 2**62 - 4160 + 16, 2**64 - 1):
        with pytest.raises(ValueError, match="65536"):
            parts.receiver(pair[0], batch=4, size=size)


def test_an_empty_queue_gives_an_empty_list(receiver_of, pair):
    """Nothing waits for a datagram."""
    receiver = receiver_of(pair[0])
    assert receiver.receive() == []
    assert (receiver.datagrams, receiver.bytes, receiver.truncated) == (0, 0, 0)


def test_datagrams_come_in_order_with_their_address(receiver_of, pair):
    """What was sent is received byte for byte, the empty datagram too, and each one is its own object."""
    receiving, sending = pair
    sent = [b"one", b"", b"\x00" * 1400, b"four"]
    for datagram in sent:
        sending.send(datagram)
    receiver = receiver_of(receiving)
    assert receiver.receive() == [(datagram, sending.getsockname()) for datagram in sent]
    assert receiver.receive() == []
    assert (receiver.datagrams, receiver.bytes, receiver.truncated) == (4, 1407, 0)


@pytest.mark.parametrize(("options", "size"), [({}, BATCH), ({"batch": 3}, 3)])
def test_a_batch_has_its_limit(receiver_of, pair, options, size):
    """No more than `batch` datagrams are taken at once; the rest stays in the kernel's queue."""
    receiving, sending = pair
    for i in range(size + 2):
        sending.send(b"%d" % i)
    receiver = receiver_of(receiving, **options)
    first, second, third = receiver.receive(), receiver.receive(), receiver.receive()
    assert [int(datagram) for datagram, _ in first + second] == list(range(size + 2))
    assert (len(first), len(second), len(third)) == (size, 2, 0)


def test_the_longest_datagram_is_whole(receiver_of, pair):
    """65,507 bytes, the most that IPv4 can carry, are not cut."""
    receiving, sending = pair
    datagram = bytes(range(256)) * 255 + b"x" * 227
    assert len(datagram) == 65507
    sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    sending.send(datagram)
    receiver = receiver_of(receiving)
    assert [received for received, _ in receiver.receive()] == [datagram]
    assert (receiver.bytes, receiver.truncated) == (65507, 0)


def test_ipv6_addresses_are_those_of_the_socket_module(receiver_of):
    """An IPv6 sender is a tuple of four."""
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiving,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sending,
    ):
        receiving.bind(("::1", 0))
        receiving.setblocking(False)
        sending.connect(receiving.getsockname())
        sending.send(b"six")
        assert receiver_of(receiving).receive() == [(b"six", sending.getsockname())]


def send_train(sending, payload, segment):
    """Send the payload as one train of datagrams of `segment` bytes."""
    sending.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, segment)
    sending.send(payload)
    sending.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)


@pytest.mark.parametrize("length", [200, 250, 6400, 100, 99])
def test_trains_are_split(receiver_of, pair, length):
    """With UDP_GRO on, a train becomes its datagrams, a shorter last one included."""
    receiving, sending = pair
    receiving.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    payload = bytes(i % 251 for i in range(length))
    send_train(sending, payload, 100)
    sending.send(b"")
    sending.send(b"alone")
    receiver = receiver_of(receiving)
    addr = sending.getsockname()
    expected = [(payload[at : at + 100], addr) for at in range(0, length, 100)] + [(b"", addr), (b"alone", addr)]
    assert receiver.receive() == expected
    assert (receiver.datagrams, receiver.bytes) == (len(expected), length + 5)


def test_trains_arrive_as_datagrams_without_gro(receiver_of, pair):
    """With UDP_GRO off the kernel splits them."""
    receiving, sending = pair
    send_train(sending, b"x" * 250, 100)
    assert [len(datagram) for datagram, _ in receiver_of(receiving).receive()] == [100, 100, 50]


def test_an_error_of_the_socket_is_raised_once(receiver_of, pair):
    """A connected socket whose peer is gone reports ECONNREFUSED, then it works on."""
    receiving, sending = pair
    receiver = receiver_of(sending)
    sending.setblocking(False)
    port = receiving.getsockname()
    receiving.close()
    sending.send(b"nobody listens")
    with pytest.raises(ConnectionRefusedError):
        receiver.receive()
    assert receiver.receive() == []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as back:
        back.bind(port)
        back.sendto(b"here", sending.getsockname())
        assert receiver.receive() == [(b"here", port)]


def test_a_message_is_a_datagram_or_a_train(receiver_of, pair):
    """Messages, trains and datagrams are counted apart."""
    receiving, sending = pair
    receiving.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    receiver = receiver_of(receiving)
    send_train(sending, b"x" * 250, 100)
    sending.send(b"alone")
    send_train(sending, b"y" * 640, 10)
    assert len(receiver.receive()) == 68
    assert (receiver.datagrams, receiver.messages, receiver.trains) == (68, 3, 2)


def test_trains_are_bounded_in_one_call(receiver_of, pair):
    """Once trains were seen, one call takes about `limit` datagrams, and the rest waits in the kernel."""
    receiving, sending = pair
    receiving.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    receiver = receiver_of(receiving, limit=128)
    send_train(sending, b"x" * 640, 10)
    assert len(receiver.receive()) == 64
    for _ in range(5):
        send_train(sending, b"x" * 640, 10)
    assert [len(receiver.receive()) for _ in range(4)] == [128, 128, 64, 0]
    for _ in range(2 * BATCH):
        sending.send(b"single")
    assert len(receiver.receive()) <= BATCH
    assert len(receiver.receive()) == BATCH


def test_a_datagram_that_is_cut_counts(receiver_of, pair):
    """What is longer than the buffer is cut there, and counted once."""
    receiving, sending = pair
    receiver = receiver_of(receiving, size=100, timestamps=True)
    sending.send(b"x" * 101)
    sending.send(b"y" * 100)
    addr = sending.getsockname()
    assert receiver.receive() == [(b"x" * 100, addr), (b"y" * 100, addr)]
    assert (receiver.bytes, receiver.truncated) == (200, 1)


def test_no_call_hands_out_much_more_than_the_limit(receiver_of, pair):
    """Trains that come after single datagrams: what is over the limit is kept, and handed out before anything else."""
    receiving, sending = pair
    receiving.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    receiving.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 20)
    receiver = receiver_of(receiving)
    sending.send(b"single")
    assert len(receiver.receive()) == 1
    payload = b"".join(b"%02d" % i for i in range(64))
    for _ in range(BATCH):
        send_train(sending, payload, 2)
    sending.send(b"behind")
    received, sizes = [], []
    while len(received) < BATCH * 64 + 1:
        # What was handed out stays as it was when more is handed out.
        batch = receiver.take()
        sizes.append(len(batch))
        received += batch
    assert [int(datagram) for datagram, _ in received[:-1]] == list(range(64)) * BATCH
    assert received[-1][0] == b"behind"
    assert sizes == [DATAGRAMS] * (BATCH * 64 // DATAGRAMS) + [1]
    assert (receiver.kept, receiver.datagrams, receiver.messages) == (0, BATCH * 64 + 2, BATCH + 2)
    assert receiver.receive() == []


def test_a_train_over_the_limit_is_handed_out_whole(receiver_of, pair):
    """A message is never parted."""
    receiving, sending = pair
    receiving.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    receiver = receiver_of(receiving, limit=5)
    for _ in range(2):
        send_train(sending, b"x" * 30, 10)
        send_train(sending, b"y" * 80, 10)
    assert [len(receiver.receive()) for _ in range(3)] == [11, 11, 0]


@pytest.mark.parametrize("door", ["take", "receive"])
def test_timestamps_are_those_of_the_kernel(receiver_of, pair, door):
    """Asked for, each datagram has the time of its arrival, those of a train the same."""
    receiving, sending = pair
    receiving.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    receiver = receiver_of(receiving, timestamps=True)
    before = time.time_ns()
    sending.send(b"alone")
    send_train(sending, b"x" * 300, 100)
    batch = getattr(receiver, door)()
    # Right after the option is set, the kernel may take the time of reading instead (__sock_recv_timestamp()).
    after = time.time_ns()
    addr = sending.getsockname()
    assert list(batch) == [(b"alone", addr)] + [(b"x" * 100, addr)] * 3
    first, *train = [item.received_at for item in batch]
    assert before <= first <= after
    assert before <= train[0] <= after
    assert len(train) == 3
    assert len(set(train)) == 1
    assert receiver.receive() == []


def test_without_being_asked_there_are_no_timestamps(receiver_of, pair):
    """Datagrams are plain pairs then."""
    receiving, sending = pair
    receiver = receiver_of(receiving)
    sending.send(b"x")
    (item,) = receiver.receive()
    assert type(item) is tuple


def test_an_ipv4_sender_of_an_ipv6_socket_is_mapped(receiver_of):
    """The address is the one that the socket module gives."""
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiving,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending,
    ):
        receiving.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        receiving.bind(("::", 0))
        receiving.setblocking(False)
        sending.bind(("127.0.0.3", 0))
        port = receiving.getsockname()[1]
        sending.sendto(b"1", ("127.0.0.1", port))
        sending.sendto(b"2", ("127.0.0.1", port))
        expected = receiving.recvfrom(9, socket.MSG_PEEK)[1]
        assert expected[0] == "::ffff:127.0.0.3"
        assert receiver_of(receiving).receive() == [(b"1", expected), (b"2", expected)]


def test_a_closed_socket_is_an_error(receiver_of, pair):
    """EBADF, and not what another socket with the same number holds."""
    receiver = receiver_of(pair[0])
    pair[0].close()
    with pytest.raises(OSError, match=r"\[Errno 9\]"):
        receiver.receive()


@pytest.mark.parametrize("options", [{"batch": 0}, {"limit": 0}, {"size": 0}])
def test_impossible_numbers_are_refused(receiver_of, pair, options):
    """Each must be at least one."""
    with pytest.raises(ValueError, match="at least 1"):
        receiver_of(pair[0], **options)


def test_any_number_of_senders_takes_no_more_memory(receiver_of, pair, monkeypatch):
    """Each address is right, whoever sent before, and what is kept of 40,000 senders is bounded."""
    monkeypatch.setattr(senders, "FEW", BATCH + 1)  # the plain receiver notes all of them, and no sample
    receiving, sending = pair
    receiver = receiver_of(receiving)
    port = sending.getsockname()[1]
    expected = iter(f"127.{i >> 16}.{i >> 8 & 255}.{i & 255}" for i in range(2, 1 << 17))
    blocks = []
    for _ in range(40_000 // BATCH):
        hosts = [next(expected) for _ in range(BATCH)]
        for host in hosts:
            source = struct.pack("=i4s4s", 0, socket.inet_aton(host), bytes(4))
            sending.sendmsg([b"x"], [(socket.IPPROTO_IP, IP_PKTINFO, source)])
        assert receiver.receive() == [(b"x", (host, port)) for host in hosts]
        blocks.append(sys.getallocatedblocks())
    # 4,096 addresses are kept at most, a tuple, a string and a number each, and twice as many hosts.
    assert max(blocks) - blocks[0] < 6 * 4096
    half = len(blocks) // 2
    assert max(blocks[half:]) - max(blocks[:half]) < 1024


def test_the_compiled_receiver_refuses_other_families(parts):
    """It reads addresses of IPv4 and IPv6 only."""
    if parts is choose.PLAIN:
        pytest.skip("of the compiled receiver")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, pytest.raises(ValueError, match="AF_UNIX"):
        parts.receiver(sock)


def test_a_sender_has_one_tuple(parts, pair):
    """The compiled receiver makes the tuple of an address once."""
    if parts is choose.PLAIN:
        pytest.skip("of the compiled receiver")
    receiving, sending = pair
    receiver = parts.receiver(receiving)
    sending.send(b"1")
    ((_, first),) = receiver.receive()
    sending.send(b"2")
    ((_, second),) = receiver.receive()
    assert first is second


class FailingSocket:
    """A socket whose answers are given."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def getsockopt(self, *_args):
        return 0

    def recvfrom_into(self, buffer):
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        buffer[: len(answer)] = answer
        return len(answer), ("127.0.0.1", 9)

    recvmsg_into = None


def test_an_error_after_datagrams_costs_none_of_them():
    """What was taken is returned first; the next call raises the error; then it goes on."""
    refused = OSError(errno.ECONNREFUSED, "refused")
    receiver = PlainReceiver(FailingSocket(b"1", b"2", refused, b"3", BlockingIOError()))
    assert [datagram for datagram, _ in receiver.receive()] == [b"1", b"2"]
    with pytest.raises(OSError, match="refused"):
        receiver.receive()
    assert [datagram for datagram, _ in receiver.receive()] == [b"3"]
    assert (receiver.datagrams, receiver.bytes) == (3, 3)


def test_an_interrupted_call_ends_the_batch():
    """EINTR is no error: what was taken is returned, the next call goes on."""
    receiver = PlainReceiver(FailingSocket(b"1", InterruptedError(), InterruptedError(), b"2", BlockingIOError()))
    assert [len(receiver.receive()) for _ in range(3)] == [1, 0, 1]


def send_from(to, hosts, *, times=1):
    """Send datagrams from each host in turn."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        sending.bind(("0.0.0.0", 0))
        for _ in range(times):
            for host in hosts:
                control = (socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I4s4x", 0, socket.inet_aton(host)))
                sending.sendmsg([b"x"], [control], 0, to)


def test_senders_are_counted(receiver_of, pair):
    """Each host's datagrams since the last call, and every source in the sketch, as its twin in Python makes it."""
    receiver, to = receiver_of(pair[0]), pair[0].getsockname()
    assert receiver.senders() == ({}, 0)
    hosts = [f"127.0.1.{number}" for number in range(1, 6)]
    send_from(to, hosts)
    send_from(to, hosts[:2])
    assert len(receiver.receive()) == 7
    assert receiver.senders() == ({host: 2 if host in hosts[:2] else 1 for host in hosts}, 0)
    assert receiver.senders() == ({}, 0)
    assert Sketch(*receiver.sketch) == Sketch.of(map(ip_address, hosts))
    assert Sketch(*receiver.sketch).count == 5


@pytest.mark.parametrize("number", [512, 513])
def test_sources_are_counted_exactly_while_they_are_few(receiver_of, pair, monkeypatch, number):
    """Of up to 512 sources each is counted, whatever ports they have; of more there are registers."""
    monkeypatch.setattr(senders, "FEW", BATCH + 1)
    receiver, to = receiver_of(pair[0]), pair[0].getsockname()
    hosts = [f"127.{1 + i >> 8}.{1 + i & 255}.1" for i in range(number)]
    for _ in range(2):
        for start in range(0, number, 50):
            send_from(to, hosts[start : start + 50])
            while receiver.receive():
                pass
    assert Sketch(*receiver.sketch) == Sketch.of(map(ip_address, hosts))
    assert Sketch(*receiver.sketch).exact == (number == 512)


def test_no_sender_is_forgotten_among_hundreds(parts, pair):
    """Senders that share an entry of the address book are told apart."""
    if parts is choose.PLAIN:
        pytest.skip("of the compiled receiver")
    receiving, _ = pair
    receiving.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
    receiver = parts.receiver(receiving)
    hosts = [f"127.0.{high}.{low}" for high in range(1, 6) for low in range(1, 200)]
    send_from(receiving.getsockname(), hosts, times=3)
    while receiver.receive():
        pass
    assert receiver.senders() == (dict.fromkeys(hosts, 3), 0)
    assert Sketch(*receiver.sketch) == Sketch.of(map(ip_address, hosts))


def test_very_many_senders(parts, pair):
    """However many there are, those that send much are known, and what is not known is counted."""
    if parts is choose.PLAIN:
        pytest.skip("of the compiled receiver")
    receiving, _ = pair
    receiving.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
    receiver = parts.receiver(receiving)
    hosts = [f"127.{high}.{low}.1" for high in range(1, 81) for low in range(1, 101)]
    for start in range(0, len(hosts), 100):
        send_from(receiving.getsockname(), [*hosts[start : start + 100], *["127.0.0.9"] * 10])
        while receiver.receive():
            pass
    counts, missed = receiver.senders()
    assert sum(counts.values()) + missed == len(hosts) + 800
    assert missed > 0
    assert max(counts, key=counts.get) == "127.0.0.9"
    assert counts["127.0.0.9"] > 700


def test_a_flood_is_sampled_by_the_plain_receiver(parts, pair):
    """Of batches that are not small it looks at some, and says of how many datagrams it does not know the sender."""
    if parts is not choose.PLAIN:
        pytest.skip("of the plain receiver")
    receiver = parts.receiver(pair[0], batch=8)
    send_from(pair[0].getsockname(), ["127.0.0.3"], times=200)
    while receiver.receive():
        pass
    counts, missed = receiver.senders()
    assert sum(counts.values()) + missed == 200


def test_sizes_of_batches(receiver_of, pair):
    """A call that handed out something counts by the power of two above it."""
    receiver = receiver_of(pair[0])
    receiver.receive()
    for number in (1, 2, 3, 7):
        for _ in range(number):
            pair[1].send(b"x")
        assert len(receiver.receive()) == number
    assert list(receiver.batch_sizes) == [0, 1, 2, 1] + [0] * 12
