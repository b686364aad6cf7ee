"""The limit of open files: raised as far as that goes, else told before anything fails."""

from __future__ import annotations

import subprocess
import sys

TRY = """
import resource, sys
from aiolb import descriptors
from aiolb.errors import StartError

soft, hard, number = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    descriptors.allow(number, f"{number} workers")
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] > soft)
except StartError as error:
    print(error, error.hint, sep="; ")
"""


def allow(soft: int, hard: int, number: int) -> str:
    """What comes of so many more files under these limits."""
    command = [sys.executable, "-c", TRY, str(soft), str(hard), str(number)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_soft_limit_is_raised() -> None:
    """As far as is needed, and only then."""
    assert allow(200, 2000, 1000) == "True"
    assert allow(200, 2000, 20) == "False"


def test_the_hard_limit() -> None:
    """Beyond it, the error says what needs how many, and how to have them."""
    said = allow(200, 300, 1000)
    assert said.startswith("1000 workers need 1,0")
    assert "and the hard limit is 300; use fewer, or as root first: ulimit -Hn 10" in said
    assert "; in a unit: LimitNOFILE=10" in said
