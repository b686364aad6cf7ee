"""Real exporters send to the example collectors, three members on one port: every source's state is in one place."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack

import exporters
import pytest
import statsd

SEED = "7"  # that gives sources to all three
LINK_UP = "1.3.6.1.6.3.1.1.5.4"


@pytest.fixture
def site(netns, needs, tmp_path, bpffs):
    """A site with nobody on its port yet."""
    return exporters.Site(netns, needs("nsenter", "util-linux"), tmp_path, bpffs)


@pytest.fixture
async def collectors(site):
    """Start three members of a site with a collector: ``collectors(app, *options)``."""
    async with AsyncExitStack() as stack:

        async def start(app, *options):
            return await site.start(stack, app, *options)

        yield start


async def reports(members, *, datagrams=None):
    """Stop the members; what their collectors report, with nothing lost and no error."""
    found = [await member.stop() for member in members]
    for report in found:
        assert (report["errors"], report["abandoned"], report["kernel_drops"]) == (0, 0, 0)
        assert report["handled"] == report["received"]
    if datagrams is not None:
        assert sum(report["received"] for report in found) == datagrams
    return [report["collector"] for report in found]


def by_source(sums):
    """What each source has, which is with one member; each member has some."""
    assert all(sums), "a member without sources"
    found = {source: values for of_member in sums for source, values in of_member.items()}
    assert len(found) == sum(map(len, sums)), "a source was on two members"
    return found


def captures(folder):
    """A capture for each exporter, and its sums."""
    folder = folder / "captures"
    folder.mkdir()
    files = [folder / f"{number}.pcap" for number in range(exporters.EXPORTERS)]
    return files, {
        source: exporters.write_capture(file, 600 + n)
        for n, (source, file) in enumerate(zip(exporters.SOURCES, files, strict=True))
    }


@pytest.fixture
def export(site, needs, tmp_path):
    """Let a softflowd for each source export a capture of its own; the sums that each should arrive with."""
    path = needs("softflowd", "softflowd")

    async def export(version):
        files, sums = captures(tmp_path)
        await site.run(*[exporters.softflowd(path, file, site.target(n), version) for n, file in enumerate(files)])
        return sums

    return export


@pytest.mark.parametrize("version", [9, 10], ids=["v9", "ipfix"])
async def test_netflow(collectors, export, version):
    """Every flow record of twelve exporters is decoded, though their templates come now and then only."""
    members = await collectors("netflow_collector.py:NetFlow", "--seed", SEED)
    sums = await export(version)
    found = by_source([report["exporters"] for report in await reports(members)])
    assert sum(of_exporter.get("template_misses", 0) for of_exporter in found.values()) == 0
    assert found == sums


@pytest.mark.parametrize("version", [9, 10], ids=["v9", "ipfix"])
async def test_netflow_breaks_without_affinity(collectors, export, version):
    """With a random member for each datagram, records come to members that do not know their template."""
    members = await collectors("netflow_collector.py:NetFlow", "--key", "random")
    sums = await export(version)
    found = Counter()
    for report in await reports(members):
        for of_exporter in report["exporters"].values():
            found.update(of_exporter)
    assert found["template_misses"] > 0
    assert 0 < found["flows"] < sum(of_exporter["flows"] for of_exporter in sums.values())


def logger(path, host, *options):
    """The command that sends a syslog message."""
    return [path, "--server", host, "--port", str(exporters.PORT), "--udp", *options]


async def test_syslog_from_logger(site, collectors, needs):
    """util-linux logger, both formats: who repeats itself is known, since all that a host says is with one member."""
    path = needs("logger", "bsdutils")
    members = await collectors("syslog_collector.py:Syslog", "--seed", SEED)
    for form in ("--rfc3164", "--rfc5424", "--rfc5424"):
        message = [form, "--tag", "disk", "--priority", "daemon.crit", "disk 3 has failed"]
        await site.run(*[logger(path, site.host(number), *message) for number in range(exporters.EXPORTERS)])
    await site.run(
        *[logger(path, site.host(n), "--rfc3164", "--tag", "disk", "replaced") for n in range(exporters.EXPORTERS)]
    )
    found = await reports(members, datagrams=4 * exporters.EXPORTERS)
    assert by_source([report["messages"] for report in found]) == dict.fromkeys(exporters.SOURCES, 4)
    assert sum((Counter(report["severities"]) for report in found), Counter()) == {
        "crit": 3 * exporters.EXPORTERS,
        "notice": exporters.EXPORTERS,
    }
    assert sum(report["repeated"] for report in found) == 2 * exporters.EXPORTERS
    assert sum(report["malformed"] for report in found) == 0


def rsyslog_config(folder, targets):
    """Forward what comes to a Unix socket to each target, in three formats by turns, then write it to a file."""
    formats = ["SyslogProtocol23Format", "TraditionalForwardFormat", "ForwardFormat"]
    common = f'type="omfwd" protocol="udp" port="{exporters.PORT}"'
    forward = "".join(
        f'action({common} target="{host}" template="RSYSLOG_{formats[number % 3]}")\n'
        for number, host in enumerate(targets)
    )
    # The queue is direct, so what is in the file was forwarded before.
    return (
        f'global(workDirectory="{folder}")\n'
        'main_queue(queue.type="direct")\n'
        'module(load="imuxsock" SysSock.Use="off")\n'
        f'input(type="imuxsock" Socket="{folder}/log" RateLimit.Interval="0")\n'
        f'{forward}action(type="omfile" file="{folder}/written" template="RSYSLOG_FileFormat")\n'
    )


async def test_syslog_from_rsyslog(site, collectors, needs, tmp_path, wait_until):
    """The omfwd of rsyslog, in each of its formats, from twelve addresses."""
    rsyslogd, path, messages = needs("rsyslogd", "rsyslog"), needs("logger", "bsdutils"), 50
    members = await collectors("syslog_collector.py:Syslog", "--seed", SEED)
    config, written = tmp_path / "rsyslog.conf", tmp_path / "written"
    config.write_text(rsyslog_config(tmp_path, [site.host(number) for number in range(exporters.EXPORTERS)]))
    (tmp_path / "lines").write_text("".join(f"message {number}\n" for number in range(messages)))
    with site.running(rsyslogd, "-n", "-f", str(config), "-i", str(tmp_path / "pid")):
        wait_until((tmp_path / "log").is_socket, "rsyslogd listens")
        await site.run([path, "--socket", str(tmp_path / "log"), "--tag", "test", "--file", str(tmp_path / "lines")])
        wait_until(lambda: written.exists() and written.read_text().count("message") == messages, "all is forwarded")
    found = await reports(members)
    of_source = by_source([report["messages"] for report in found])
    own = written.read_text().count("\n") - messages  # rsyslogd tells of its start
    assert of_source == dict.fromkeys(exporters.SOURCES, messages + own)
    assert {(report["repeated"], report["malformed"]) for report in found} == {(0, 0)}


async def test_statsd(site, collectors):
    """A StatsD client for each source: sums are exact, and each gauge has all of its client's steps."""
    members = await collectors("statsd_collector.py:StatsD", "--seed", SEED)
    for number in range(exporters.EXPORTERS):
        site.netns.call(_count, site.host(number), start=number)
    found = await reports(members)
    assert by_source([report["gauges"] for report in found]) == {
        source: {"users": number + 10} for number, source in enumerate(exporters.SOURCES)
    }
    assert sum((Counter(report["counters"]) for report in found), Counter()) == {"hits": 100 * exporters.EXPORTERS}
    timers = [report["timers"]["query"] for report in found]
    assert [sum(timer[name] for timer in timers) for name in ("count", "sum")] == [
        2 * exporters.EXPORTERS,
        7.5 * exporters.EXPORTERS,
    ]
    assert [report["malformed"] for report in found] == [0, 0, 0]


