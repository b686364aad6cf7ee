"""``python -m chaos``: run scenarios, print a line for each; status 1 when one does not hold."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import click

from aiolb import loops
from aiolb.bpf import probe, syscall
from chaos.scenarios import SCENARIOS, Line, run

SCRATCH = "/dev/shm"  # noqa: S108 - there is another file system on it, of our own
NAMESPACES = ("--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
FAILED_START = 3
SHOWN = 10
"""Things that do not hold that are printed for a scenario."""


@click.command()
@click.option(
    "--scenario", "names", multiple=True, type=click.Choice(list(SCENARIOS)), help="Run this one; may be repeated."
)
@click.option("--short", is_flag=True, help="Run the short version, as the tests do.")
@click.option("--seed", type=int, help="Choose the victims as in a run that printed this seed.  [default: random]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each scenario.")
@click.option("--inside", is_flag=True, hidden=True)
def main(names: tuple[str, ...], short: bool, seed: int | None, as_json: bool, inside: bool) -> None:
    """Prove that no restart, death or stall loses a datagram: a ledger tells what became of each."""
    if not inside:
        _enter_namespaces()
    _mount()
    seed = secrets.randbits(32) if seed is None else seed
    if not as_json:
        click.echo(f"aiolb: seed {seed}", err=True)
    holds = True
    for name in names or SCENARIOS:
        with loops.runner("uvloop") as runner:
            line = runner.run(run(name, Path(SCRATCH), short=short, seed=seed))
        click.echo(json.dumps(asdict(line)) if as_json else _text(line))
        holds = holds and not line.broken
    sys.exit(not holds)


def _enter_namespaces() -> None:
    """Start again with mounts and process ids of our own: whatever happens, nothing of it outlives this process."""
    finding = probe.balancer()
    unshare = shutil.which("unshare")
    if not finding or unshare is None:
        click.echo(f"aiolb: error: {'unshare is not installed' if finding else finding.reason}", err=True)
        click.echo("  hint: run it as root, with Debian's util-linux", err=True)
        sys.exit(FAILED_START)
    command = [unshare, *NAMESPACES, sys.executable, "-m", "chaos", "--inside", *sys.argv[1:]]
    os.execv(unshare, command)  # noqa: S606 - no shell is meant


def _mount() -> None:
    """A BPF file system and a scratch one of our own, in place of the system's."""
    syscall.mount_bpffs("/sys/fs/bpf")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", SCRATCH], check=True)  # noqa: S603, S607


def _text(line: Line) -> str:
    numbers = [
        f"{name} {'?' if number is None else format(number, ',')}"
        for name, number in asdict(line).items()
        if name in ("sent", "received", "lost", "duplicated", "split")
    ]
    broken = [f"\n  does not hold: {what}" for what in line.broken[:SHOWN]]
    if len(line.broken) > SHOWN:
        broken.append(f"\n  and {len(line.broken) - SHOWN:,} more of that")
    return f"{line.scenario:<25} {'  '.join(numbers)}  {line.remark} ({line.seconds:g} s){''.join(broken)}"


if __name__ == "__main__":
    main()
