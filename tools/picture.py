"""Draws docs/demo.svg and docs/top.svg: what `aiolb demo` and `aiolb top` show, as it stands, in a terminal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.text import Text

DOCS = Path(__file__).parent.parent / "docs"
COLUMNS = 64
TOP_COLUMNS, TOP_LINES = 80, 24
ADDRESS = "127.0.0.1:9000"
LOOKS = 12
AIOLB = [sys.executable, "-m", "aiolb"]
SLOW = """
import asyncio
from aiolb import Collector

class Slow(Collector):
    async def handle(self, datagram, addr):
        await asyncio.sleep(0.002)
"""
# A network and a BPF file system of its own: the port is free, and nothing is left behind.
ALONE = ["unshare", "-m", "-n", "sh", "-c", 'ip link set lo up; mount -t bpf bpf /sys/fs/bpf; exec "$@"', "sh"]


def drawn(command: str, output: str | list[Text], *, columns: int = COLUMNS) -> str:
    """A picture of a terminal in which the command was run. It names no font of another host."""
    lines = [Text(output.rstrip())] if isinstance(output, str) else output
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, file=nowhere, width=columns, force_terminal=True, highlight=False)
        console.print(Text.assemble(("# ", "bold green"), (command, "bold")))
        for line in lines:
            console.print(line)
        svg = console.export_svg(title="aiolb", unique_id="aiolb")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace(
        "Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono"
    )


def draw_demo() -> None:
    """Run the demo, and draw what it says."""
    environment = {**os.environ, "COLUMNS": str(COLUMNS)}
    done = subprocess.run([*AIOLB, "demo"], env=environment, capture_output=True, text=True, check=True)
    (DOCS / "demo.svg").write_text(drawn("aiolb demo", done.stdout))


@contextmanager
def running(*command: str, says: bytes = b"") -> Iterator[None]:
    """A command that runs until the end; it has said something before."""
    with subprocess.Popen([*AIOLB, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            while says and process.stderr and says not in (line := process.stderr.readline()):
                if not line:
                    raise SystemExit(f"aiolb {command[0]} ended")
            yield
        finally:
            process.terminate()
            process.communicate()


def draw_top() -> None:
    """Overload one member of three for some seconds, and draw what `aiolb top` shows then."""
    from aiolb.bpf import snapshot
    from aiolb.bpf.group import Group
    from aiolb.bpf.group_name import GroupName
    from aiolb.cli.top_frame import View, frame
    from aiolb.cli.top_history import History

    name, history = GroupName.parse(ADDRESS), History()
    view = View("rate", 1.0, TOP_COLUMNS, TOP_LINES, keys=True)
    with TemporaryDirectory(prefix="aiolb-picture-") as folder:
        app = Path(folder, "slow.py")
        app.write_text(SLOW)
        serve = ["serve", f"{app}:Slow", "--bind", ADDRESS, "--workers", "3", "--seed", "1"]
        with (
            running(*serve, "--rcvbuf", "256k", "--concurrency", "4", says=b"supervising"),
            running("flood", ADDRESS, "--rate", "2000", "--sources", "40"),
            running("flood", ADDRESS, "--rate", "3000", "--sources", "127.0.9.7/32"),
            closing(Group.open(name.address)) as group,
        ):
            for _ in range(LOOKS):
                history.add(snapshot.take(group))
                time.sleep(view.interval)
    lines = frame(history, view, time.strftime("%T"))
    (DOCS / "top.svg").write_text(drawn("aiolb top", lines, columns=TOP_COLUMNS))


PICTURES: dict[str, Callable[[], None]] = {"demo": draw_demo, "top": draw_top}


def main(names: list[str]) -> None:
    """Draw these pictures, or all, each in namespaces of its own. Run it as root."""
    if names[:1] == ["--alone"]:
        PICTURES[names[1]]()
        return
    for name in names or PICTURES:
        subprocess.run([*ALONE, sys.executable, __file__, "--alone", name], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
