"""What docs/how-to/balance.md shows is true: its commands run as they stand, and its collector is told."""

from __future__ import annotations

import re

from documents import ROOT, blocks, commands

PAGE = "docs/how-to/balance.md"


def test_the_commands_run(namespaces):
    """Every command does what the page says, beside the group that the page starts."""
    serve, *others = commands(PAGE)
    with_rebalance = next(command for command in others if command.startswith("aiolb serve"))
    others.remove(with_rebalance)
    assert len(others) == 8
    with namespaces.server(serve) as server:
        server.wait_for(b"supervising")
        said = [namespaces.run(command) for command in others]
        server.stop()
    assert "no packets in" in said[0]
    assert "no packets in" in said[1]
    assert said[2].startswith("member 1 is drained: 4,096 slots moved")
    assert said[3].startswith("member 1 is not drained any more: 4,096 slots moved")
    assert said[4].startswith("member 0 has the weight 300: 4,096 slots moved, and it owns 8,192")
    assert said[5].startswith("member 0 has the weight 100: 4,096 slots moved, and it owns 4,096")
    assert re.match(r"slot \d+ \(192\.0\.2\.17, and all sources in it\): member \d ", said[6])
    assert said[7].splitlines()[-1].endswith("moved to member 2")
    with namespaces.server(with_rebalance) as server:
        server.wait_for(b"supervising")
        server.stop()


def test_the_collector_is_told(namespaces, tmp_path):
    """The example writes out what it knows of a source that has left it."""
    (code,) = blocks(PAGE, "python")
    (tmp_path / "sessions.py").write_text(code)
    app = "sessions.py:Sessions"
    with namespaces.server(f"aiolb serve {app} --bind 127.0.0.1:10001 --count 2") as first:
        with namespaces.server(f"aiolb serve {app} --bind 127.0.0.1:10001 --index 1") as second:
            namespaces.run("aiolb move 127.0.0.2 --to 0")
            flood = "aiolb flood 127.0.0.1:10001 --sources 127.0.0.2/32 --count 5 --rate 100 --gso off"
            namespaces.run(flood)
            namespaces.run("aiolb move 127.0.0.2 --to 1")
            first.wait_for(b"left=1")
            assert second.stop() == []
        (line,) = first.stop()
    assert re.fullmatch(r"127\.0\.0\.2 \d+ had 5 packets", line)


def test_the_page_names_its_options():
    """The options in its table are those of the command."""
    text = (ROOT / PAGE).read_text()
    options = set(re.findall(r"^\| `(--[a-z-]+)", text, re.MULTILINE))
    assert options == {"--dry-run", "--max-moves", "--watch", "--json", "--group"}
