"""What a worker holds in its memory is known after its death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from aiolb.tally import Tally

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_counting():
    """A batch counts while it is handled; what is still held behind it goes on counting."""
    tally, seen, held = Tally.create(2), [], [0]
    take = tally.counting(1, lambda batch: seen.append((batch, tally.total)), lambda: held[0])
    tally.update(0, 5)
    take([(b"a", None), (b"b", None)])
    held[0] = 3
    take([(b"c", None)])
    take([])
    tally.update(1, 0)
    assert seen == [([(b"a", None), (b"b", None)], 7), ([(b"c", None)], 6), ([], 8)]
    assert tally.total == 5
    tally.close()
    tally.close()


def test_the_dead_are_read():
    """The number outlives the process that wrote it."""
    tally = Tally.create(1)
    code = """
import os, signal, sys
from aiolb.tally import Tally
tally = Tally(int(sys.argv[1]), 1)
take = tally.counting(0, lambda batch: os.kill(os.getpid(), signal.SIGKILL), lambda: 0)
take([(b"x", None)] * 64)
"""
    command = [sys.executable, "-c", code, str(tally.descriptor)]
    ended = subprocess.run(command, check=False, pass_fds=[tally.descriptor])
    assert (ended.returncode, tally.total) == (-signal.SIGKILL, 64)
    tally.close()


def test_descriptors():
    """Each process closes its own descriptor of the memory."""
    tally = Tally.create(1)
    other = Tally(os.dup(tally.descriptor), 1)
    tally.update(0, 7)
    tally.close()
    assert other.total == 7
    other.close()
