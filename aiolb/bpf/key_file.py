"""A user's C function that makes the key: its text, its place in balancer.c, and its lines found again."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from aiolb.bpf.abi import KEY_CUSTOM
from aiolb.bpf.keys import Key
from aiolb.errors import ConfigurationError

FUNCTION = "int key_of(const struct packet *packet, struct key *key)"
"""What a key file defines."""

FIRST_LINE = 10_000
"""The number of a key file's first line where it is compiled: far beyond those of balancer.c."""

_PLACE = "#include AIOLB_KEY_FILE\n"
_INSERTED = "__attribute__((always_inline))"
_NEWLINE = "\n"
_ERROR = re.compile(r"^/virtual/main\.c:(\d+):(\d+): (?:fatal )?error: (.*)$", re.MULTILINE)
_UNDEFINED = "function 'key_of' has internal linkage but is not defined"
# Out of bcc's DEBUG_SOURCE: "; return -1; // Line  12", and then "  34:\tb7 00 …\tr0 = -1".
_SOURCE = re.compile(r"^; .*// Line *(\d+)$")
_INSTRUCTION = re.compile(r"^ *(\d+):\t")


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A key file that was read: what is compiled and what its digest says is one text, whoever edits the file."""

    name: str
    text: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read it; ``name`` is its path as it was given. Raises ConfigurationError."""
        try:
            return cls(str(path), path.read_bytes().decode())
        except OSError as error:
            raise ConfigurationError(f"the key file {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigurationError(f"the key file {path} is no text in UTF-8") from None

    @property
    def key(self) -> Key:
        """The key of a group that was made with it; its digest is the beginning of what sha256sum(1) prints."""
        return Key(KEY_CUSTOM, digest=int.from_bytes(hashlib.sha256(self.text.encode()).digest()[:8], "big"))


class JoinedSource:
    """The text of balancer.c with a key file in its place; ``str()`` is what to compile.

    The key file's lines are numbered from FIRST_LINE on, which tells them from the balancer's; empty lines follow, for
    bcc tells of no line whose number is beyond the end of the text.
    """

    def __init__(self, balancer: str, key_file: KeyFile) -> None:
        self._before, _, self._behind = balancer.partition(_PLACE)
        self._key_file = key_file
        self._lines = key_file.text.split("\n")
        self._end = f"#line {self._before.count(_NEWLINE) + 2}\n"

    def __str__(self) -> str:
        placed = f"#line {FIRST_LINE}\n{self._key_file.text}\n{self._end}"
        padding = "\n" * (FIRST_LINE + 2 * len(self._lines))
        return f"{self._before}{placed}{self._behind}{padding}"

    def error(self, output: str) -> str | None:
        """The first of clang's errors that is about the key file, and how many there are; out of what clang writes."""
        name = self._key_file.name
        if _UNDEFINED in output:
            return f"{name} defines no function {FUNCTION}"
        found = []
        for line, column, said in _ERROR.findall(output):
            if (own := int(line) - FIRST_LINE) in range(len(self._lines)):
                found.append(f"{name}:{own + 1}:{column}: {said}")
        if not found and (behind := _ERROR.search(output)):
            return f"behind the end of {name}: {behind[3]}; is a brace or a comment in it left open?"
        return f"{found[0]} (the first of {len(found)} errors)" if len(found) > 1 else "".join(found) or None

    def places(self, output: str) -> dict[int, str]:
        """Which instructions come from the key file, and from which of its lines; out of what bcc writes."""
        numbers = self._numbers(output)
        found, own = {}, None
        for line in output.splitlines():
            if source := _SOURCE.match(line):
                own = numbers.get(int(source[1]))
            elif own is not None and (instruction := _INSTRUCTION.match(line)):
                found[int(instruction[1])] = f"{self._key_file.name}:{own}"
        return found

    def _numbers(self, output: str) -> dict[int, int]:
        """The key file's own line numbers, by those that it has where it is compiled: bcc inserts lines."""
        rewritten = output.partition(f"#line {FIRST_LINE}\n")[2].partition(f"\n{self._end}")[0].split("\n")
        numbers, own = {}, 1
        for number, line in enumerate(rewritten, FIRST_LINE):
            numbers[number] = own
            own += line != _INSERTED
        return numbers
