"""What a start that fails leaves behind."""

import subprocess
import sys
from pathlib import Path

import pytest
from deadline import DEADLINE

from aiolb.bpf.group import Group, GroupOptions

BROKEN = """
from aiolb import Collector


class Broken(Collector):
    async def handle(self, datagram, addr):
        pass


raise RuntimeError("no database")
"""
ELSEWHERE = "192.0.2.1:9"
"""An address that no machine has (RFC 5737)."""


@pytest.fixture
def serve(address, bpffs):
    """`aiolb serve` with a group at ``address``; its status."""

    def run(app, *options):
        command = [sys.executable, "-m", "aiolb", "serve", str(app), "--bind", str(address), "--bpffs", str(bpffs)]
        return subprocess.run([*command, *options], check=False, capture_output=True, timeout=DEADLINE).returncode

    return run


@pytest.fixture
def broken(tmp_path):
    """An application that cannot be imported."""
    (tmp_path / "broken.py").write_text(BROKEN)
    return tmp_path / "broken.py:Broken"


def groups(bpffs):
    """The folders of groups."""
    return [path.parent.name for path in Path(bpffs).rglob("config")]


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_no_group_is_left(serve, bpffs, broken, workers):
    """An application that does not start leaves no group, so another key or count is free to choose."""
    assert serve(broken, *workers) == 3
    assert groups(bpffs) == []


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_no_group_is_left_of_the_first_address(serve, bpffs, workers):
    """Where one of several addresses cannot be bound, no group of another one is left."""
    assert serve("discard", "--bind", ELSEWHERE, *workers) == 3
    assert groups(bpffs) == []


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_a_group_that_was_there_stays(serve, address, bpffs, broken, workers):
    """A group without a live member keeps its seed, whatever starts and fails."""
    with Group.opened_or_created(address, GroupOptions(bpffs=bpffs, seed=7)) as group:
        group.close()
    assert serve(broken, *workers) == 3
    assert serve("discard", "--bind", ELSEWHERE, *workers) == 3
    group = Group.open(address, bpffs=bpffs)
    assert group.config.seed == 7
    group.close()
