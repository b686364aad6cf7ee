"""A program as data: its bytecode and where it comes from. Needs no kernel."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from aiolb.bpf.abi import LAYOUT_VERSION

FOLDER = Path(__file__).parent
SOURCES = ("balancer.c", "balancer.h")
MIGRATING = "aiolb_migrating"
"""The name of the program for TCP that also moves the waiting connections of a closed listener (Linux 5.14)."""
BYTECODE = {"aiolb_balancer": FOLDER / "balancer.bin", MIGRATING: FOLDER / "migrating.bin"}
"""The files that ``make bytecode`` writes, by the program's name."""

_MAGIC = "aiolb-balancer"


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """Relocatable bytecode: instructions of 8 bytes, in which map placeholders wait for their descriptors.

    ``places`` says of an instruction, by its number, which line of a key file it comes from: ``key.c:12``. None: there
    is no key file.
    """

    instructions: bytes
    name: str
    source_digest: str
    compiler: str
    migrates: bool = False
    places: Mapping[int, str] | None = field(default=None, compare=False, repr=False)

    @property
    def digest(self) -> int:
        """The first 8 bytes of the bytecode's SHA-256: tells two programs apart."""
        return int.from_bytes(hashlib.sha256(self.instructions).digest()[:8], "little")

    def to_bytes(self) -> bytes:
        """The content of ``balancer.bin``: a line of text, then the instructions."""
        header = f"{_MAGIC} layout={LAYOUT_VERSION} source={self.source_digest} compiler={self.compiler}\n"
        return header.encode() + self.instructions


def source_digest() -> str:
    """SHA-256 over the program's C source and headers."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((FOLDER / name).read_bytes())
    return digest.hexdigest()


@cache
def shipped(name: str = "aiolb_balancer") -> ProgramSpec:
    """Bytecode that the package brings, built by ``make bytecode``; ``name`` as in BYTECODE."""
    header, _, instructions = BYTECODE[name].read_bytes().partition(b"\n")
    words, _, compiler = header.decode().partition(" compiler=")
    fields = dict(word.split("=", 1) for word in words.split()[1:])
    return ProgramSpec(instructions, name, fields["source"], compiler, migrates=name == MIGRATING)


def for_protocol(protocol: str) -> tuple[ProgramSpec, ...]:
    """The programs for ``udp`` or ``tcp``, the one to prefer first."""
    return (shipped(MIGRATING), shipped()) if protocol == "tcp" else (shipped(),)
