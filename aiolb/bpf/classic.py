"""The classic-BPF balancer, for users without any privilege, and its pure twin.

Members are numbered in the order in which their sockets were bound. There is no failover, no slot table and
no counter: when a socket closes, the last one takes its number.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from aiolb.bpf.keys import key_of

_INSTRUCTION = struct.Struct("=HBBI")
_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF, include/uapi/linux/filter.h
_MASK = 0xFFFFFFFF
_MULTIPLIER = 0x9E3779B1

# Opcodes of bpf_common.h: class | size or operation | mode or operand.
_LOAD_WORD, _LOAD_BYTE, _LOAD_CONSTANT = 0x20, 0x30, 0x00
_STORE, _LOAD_X_MEMORY, _A_TO_X = 0x02, 0x61, 0x07
_XOR_X, _MULTIPLY, _SHIFT_RIGHT, _MODULO = 0xAC, 0x24, 0x74, 0x94
_JUMP_IF_EQUAL, _JUMP, _RETURN_A = 0x15, 0x05, 0x16


def program(count: int, seed: int = 0) -> bytes:
    """A classic program that hashes the source address to one of ``count`` sockets; ``seed`` has 32 bits."""
    version_6 = [part for word in range(4) for part in _mix(8 + 4 * word)]
    version_4 = _mix(12)
    code = [
        (_LOAD_CONSTANT, 0, 0, seed & _MASK),
        (_STORE, 0, 0, 0),
        (_LOAD_BYTE, 0, 0, _NETWORK_HEADER),
        (_SHIFT_RIGHT, 0, 0, 4),
        (_JUMP_IF_EQUAL, 0, len(version_6) + 1, 6),
        *version_6,
        (_JUMP, 0, 0, len(version_4)),
        *version_4,
        (_MODULO, 0, 0, count),
        (_RETURN_A, 0, 0, 0),
    ]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


def _mix(offset: int) -> list[tuple[int, int, int, int]]:
    """Mix the word at ``offset`` of the IP header into scratch word 0; leaves it in A too."""
    return [
        (_LOAD_WORD, 0, 0, _NETWORK_HEADER + offset),
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


def choose(ip: IPv4Address | IPv6Address, count: int, seed: int = 0) -> int:
    """The number of the socket, in bind order, that the program chooses for a source."""
    value = seed & _MASK
    for (word,) in struct.iter_unpack("!I", key_of(ip)):
        value ^= word
        for shift in (16, 15):
            value = value * _MULTIPLIER & _MASK
            value ^= value >> shift
    return value % count
