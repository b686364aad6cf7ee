"""Child processes of the benchmarks: C programs compiled when needed, each child on a CPU of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

FOLDER = Path(__file__).parent

CPUS = sorted(os.sched_getaffinity(0))
"""What is measured runs on the first one, what loads it on the last one."""


def compiled(name: str, folder: Path) -> Path:
    """Compile one of the C programs into ``folder``."""
    target = folder / name
    subprocess.run([os.environ.get("CC", "cc"), "-O2", "-Wall", "-o", target, FOLDER / "c" / f"{name}.c"], check=True)
    return target


@contextmanager
def started(command: list[str], cpu: int, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child whose standard output can be read; killed in the end. ``options`` are those of Popen."""
    os.sched_setaffinity(0, {cpu})  # for the child, which inherits it
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, **options)
    finally:
        os.sched_setaffinity(0, CPUS)
    with child:
        try:
            yield child
        finally:
            child.kill()


def answer(child: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The next line that a child prints, which is JSON."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise click.ClickException(f"{child.args!r} ended with status {child.wait()}")
    content: dict[str, Any] = json.loads(line)
    return content
