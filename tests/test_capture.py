"""pcap and pcapng files are read packet by packet, with their times; broken ones say where they break."""

from __future__ import annotations

import struct
import sys
import tracemalloc
from contextlib import suppress

import captures
import pytest
from captures import block, ethernet, interface, ipv4, ipv6, packet, pcap, section, simple, udp
from hypothesis import given
from hypothesis import strategies as st

from aiolb.capture import LONGEST_RECORD, check_capture, open_capture, read_packets
from aiolb.errors import CaptureError, ConfigurationError
from aiolb.frames import NOT_UDP, OTHER_LINK

FRAMES = [(1_700_000_000.25, ethernet(ipv4(data=udp(b"one")))), (1_700_000_000.75, ethernet(ipv6(data=udp(b"two"))))]
PCAPNG = section() + interface() + packet(5, FRAMES[0][1]) + packet(6, FRAMES[1][1])


@pytest.fixture
def read(tmp_path):
    """Read a capture given as bytes, to its end."""

    def read(content):
        (tmp_path / "capture").write_bytes(content)
        with open_capture(tmp_path / "capture") as file:
            return list(read_packets(file))

    return read


def payloads(packets):
    """What the datagrams hold."""
    return [packet.datagram.payload for packet in packets]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nano", [False, True])
def test_pcap(read, order, nano):
    """Both byte orders and both resolutions are read, with the times."""
    packets = read(pcap(FRAMES, order=order, nano=nano))
    assert [packet.recorded for packet in packets] == [1_700_000_000.25, 1_700_000_000.75]
    assert payloads(packets) == [b"one", b"two"]


def test_pcap_of_another_link_type(read):
    """The link type of the file is that of its frames; the bits above it tell of something else."""
    raw = [(1.0, ipv4(data=udp(b"raw")))]
    assert payloads(read(pcap(raw, link=captures.RAW))) == [b"raw"]
    assert payloads(read(pcap(raw, link=captures.RAW | 0x1400_0000))) == [b"raw"]
    assert read(pcap(FRAMES, link=captures.WIFI))[0].datagram == OTHER_LINK


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng(read, order):
    """Both byte orders are read; a time is 64 bits of microseconds."""
    ticks = 1_700_000_000_250_000
    content = section(order) + interface(order=order) + packet(ticks, FRAMES[0][1], order=order)
    packets = read(content)
    assert (packets[0].recorded, payloads(packets)) == (1_700_000_000.25, [b"one"])


def test_pcapng_interfaces(read):
    """Each interface has its own link type, resolution and offset."""
    content = (
        section()
        + interface()
        + interface(captures.RAW, resolution=9)
        + interface(captures.SLL, resolution=0x80 | 10, offset=100)
        + packet(2_000_000, FRAMES[0][1])
        + packet(3_000_000_000, ipv4(data=udp(b"raw")), number=1)
        + packet(4 * 1024, captures.sll(ipv4(data=udp(b"sll"))), number=2)
    )
    packets = read(content)
    assert [packet.recorded for packet in packets] == [2.0, 3.0, 104.0]
    assert payloads(packets) == [b"one", b"raw", b"sll"]


def test_pcapng_sections(read):
    """A new section has interfaces and a byte order of its own."""
    second = section(">") + interface(captures.RAW, order=">") + packet(7_000_000, ipv4(data=udp(b"2nd")), order=">")
    packets = read(PCAPNG + second)
    assert payloads(packets) == [b"one", b"two", b"2nd"]
    assert packets[2].recorded == 7.0


def test_pcapng_kinds_of_packets(read):
    """The old block of a packet is read, and the simple one, which has no time; others are passed over."""
    cut = interface(snap=len(FRAMES[1][1]))
    padded = FRAMES[1][1] + b"beyond the snap length"
    content = section() + cut + block(0x0BAD, b"unknown") + packet(9_000_000, FRAMES[0][1], kind=captures.PCAPNG_OLD)
    packets = read(content + simple(padded))
    assert payloads(packets) == [b"one", b"two"]
    assert [packet.recorded for packet in packets] == [9.0, None]


def test_packets_without_a_datagram(read):
    """A packet that is no datagram has its place, and the reason."""
    packets = read(pcap([(1.0, ethernet(ipv4(protocol=captures.TCP))), FRAMES[0]]))
    assert packets[0].datagram == NOT_UDP
    assert payloads(packets[1:]) == [b"one"]


