"""How what commands print reads: numbers, lists, and text as it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def plain_console(**options: Any) -> Console:
    """A console that prints text as it is: rich would take ``[fe80::1%lo]`` for a style, and ``:ab:`` for an emoji."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, **options)


def some(number: int, what: str) -> str:
    """``no slots``, ``1 slot``, ``1,234 slots``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}" if number else f"no {what}s"


def listed(numbers: list[int], what: str) -> str:
    """``member 2``, ``members 0, 2 and 3``."""
    *first, last = map(str, sorted(numbers))
    return f"{what}s {', '.join(first)} and {last}" if first else f"{what} {last}"


def folded(parts: Iterable[str], width: int | None) -> list[str]:
    """Parts with commas between them, in lines of so many characters, or one line; a part is never cut."""
    lines: list[str] = []
    for part in parts:
        if lines and (width is None or len(lines[-1]) + 2 + len(part) <= width):
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    return lines
