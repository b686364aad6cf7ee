"""The documents are true: every command and program in them runs as it stands, and every link leads somewhere.

Documents whose commands want more than that have a test of their own, which names them as PAGE or DOCUMENT.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from documents import ROOT, blocks_of
from documents_run import Running, running

DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
)
LANGUAGES = {"sh", "python", "text", "console", "c", "dockerfile", "yaml", "ini", "json"}
"""``console`` shows what people type where no test can: at Docker, at Kubernetes."""
TOOLS = {"bpftool": "bpftool", "make": "make", "systemd-analyze": "systemd"}
COLLECTOR = "from aiolb import Collector\n\n\nclass MyCollector(Collector):\n    async def handle(self, *_): ...\n"
UNIT = (ROOT / "examples" / "systemd" / "aiolb.service").read_text().replace("/opt/aiolb/bin/aiolb", sys.executable)
GIVEN = {"docs/supervisor.md": {"app.py": COLLECTOR}, "examples/systemd/README.md": {"aiolb.service": UNIT}}
"""Files that a document takes for granted."""
COUNTED = ("README.md", "docs/tutorial.md")
"""Documents that are run by tests which also look at what they print."""
GUARANTEES = "docs/guarantees.md"
REMOTE = re.compile(r"[a-z]+:")


def _tests() -> Iterator[str]:
    for path in (ROOT / "tests").rglob("test_*.py"):
        yield path.read_text()


def has_a_test_of_its_own(document: str) -> bool:
    """Whether another file of tests is about this document."""
    name = re.escape(Path(document).name)
    return any(re.search(rf"^(?:PAGE|DOCUMENT)\b.*{name}\"", text, re.MULTILINE) for text in _tests())


def runs_here(document: str) -> bool:
    """Whether the test below runs it."""
    commands = [block for block in blocks_of(document) if block.language == "sh" and block.remark != "not run"]
    return bool(commands) and document not in COUNTED and not has_a_test_of_its_own(document)


def test_documents_are_found() -> None:
    """What the tests below are about is there."""
    assert {"README.md", "docs/tutorial.md", "docs/supervisor.md"} < set(DOCUMENTS)
    assert has_a_test_of_its_own("docs/how-to/exporters.md")
    assert runs_here("docs/supervisor.md")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks(document: str) -> None:
    """Every block is of a known kind, programs can be read, and what is not run says why, by a test that there is."""
    fences = re.findall(r"^```(\S+)", (ROOT / document).read_text(), re.MULTILINE)
    blocks = blocks_of(document)
    assert len(fences) == len(blocks), "a block that nobody reads"
    assert {block.language for block in blocks} <= LANGUAGES
    for block in blocks:
        if block.language == "python":
            compile(block.text, document, "exec")
        for test in re.findall(r"tests/\S+\.py", block.reason):
            assert (ROOT / test).is_file()


@pytest.fixture
def run(ip_as_root: str, needs: Callable[[str, str], str]) -> Callable[[str], Running]:
    """Run a document in namespaces of its own."""

    def to_its_end(document: str) -> Running:
        for block in blocks_of(document):
            for command in block.commands if block.language == "sh" else ():
                if package := TOOLS.get(command.split()[0]):
                    needs(command.split()[0], package)
        with running(document, ip_as_root, GIVEN.get(document)) as done:
            done.run(document)
            return done

    return to_its_end


@pytest.mark.parametrize("document", list(filter(runs_here, DOCUMENTS)))
@pytest.mark.usefixtures("nothing_left")
def test_commands(run: Callable[[str], Running], document: str) -> None:
    """The commands of a document work one after the other, and what serves ends well."""
    run(document)


def shape(text: str) -> list[str]:
    """What stays the same in what a command prints: its words, with # for each number."""
    return re.sub(r"\d[\d,.]*", "#", text).split()


@pytest.mark.usefixtures("nothing_left")
def test_the_tutorial_counts(run: Callable[[str], Running]) -> None:
    """What the tutorial shows is printed; its own check finds every datagram, on one member for each source."""
    printed = run("docs/tutorial.md").printed
    shown = [shape(block.text) for block in blocks_of("docs/tutorial.md") if block.language == "text"]
    for command in ("aiolb flood", "aiolb route", "python check.py"):
        assert [shape(text) for name, text in printed.items() if name.startswith(command)][-1] in shown
    lines = printed["python check.py"].splitlines()
    assert lines[-1] == "nothing was lost"
    assert [line.split()[0] for line in lines[:-1]] == ["0.json", "1.json", "2.json", "3.json"]
    sources = [int(line.split()[1]) for line in lines[:-1]]
    assert sum(sources[1:]) == 30
    assert sources[0] == sources[3]


@pytest.mark.usefixtures("nothing_left")
def test_the_readme_counts(run: Callable[[str], Running]) -> None:
    """The workers of the README's group print every datagram that its flood sends, and its program sends all."""
    printed = run("README.md").printed
    (shown,) = (text for command, text in printed.items() if command.startswith("aiolb serve print"))
    assert Counter(line.split(":")[0] for line in shown.splitlines()) == {f"127.0.0.{n}": 100 for n in range(2, 32)}
    (sent,) = (text for command, text in printed.items() if command.startswith("aiolb flood"))
    assert sent.startswith("sent 3,000 datagrams")
    assert "sent=500" in printed["python publish.py"]


@pytest.mark.usefixtures("nothing_left")
def test_the_readmes_echo_answers(ip_as_root: str) -> None:
    """The echo program sends back what it gets."""
    client = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(10);"
        "s.sendto(b'hello', ('127.0.0.1', 9000)); print(s.recv(100))"
    )
    with (
        running("README.md", ip_as_root) as document,
        document.namespaces.server("python echo.py") as server,
    ):
        assert document.namespaces.run(shlex.join(["python", "-c", client])) == "b'hello'\n"
        server.stop()


def test_guarantees_have_their_tests() -> None:
    """Each guarantee names one test or more, which the file that it links to has."""
    rows = re.findall(r"^\| (?!promise|---)(.+) \| (.+) \|$", (ROOT / GUARANTEES).read_text(), re.MULTILINE)
    assert len(rows) > 20
    for promise, tests in rows:
        links = re.findall(r"\[`(test_\w+)`\]\((\S+)\)", tests)
        assert links, promise
        for name, path in links:
            text = ((ROOT / GUARANTEES).parent / path).read_text()
            assert re.search(rf"^(?:async )?def {name}\(", text, re.MULTILINE)


def prose(document: str) -> str:
    """A document without its code blocks."""
    return re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(), flags=re.MULTILINE | re.DOTALL)


def headings(document: str) -> set[str]:
    """The anchors of a document's headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    """Each link leads to a file or folder of the project, and to a heading that there is."""
    broken = []
    for link in re.findall(r"\]\(([^)]+)\)", prose(document)):
        if REMOTE.match(link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        if not target.exists() or (anchor and anchor not in headings(str(target.resolve().relative_to(ROOT)))):
            broken.append(link)
    assert broken == []
