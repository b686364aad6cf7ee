"""abi.py mirrors balancer.h: the same constants, and the same fields in the same order and sizes."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import pytest

from aiolb.bpf import abi
from aiolb.bpf.spec import FOLDER

HEADER = re.sub(r"/\*.*?\*/", "", (FOLDER / "balancer.h").read_text(), flags=re.DOTALL)
FORMATS = {"u16": "H", "u32": "I", "u64": "Q"}
STRUCTS = {
    "config": abi.Config,
    "member": abi.Member,
    "report": abi.Report,
    "member_stats": abi.MemberStats,
    "group_stats": abi.GroupStats,
    "rule": abi.Rule,
    "bucket": abi.Bucket,
    "tick": abi.Tick,
    "event": abi.Event,
}


def defines():
    """The constants of the header."""
    return {name: int(value) for name, value in re.findall(r"#define (\w+) (\d+)", HEADER)}


def structs():
    """The structs of the header: their fields in order, arrays flattened."""
    return {
        name: [
            (kind, field)
            for kind, field, length in re.findall(r"(u16|u32|u64) (\w+)(?:\[(\d+)\])?;", body)
            for _ in range(int(length or 1))
        ]
        for name, body in re.findall(r"struct (\w+) \{(.*?)\};", HEADER, flags=re.DOTALL)
    }


def test_constants():
    """Every constant of the header has the same value in abi.py."""
    maps = {f"MAP_{spec.pin.upper()}": spec.placeholder for spec in abi.MAPS if spec.placeholder}
    others = {name: getattr(abi, name) for name in defines() if not name.startswith("MAP_")}
    assert defines() == maps | others
    assert {"LAYOUT_VERSION", "SLOT_COUNT", "MAX_MEMBERS", "FLAG_STRICT"} <= others.keys()


def test_every_struct_is_mirrored():
    """The header has no struct that abi.py lacks."""
    assert structs().keys() == STRUCTS.keys()


@pytest.mark.parametrize("name", STRUCTS)
def test_fields(name):
    """A struct has the header's fields, in its order, with its sizes and without padding."""
    found, layout = structs()[name], STRUCTS[name]
    assert layout.STRUCT.format == "=" + "".join(FORMATS[kind] for kind, _ in found)
    arrays = getattr(layout, "ARRAYS", {})
    mirrored = [
        re.sub("_(low|high)$", "", field.name) for field in fields(layout) for _ in range(arrays.get(field.name, 1))
    ]
    assert mirrored == [field for _, field in found]
    # In C, with its alignment, it is as long: so no padding hides between the fields.
    assert layout.STRUCT.size % 8 == 0
    offset = 0
    for kind, _ in found:
        size = {"u16": 2, "u32": 4, "u64": 8}[kind]
        assert offset % size == 0
        offset += size


@pytest.mark.parametrize("layout", STRUCTS.values())
def test_round_trip(layout):
    """What is packed is unpacked again, also from a longer map value."""
    arrays = getattr(layout, "ARRAYS", {})
    values = [
        tuple(range(number, number + arrays[field.name])) if field.name in arrays else number
        for number, field in enumerate(fields(layout), 1)
    ]
    value = layout(*values)
    if "checksum" in value.__dataclass_fields__:  # it is made by packing
        value = replace(value, checksum=layout.unpack(value.pack()).checksum)
    assert layout.unpack(value.pack()) == value == layout.unpack(value.pack() + b"more")


def test_the_checksum_of_a_report():
    """A report of which half is another one's is found out."""
    one, other = bytearray(abi.Report.STRUCT.size), bytearray(abi.Report.STRUCT.size)
    one[:] = replace(abi.Report.unpack(bytes(one)), received=1, sent=1).pack()
    other[:] = replace(abi.Report.unpack(bytes(other)), received=2, sent=2).pack()
    assert abi.Report.is_whole(one)
    assert not abi.Report.is_whole(one[:100] + other[100:])
    assert not abi.Report.is_whole(bytes(abi.Report.STRUCT.size))


def test_seed_and_strict():
    """The seed is put together of its two halves, and strict is a flag."""
    nothing = abi.Config.unpack(bytes(abi.Config.STRUCT.size))
    config = replace(nothing, flags=abi.FLAG_STRICT, seed_low=2, seed_high=3)
    assert (config.seed, config.strict) == (3 << 64 | 2, True)


def test_names_fit():
    """The kernel takes map names of up to 15 characters; the sockarray has the name that operators know."""
    assert all(len(spec.name_for(protocol)) <= 15 for spec in abi.MAPS for protocol in ("udp", "tcp"))
    assert abi.MAPS[0].name_for("udp") == "udp_balancing_t"
    assert abi.MAPS[0].name_for("tcp") == "tcp_balancing_t"