@pytest.mark.parametrize(
    ("start", "packets"),
    [
        (pcap([]), [pcap([frame])[24:] for frame in FRAMES]),
        (section() + interface(), [packet(5, frame) for _, frame in FRAMES]),
    ],
    ids=["pcap", "pcapng"],
)
def test_cut_off(read, start, packets):
    """A file that ends within a packet, wherever, says after how many it does; one that ends behind one is whole."""
    for number, last in enumerate(packets):
        before = start + b"".join(packets[:number])
        assert len(read(before)) == number
        for size in range(1, len(last)):
            with pytest.raises(CaptureError, match=f"is cut off: it ends after {number} packets"):
                read(before + last[:size])


@pytest.mark.parametrize("size", range(4, 24))
def test_cut_off_at_the_start(read, size):
    """A file that ends within its header is cut off, too."""
    with pytest.raises(CaptureError, match="is cut off: it ends after 0 packets"):
        read(pcap([])[:size])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pcap(FRAMES) + struct.pack("<IIII", 1, 0, LONGEST_RECORD + 1, 0), "a record of 16,777,217 bytes"),
        (PCAPNG + struct.pack("<II", 6, 8), "a block of 8 bytes"),
        (PCAPNG + struct.pack("<II", 6, 33) + bytes(25), "a block of 33 bytes"),
        (PCAPNG + struct.pack("<II", 6, 1 << 30) + bytes(25), "a record of 1,073,741,816 bytes"),
        (PCAPNG + block(6, b"short"), "a packet in a block of 20 bytes"),
        (PCAPNG + packet(7, FRAMES[0][1], number=1), "a packet of interface 1, which it does not describe,"),
        (PCAPNG + block(6, struct.pack("<IIIII", 0, 0, 0, 99, 99)), "a packet of 99 bytes in a block of 32"),
        (PCAPNG + block(0x0A0D0D0A, bytes(16)), r"a section that starts with b'\x00\x00\x00\x00'"),
        (PCAPNG + block(1, b"1"), "an interface that cannot be read"),
    ],
)
def test_broken(read, content, message):
    """What cannot be is told with its place; what came before is handed out."""
    with pytest.raises(CaptureError) as caught:
        read(content)
    assert f"is broken: {message} comes after 2 packets" in str(caught.value)


@given(content=st.sampled_from([pcap(FRAMES), PCAPNG]), data=st.data())
def test_damaged(tmp_path_factory, content, data):
    """A file with some bytes changed is read, or says that it is broken or cut off, and nothing else."""
    damaged = bytearray(content)
    for place in data.draw(st.lists(st.integers(4, len(content) - 1), min_size=1, max_size=6)):
        damaged[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    with open_capture(path) as file, suppress(CaptureError):
        for found in read_packets(file):
            assert found.datagram


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"GET / HTTP", "is no capture: it starts with b'GET '"),
        (b"\x1f\x8b\x08\x00", "is compressed"),
    ],
)
def test_no_capture(tmp_path, content, message):
    """What is no capture is found before the start."""
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        check_capture(tmp_path / "file")


def test_no_file(tmp_path):
    """A file that is missing, and a folder, are found before the start."""
    with pytest.raises(ConfigurationError, match=r"cannot read the capture .*nothing: No such file or directory"):
        check_capture(tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match="is no regular file"):
        check_capture(tmp_path)


def test_without_dpkt(tmp_path, monkeypatch):
    """Where the package that reads captures is missing, the error says how to get it."""
    monkeypatch.setitem(sys.modules, "dpkt", None)
    with pytest.raises(ConfigurationError, match="needs the package dpkt") as caught:
        check_capture(tmp_path / "capture")
    assert caught.value.hint == "pip install dpkt"


def test_a_huge_file_takes_little_memory(tmp_path):
    """Packets are read one at a time: 20 MB of them take far less."""
    frame = ethernet(ipv4(data=udp(bytes(1000))))
    path = tmp_path / "capture"
    with path.open("wb") as file:
        file.write(pcap([]))
        for _ in range(20):
            file.write(pcap([(1.0, frame)] * 1000)[24:])
    with open_capture(path) as file:
        tracemalloc.start()
        try:
            number = sum(1 for _ in read_packets(file))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert number == 20_000
    assert peak < 2_000_000
