"""The classic-BPF balancer, for users without any privilege, and its pure twin.

Members are numbered in the order in which their sockets were bound. There is no failover, no slot table and
no counter: when a socket closes, the last one takes its number.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from itertools import chain

from aiolb.bpf.abi import KEY_FLOW, KEY_RANDOM
from aiolb.bpf.keys import Key

_Instruction = tuple[int, int, int, int]

_INSTRUCTION = struct.Struct("=HBBI")
_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF, include/uapi/linux/filter.h
_RANDOM_NUMBER = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
_MASK = 0xFFFFFFFF
_MULTIPLIER = 0x9E3779B1
_TCP, _UDP = 6, 17

# Opcodes of bpf_common.h: class | size or operation | mode or operand.
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _LOAD_CONSTANT = 0x20, 0x28, 0x30, 0x00
_LOAD_HALF_BEHIND_X, _LOAD_X_HEADER_LENGTH = 0x48, 0xB1
_STORE, _LOAD_X_MEMORY, _A_TO_X = 0x02, 0x61, 0x07
_XOR_X, _MULTIPLY, _SHIFT_RIGHT, _MODULO, _AND = 0xAC, 0x24, 0x74, 0x94, 0x54
_JUMP_IF_EQUAL, _JUMP, _RETURN_A = 0x15, 0x05, 0x16

_SOURCE = Key()


def program(count: int, seed: int = 0, key: Key = _SOURCE) -> bytes:
    """A classic program that hashes the key to one of ``count`` sockets; ``seed`` has 32 bits.

    In the place of a key file, which it cannot run, it hashes the source.
    """
    code = [
        *([(_LOAD_WORD, 0, 0, _RANDOM_NUMBER)] if key.kind == KEY_RANDOM else _hash(seed, key)),
        (_MODULO, 0, 0, count),
        (_RETURN_A, 0, 0, 0),
    ]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


def _hash(seed: int, key: Key) -> list[_Instruction]:
    version_6 = [*_mix_address(8, key.mask6), *(_mix_port_6() if key.kind == KEY_FLOW else ())]
    version_4 = [*_mix_address(12, key.mask4), *(_mix_port_4() if key.kind == KEY_FLOW else ())]
    return [
        (_LOAD_CONSTANT, 0, 0, seed & _MASK),
        (_STORE, 0, 0, 0),
        (_LOAD_BYTE, 0, 0, _NETWORK_HEADER),
        (_SHIFT_RIGHT, 0, 0, 4),
        (_JUMP_IF_EQUAL, 0, len(version_6) + 1, 6),
        *version_6,
        (_JUMP, 0, 0, len(version_4)),
        *version_4,
    ]


def _mix_address(offset: int, mask: bytes) -> list[_Instruction]:
    """Mix the address at ``offset`` of the IP header, under its mask."""
    parts = []
    for number, (bits,) in enumerate(struct.iter_unpack("!I", mask)):
        load = [(_LOAD_WORD, 0, 0, _NETWORK_HEADER + offset + 4 * number)]
        parts.append(_mix(load if bits == _MASK else [*load, (_AND, 0, 0, bits)]))
    return list(chain.from_iterable(parts))


def _mix_port_4() -> list[_Instruction]:
    """Mix the sender's port, the first two bytes behind an IPv4 header of any length."""
    return _mix([(_LOAD_X_HEADER_LENGTH, 0, 0, _NETWORK_HEADER), (_LOAD_HALF_BEHIND_X, 0, 0, _NETWORK_HEADER)])


def _mix_port_6() -> list[_Instruction]:
    """Mix the sender's port behind an IPv6 header, or 0 where an extension header lies between."""
    return _mix(
        [
            (_LOAD_BYTE, 0, 0, _NETWORK_HEADER + 6),
            (_JUMP_IF_EQUAL, 3, 0, _UDP),
            (_JUMP_IF_EQUAL, 2, 0, _TCP),
            (_LOAD_CONSTANT, 0, 0, 0),
            (_JUMP, 0, 0, 1),
            (_LOAD_HALF, 0, 0, _NETWORK_HEADER + 40),
        ]
    )


def _mix(load: list[_Instruction]) -> list[_Instruction]:
    """Mix what ``load`` puts into A into scratch word 0; leaves it in A too."""
    return [
        *load,
        (_LOAD_X_MEMORY, 0, 0, 0),
        (_XOR_X, 0, 0, 0),
        *[
            step
            for shift in (16, 15)
            for step in (
                (_MULTIPLY, 0, 0, _MULTIPLIER),
                (_A_TO_X, 0, 0, 0),
                (_SHIFT_RIGHT, 0, 0, shift),
                (_XOR_X, 0, 0, 0),
            )
        ],
        (_STORE, 0, 0, 0),
    ]


def choose(
    ip: IPv4Address | IPv6Address, count: int, seed: int = 0, key: Key = _SOURCE, port: int | None = None
) -> int:
    """The number of the socket, in bind order, that the program chooses for a source, and the sender's port.

    Raises ConfigurationError where they do not tell it.
    """
    data = key.told_by(ip, port)
    value = seed & _MASK
    for start in range(0, len(data), 4):
        value ^= int.from_bytes(data[start : start + 4], "big")
        for shift in (16, 15):
            value = value * _MULTIPLIER & _MASK
            value ^= value >> shift
    return value % count
