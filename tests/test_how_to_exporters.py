"""The how-to for real exporters is true: its commands run as they stand, and what they send arrives."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter

import exporters
import pytest
from documents import ROOT, blocks, blocks_of, commands

DOCUMENT = "docs/how-to/exporters.md"
TEXT = (ROOT / DOCUMENT).read_text()
TOOLS = {"logger": "bsdutils", "softflowd": "softflowd", "snmptrap": "snmp"}
FLOWS = 100
LINK_DOWN, LINK_UP = "1.3.6.1.6.3.1.1.5.3", "1.3.6.1.6.3.1.1.5.4"


@pytest.fixture
def namespaces(namespaces, tmp_path):
    """Namespaces with the examples and a capture in the working directory."""
    (tmp_path / "examples").symlink_to(exporters.EXAMPLES)
    exporters.write_capture(tmp_path / "capture.pcap", FLOWS)
    return namespaces


def sections():
    """The commands of each collector: the one that serves, and those that send to it."""
    found = []
    for command in commands(DOCUMENT):
        if command.startswith("aiolb serve"):
            found.append((command, []))
        else:
            found[-1][1].append(command)
    return found


def collected(report):
    """What the collectors of all members report."""
    return [collector for member in report["members"] for collector in member["collector"]]


def total(collectors, name):
    """The sums of a name over all members."""
    return sum((Counter(collector[name]) for collector in collectors), Counter())


def check_syslog(collectors):
    """Two messages, of which one is a repeat."""
    assert total(collectors, "messages") == {"127.0.0.1": 2}
    assert sum(collector["repeated"] for collector in collectors) == 1


def check_netflow(collectors):
    """The capture twice, and no miss."""
    (of_exporter,) = [sums for collector in collectors for sums in collector["exporters"].values()]
    assert (of_exporter["flows"], "template_misses" in of_exporter) == (2 * FLOWS, False)


def check_statsd(collectors):
    """One of each."""
    assert total(collectors, "counters") == {"logins": 1}
    assert [collector["gauges"] for collector in collectors if collector["gauges"]] == [{"127.0.0.1": {"users": 1}}]


def check_traps(collectors):
    """A trap and an inform."""
    assert total(collectors, "notifications") == {LINK_DOWN: 1, LINK_UP: 1}
    assert sum(collector["informs"] for collector in collectors) == 1


@pytest.mark.parametrize(
    ("section", "check"),
    list(zip(sections(), [check_syslog, check_netflow, check_statsd, check_traps], strict=True)),
    ids=["syslog", "netflow", "statsd", "snmp"],
)
@pytest.mark.usefixtures("nothing_left")
def test_commands(namespaces, section, check, needs, tmp_path):
    """A collector with three workers gets all that the commands below it send."""
    serve, senders = section
    assert senders
    for command in senders:
        if package := TOOLS.get(command.split()[0]):
            needs(command.split()[0], package)
    with namespaces.server(serve) as server:
        for command in senders:
            namespaces.run(command, SNMP_PERSISTENT_DIR=str(tmp_path), SNMPCONFPATH=str(tmp_path), MIBS="")
        server.stop()
    report = json.loads((tmp_path / serve.split()[-1]).read_text())
    assert len(report["members"]) == 3
    check(collected(report))


@pytest.mark.parametrize("file", re.findall(r"\(\.\./\.\./(examples/\w+\.py)\)", TEXT))
@pytest.mark.usefixtures("nothing_left")
def test_alone(namespaces, file):
    """Each example is a program too."""
    with namespaces.server(f"python {file}") as server:
        server.stop()


def test_rsyslog_lines(needs, tmp_path):
    """The line for rsyslog is one that it takes; there are no other blocks than that one and commands."""
    rsyslogd = needs("rsyslogd", "rsyslog")
    assert {block.language for block in blocks_of(DOCUMENT)} == {"sh", "text"}
    (tmp_path / "rsyslog.conf").write_text(*blocks(DOCUMENT, "text"))
    subprocess.run([rsyslogd, "-N1", "-f", str(tmp_path / "rsyslog.conf")], check=True, capture_output=True)
