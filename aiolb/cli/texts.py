"""How numbers read in what commands print."""

from __future__ import annotations


def some(number: int, what: str) -> str:
    """``no slots``, ``1 slot``, ``1,234 slots``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}" if number else f"no {what}s"


def listed(numbers: list[int], what: str) -> str:
    """``member 2``, ``members 0, 2 and 3``."""
    *first, last = map(str, sorted(numbers))
    return f"{what}s {', '.join(first)} and {last}" if first else f"{what} {last}"
