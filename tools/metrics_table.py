"""Writes the table of all metrics into docs/reference/metrics.md, between its two marks: `make reference`."""

from __future__ import annotations

import sys
from pathlib import Path

from aiolb.metrics_table import METRICS

DOCUMENT = Path(__file__).parent.parent / "docs" / "reference" / "metrics.md"
BEGIN, END = "<!-- the table: make reference -->\n", "<!-- end of the table -->\n"


def table() -> str:
    """Every metric, in Markdown."""
    rows = [f"| `{one.full_name}` | {one.kind} | {', '.join(one.labels)} | {one.help} |" for one in METRICS]
    return "\n".join(["| metric | type | labels | meaning |", "| --- | --- | --- | --- |", *rows, ""])


def with_table(text: str) -> str:
    """The document with the table as it is to be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
    sys.stdout.write(f"wrote {DOCUMENT}\n")
