"""What docs/how-to/testing.md shows is true: its files are written as they stand, and pytest runs them."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from documents import ROOT, blocks_of, shown_files

from aiolb import testing
from aiolb.testing import FakeConnection, FakeMember, FakeStreamMember, RunningGroup, RunningStreamGroup

PAGE = "docs/how-to/testing.md"
TEXT = (ROOT / PAGE).read_text()
FILES = shown_files(PAGE)
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


def run(folder: Path, *settings: str, files: Sequence[str] = ()) -> str:
    """What pytest prints when it runs files of the page, by default all, in a folder."""
    for name, text in FILES.items():
        (folder / name).write_text(text)
    settings = ("asyncio_default_fixture_loop_scope=function", "pythonpath=.", *settings)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error"]
    command += [word for setting in settings for word in ("-o", setting)] + list(files)
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_block_is_a_file() -> None:
    """No example is left out."""
    assert len(blocks_of(PAGE)) == len(FILES) == 7


def test_the_examples_run(tmp_path: Path) -> None:
    """All tests of the page pass."""
    tests = sum(text.count("async def test_") for text in FILES.values())
    assert f"{tests} passed" in run(tmp_path, "asyncio_mode=auto")


def test_the_fixtures_need_no_mode(tmp_path: Path) -> None:
    """The example of the fixtures works in pytest-asyncio's strict mode too."""
    assert "2 passed" in run(tmp_path, files=["test_totals_fixtures.py"])


def test_importing_the_tools_needs_no_pytest() -> None:
    """Who tests with something else can use the functions."""
    code = "import sys; sys.modules['pytest'] = sys.modules['pytest_asyncio'] = None; import aiolb.testing"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("member", (FakeMember, FakeStreamMember)),
        ("connection", (FakeConnection,)),
        ("running", (RunningGroup, RunningStreamGroup)),
    ],
)
def test_the_tables_name_what_there_is(name: str, classes: tuple[type, ...]) -> None:
    """Each attribute in a table exists, and each public one of the classes is in a table."""
    rows = [line for line in TEXT.splitlines() if line.startswith("|")]
    named = {attribute for row in rows for attribute in re.findall(rf"\b{name}\.(\w+)", row)}
    public = set()
    for cls in {base for one in classes for base in one.__mro__ if base.__module__.startswith("aiolb.testing")}:
        public |= set(re.findall(r"^        self\.([a-z]\w*)\b.* = ", inspect.getsource(cls), re.MULTILINE))
        public |= {attribute for attribute in vars(cls) if not attribute.startswith("_")}
    internal = {"errors", "start", "hang_up"} | ({"close"} if name == "running" else set())
    assert named == public - internal


def arguments(function: Callable[..., object]) -> set[str]:
    """The names of a function's own arguments, which the page describes."""
    return {name for name, given in inspect.signature(function).parameters.items() if given.kind != given.VAR_KEYWORD}


@pytest.mark.parametrize("function", [testing.collector, testing.group])
def test_the_arguments_are_described(function: Callable[..., object]) -> None:
    """Each argument but the first is on the page."""
    assert [name for name in arguments(function) - {"app"} if name not in TEXT] == []
