"""`aiolb --version` names what a report of a defect needs."""

from __future__ import annotations

import platform
import re
import sys
from importlib.metadata import version

import pytest
from click.testing import CliRunner

from aiolb.bpf import spec
from aiolb.bpf.abi import LAYOUT_VERSION
from aiolb.cli.main import main


def test_version() -> None:
    """It has the version, the kernel, Python, and the digest of the bytecode in the package."""
    done = CliRunner().invoke(main, ["--version"])
    assert done.exit_code == 0
    first, second, third = done.output.splitlines()
    assert first == f"aiolb {version('aiolb')}"
    assert second == f"Linux {platform.release()}, CPython {platform.python_version()}"
    found = re.fullmatch(r"balancer ([0-9a-f]{16}), layout (\d+), receiver (.+), sender (.+)", third)
    assert found
    assert int(found[1], 16) == spec.shipped().digest
    assert int(found[2]) == LAYOUT_VERSION


@pytest.mark.parametrize(("module", "text"), [("receive", "receiver in Python"), ("send", "sender in Python")])
def test_missing_parts(monkeypatch: pytest.MonkeyPatch, module: str, text: str) -> None:
    """A compiled part that is not there is told."""
    monkeypatch.setitem(sys.modules, f"aiolb.{module}._fast", None)
    assert text in CliRunner().invoke(main, ["--version"]).output
