"""What a check says: a level, what was found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How bad it is.

    PROBLEM: the default ``aiolb serve`` would not work, or would lose one of its guarantees. WARNING: it works, but is
    slower or can do less.
    """

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The result of ``check``; ``fix`` is a command, or how to get there, where there is something to mend.

    ``lasting`` is what makes that last beyond a restart of the machine, where it would not by itself.
    """

    check: str
    level: Level
    found: str
    fix: str | None = None
    lasting: str | None = None
