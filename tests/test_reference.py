"""What is made from the commands' help is that of the commands that there are; the site can be built."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from types import ModuleType

import click
import pytest
from documents import ROOT
from loading import module_of

import aiolb
from aiolb.cli.main import main


def tool(name: str) -> ModuleType:
    """A script in tools/, as a module."""
    return module_of(ROOT / "tools" / f"{name}.py")


def test_reference_is_that_of_the_commands() -> None:
    """docs/reference/cli.md and man/ are what `make reference` writes, and nothing else is in man/."""
    wanted = tool("reference").files()
    assert [name for name, text in wanted.items() if (ROOT / name).read_text() != text] == [], "run: make reference"
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "man").iterdir()}
    assert pages == {name for name in wanted if name.startswith("man/")}


def test_every_public_name_is_in_the_reference() -> None:
    """docs/reference/python.md has each name that `import aiolb` gives."""
    text = (ROOT / "docs/reference/python.md").read_text()
    assert [name for name in aiolb.__all__ if f"::: aiolb.{name}\n" not in text] == []


@pytest.mark.parametrize(
    ("command", "package"),
    [("mandoc -T lint -W warning", "mandoc"), ("groff -man -ww -z", "groff-base")],
    ids=["mandoc", "groff"],
)
def test_the_manual_is_read_without_a_warning(command: str, package: str, needs: Callable[[str, str], str]) -> None:
    """Both programs that show pages of the manual take all of them as they are."""
    program, *options = command.split()
    pages = sorted(map(str, (ROOT / "man").iterdir()))
    done = subprocess.run([needs(program, package), *options, *pages], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_manual_refers_to_its_pages() -> None:
    """Each page that another one names is there."""
    pages = {path.name: path.read_text() for path in (ROOT / "man").iterdir()}
    named = {
        f"{name}.1" for page in pages.values() for name in re.findall(r"(aiolb[\w-]*)\(1\)", page.replace("\\-", "-"))
    }
    assert named == {name for name in pages if name != "aiolb.1"}


def test_every_command_is_in_the_reference() -> None:
    """Each command that people use has a part of the reference and a page of the manual, and hidden ones have none."""
    text = (ROOT / "docs/reference/cli.md").read_text()
    visible = set(tool("reference").visible(click.Context(main)))
    assert set(re.findall(r"^## aiolb (\S+)$", text, re.MULTILINE)) == visible
    assert "aiolb worker" not in text


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_site_needs_no_network(site: Path) -> None:
    """No page loads anything from another host."""
    loads = re.compile(r"""<(?:link|script|img|iframe)\b[^>]*\b(?:href|src)=["']?(?:https?:)?//""")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    assert [str(page) for page in pages if loads.search(page.read_text())] == []


def test_pages_of_other_files(site: Path) -> None:
    """What a page links to outside of docs/ is in the site: an example, a test, the changelog."""
    names = ("examples/syslog_collector.py.html", "CHANGELOG.html", "tests/kernel/test_scenarios.py.html")
    assert [name for name in names if not (site / "project" / name).is_file()] == []


def test_docstrings_are_shown_plainly(site: Path) -> None:
    """Docstrings are shown, without marks that only Python's own help is for."""
    text = (site / "reference" / "python.html").read_text()
    assert "Handles the datagrams of one member" in text
    assert not re.search(r":(?:class|func|meth):", text)
    assert "::</p>" not in text


def test_the_picture_is_of_the_demo() -> None:
    """The picture shows what the demo prints, and names no font of another host."""
    text = (ROOT / "docs" / "demo.svg").read_text().replace("&#160;", " ")
    assert "sent 6,000, received 6,000, lost 0, duplicated 0" in text
    assert "sources on more than one member 0" in text
    assert not re.search(r"url\((?!#)", text)
    drawn = tool("picture").drawn("aiolb demo", "member 0\n")
    assert "member&#160;0" in drawn


def test_the_picture_of_top() -> None:
    """It shows a member that cannot keep up, the source that does it, and the keys of today."""
    from aiolb.cli.top_frame import KEYS

    text = unescape((ROOT / "docs" / "top.svg").read_text()).replace("\xa0", " ")
    assert "hint: member 1 cannot keep up" in text
    assert "127.0.9.7" in text
    assert KEYS in text
    assert not re.search(r"url\((?!#)", text)
