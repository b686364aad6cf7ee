"""The stamp on the wire."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb.errors import ConfigurationError, WireError
from aiolb.stamp import MAGIC, STAMP_SIZE, Stamp, stamp_from_wire

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
stamps = st.builds(Stamp, run=u64, source=u32, sequence=u64, sent_ns=u64)


@given(stamps, st.integers(STAMP_SIZE, 2000))
def test_round_trip(stamp, size):
    """A stamp comes back from a datagram of any size that holds it."""
    wire = stamp.to_wire(size)
    assert len(wire) == size
    assert stamp_from_wire(wire) == stamp
    assert stamp_from_wire(memoryview(wire)) == stamp


@given(stamps, st.binary(min_size=STAMP_SIZE, max_size=100))
def test_pack_into_leaves_the_rest(stamp, datagram):
    """Packing overwrites the first bytes of a datagram and no others."""
    buffer = bytearray(datagram)
    stamp.pack_into(buffer)
    assert stamp_from_wire(buffer) == stamp
    assert buffer[STAMP_SIZE:] == datagram[STAMP_SIZE:]


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda rest: MAGIC + rest))
def test_any_bytes_are_a_stamp_or_a_wire_error(data):
    """Bytes from the network raise nothing but WireError."""
    try:
        stamp = stamp_from_wire(data)
    except WireError:
        assert len(data) < STAMP_SIZE or not data.startswith(MAGIC)
    else:
        assert stamp.to_wire() == data[:STAMP_SIZE]


def test_the_layout_is_fixed():
    """Magic, run, source, sequence, time: 32 bytes in network byte order."""
    wire = Stamp(run=1, source=2, sequence=3, sent_ns=4).to_wire()
    assert wire.hex() == "614c62010000000000000001" + "00000002" + "0000000000000003" + "0000000000000004"
    assert len(wire) == STAMP_SIZE == 32


def test_errors_say_what_is_wrong():
    """Too short and not a stamp are told apart."""
    with pytest.raises(WireError, match="31 bytes are too short"):
        stamp_from_wire(bytes(31))
    with pytest.raises(WireError, match="starts with"):
        stamp_from_wire(bytes(32))


def test_no_room_for_a_stamp():
    """A stamp needs its size, in a new datagram and in a buffer."""
    with pytest.raises(ConfigurationError, match="31 bytes"):
        Stamp(1, 2, 3, 4).to_wire(31)
    with pytest.raises(struct.error):
        Stamp(1, 2, 3, 4).pack_into(bytearray(31))


def test_a_stamp_is_frozen():
    """A stamp cannot be changed."""
    with pytest.raises(AttributeError):
        Stamp(1, 2, 3, 4).run = 5
