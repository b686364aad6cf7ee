"""Tables as wide as the terminal: the columns that matter least give way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

GAP = 2


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, its cells, and its rank; those with the highest rank give way first."""

    title: str
    cells: Sequence[str]
    rank: int
    left: bool = False

    @property
    def width(self) -> int:
        """Characters."""
        return max(map(len, (self.title, *self.cells)))


def fitting(columns: Sequence[Column], width: int | None) -> list[Column]:
    """The columns, in their order, that fit into so many characters; None is any number."""
    kept = list(columns)
    while width is not None and len(kept) > 1 and sum(column.width + GAP for column in kept) - GAP > width:
        kept.remove(max(kept, key=lambda column: column.rank))
    return kept


def lines(columns: Sequence[Column], styles: Sequence[str]) -> list[Text]:
    """The title's line and one for each row, in the row's style."""
    rows = [[column.title for column in columns], *zip(*(column.cells for column in columns), strict=True)]
    return [
        Text(
            (" " * GAP)
            .join(
                cell.ljust(column.width) if column.left else cell.rjust(column.width)
                for cell, column in zip(row, columns, strict=True)
            )
            .rstrip(),
            style=style,
        )
        for row, style in zip(rows, ["bold", *styles], strict=True)
    ]
