"""Programs that do less than the balancer, instruction by instruction: where the time of steering goes."""

from __future__ import annotations

import struct

# Opcodes, and numbers of helpers, from include/uapi/linux/bpf.h.
_MOVE, _MOVE_REGISTER, _ADD, _STORE_WORD = 0xB7, 0xBF, 0x07, 0x62
_CALL, _EXIT, _LOAD_IMMEDIATE = 0x85, 0x95, 0x18
_LOAD_BYTES_RELATIVE, _SELECT_REUSEPORT = 68, 82
_PSEUDO_MAP_FD = 1
_HEADER_START_NETWORK = 1
_SK_PASS = 1
_SOURCE_OFFSET, _SOURCE_SIZE = 12, 4
_FRAME = 10  # the register that points to the end of the stack


def _instruction(opcode: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhi", opcode, source << 4 | target, offset, immediate)


def _stack(target: int, offset: int) -> bytes:
    """Let a register point into the stack."""
    move = _instruction(_MOVE_REGISTER, target, _FRAME)
    return move + _instruction(_ADD, target, immediate=offset)


_RETURN = _instruction(_MOVE, 0, immediate=_SK_PASS) + _instruction(_EXIT)

EMPTY = _RETURN
"""Two instructions: return SK_PASS."""

_LOAD_SOURCE = b"".join(
    [
        _instruction(_MOVE_REGISTER, 6, 1),  # the context, which a call would lose
        _instruction(_MOVE, 2, immediate=_SOURCE_OFFSET),
        _stack(3, -8),
        _instruction(_MOVE, 4, immediate=_SOURCE_SIZE),
        _instruction(_MOVE, 5, immediate=_HEADER_START_NETWORK),
        _instruction(_CALL, immediate=_LOAD_BYTES_RELATIVE),
    ]
)


def load_source() -> bytes:
    """Copy the source out of the IPv4 header, and return SK_PASS."""
    return _LOAD_SOURCE + _RETURN


def load_source_and_select(targets: int) -> bytes:
    """Copy the source, then select the socket at index 0 of the map with this descriptor."""
    select = [
        _instruction(_STORE_WORD, _FRAME, offset=-4),
        _instruction(_MOVE_REGISTER, 1, 6),
        _instruction(_LOAD_IMMEDIATE, 2, _PSEUDO_MAP_FD, immediate=targets) + bytes(8),
        _stack(3, -4),
        _instruction(_MOVE, 4),
        _instruction(_CALL, immediate=_SELECT_REUSEPORT),
    ]
    return _LOAD_SOURCE + b"".join(select) + _RETURN
