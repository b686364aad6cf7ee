"""Draws docs/demo.svg: what `aiolb demo` prints, as it stands, in a terminal of 64 columns."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).parent.parent / "docs" / "demo.svg"
COLUMNS = 64


def drawn(command: str, output: str) -> str:
    """A picture of a terminal in which the command was run. It names no font of another host."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, file=nowhere, width=COLUMNS, force_terminal=True)
        console.print(Text.assemble(("# ", "bold green"), (command, "bold")))
        console.print(Text(output.rstrip()))
        svg = console.export_svg(title="aiolb", unique_id="aiolb")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace(
        "Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono"
    )


def main() -> None:
    """Run the demo, and draw what it says. Run it as root, for the eBPF balancer."""
    command = [sys.executable, "-m", "aiolb", "demo"]
    done = subprocess.run(
        command, env={**os.environ, "COLUMNS": str(COLUMNS)}, capture_output=True, text=True, check=True
    )
    PICTURE.write_text(drawn("aiolb demo", done.stdout))


if __name__ == "__main__":
    main()