def _count(host, *, start):
    """What an application with the client of PyPI's statsd does."""
    client = statsd.StatsClient(host, exporters.PORT)
    client.gauge("users", start)
    for _ in range(20):
        client.gauge("users", 1, delta=True)
        client.incr("hits", 4)
    for _ in range(10):
        client.gauge("users", -1, delta=True)
    with client.pipeline() as pipeline:
        pipeline.incr("hits", 20)
        pipeline.timing("query", 2.5)
        pipeline.timing("query", 5)
    client.close()


async def test_snmp_traps(site, collectors, needs, tmp_path):
    """Net-SNMP's snmptrap: traps of both versions, and informs that are answered, else the command would fail."""
    path = needs("snmptrap", "snmp")
    members = await collectors("snmp_trap_collector.py:Traps", "--seed", SEED)
    own = {"MIBS": "", "SNMPCONFPATH": str(tmp_path), "SNMP_PERSISTENT_DIR": str(tmp_path)}
    kinds = [
        (["-v2c"], ["42", LINK_UP]),
        (["-v1"], ["1.3.6.1.4.1.8072", "192.0.2.1", "3", "0", "42"]),
        (["-v2c", "-Ci", "-r", "0", "-t", str(exporters.DEADLINE)], ["42", LINK_UP]),
    ]
    for options, content in kinds:
        await site.run(
            *[[path, *options, "-c", "public", site.target(n), *content] for n in range(exporters.EXPORTERS)],
            **own,
        )
    found = await reports(members, datagrams=3 * exporters.EXPORTERS)
    assert all(report["informs"] for report in found), "a member without sources"
    assert sum((Counter(report["notifications"]) for report in found), Counter()) == {LINK_UP: 3 * exporters.EXPORTERS}
    assert [sum(report[name] for report in found) for name in ("informs", "repeated", "malformed")] == [
        exporters.EXPORTERS,
        0,
        0,
    ]
