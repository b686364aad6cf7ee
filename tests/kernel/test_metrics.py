"""`aiolb serve --metrics`: what real collectors and supervisors tell, against what they and the sender counted."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import DEADLINE, Member
from supervision import Supervisor

AIOLB = [sys.executable, "-m", "aiolb"]
METRICS = ["--metrics", "127.0.0.1:0"]


async def flood(address, number):
    """Send datagrams from 100 sources."""
    command = [*AIOLB, "flood", str(address), "--count", number, "--sources", 100, "--rate", 20_000, "--json"]
    run = asyncio.to_thread(subprocess.run, [*map(str, command)], capture_output=True, timeout=DEADLINE, check=True)
    assert json.loads((await run).stdout)["sent_datagrams"] == number


async def read(url):
    """The samples at a URL: name to value by group, member and what else labels say; without histograms' buckets."""

    def get():
        with urllib.request.urlopen(url, timeout=DEADLINE) as answer:  # noqa: S310 - it is ours
            return answer.read().decode()

    found = {}
    for family in text_string_to_metric_families(await asyncio.to_thread(get)):
        for sample in family.samples:
            member = sample.labels.get("member")
            if "le" not in sample.labels:
                found.setdefault(sample.name.removeprefix("aiolb_"), {})[member and int(member)] = sample.value
    return found


async def at_rest(urls, number):
    """What several processes tell, once their members have handled so many datagrams together."""
    async with asyncio.timeout(DEADLINE):
        while True:
            told = [await read(url) for url in urls]
            if sum(sum(one["member_handled_total"].values()) for one in told) == number:
                return told
            await asyncio.sleep(0.02)


async def test_a_supervisor_tells_of_all_members(bpffs, address, tmp_path):
    """Its numbers are those of the sender and of its own report, its workers serve nothing, a restart loses none."""
    report = tmp_path / "report"
    options = ["discard", "--bind", str(address), "--bpffs", str(bpffs), "--workers", "3", "--report", str(report)]
    async with Supervisor(*options, *METRICS) as supervisor:
        await supervisor.supervising(workers=3)
        (event,) = supervisor.named("metrics")
        await flood(address, 2000)
        await at_rest([event["url"]], 2000)
        supervisor.send_signal(signal.SIGHUP)
        await supervisor.event("restarted")
        await flood(address, 1000)
        (told,) = await at_rest([event["url"]], 3000)
        assert supervisor.named("metrics") == [event]
        assert await supervisor.stop() == 0
    members = json.loads(report.read_text())["members"]
    assert told["member_received_total"] == {member["index"]: member["received"] for member in members}
    assert told["member_packets_total"] == {member["index"]: member["messages"] for member in members}
    assert told["member_batch_datagrams_sum"] == told["member_received_total"]
    assert told["member_alive"] == {0: 1, 1: 1, 2: 1}
    assert all(told["member_handler_duration_seconds_count"].values())
    assert sum(told["member_slots"].values()) == 16_384
    assert (told["group_members"], told["group_members_alive"]) == ({None: 3}, {None: 3})
    assert told["group_sources"] == {None: pytest.approx(100, abs=10)}


async def test_collectors_tell_of_themselves(bpffs, address, tmp_path):
    """Each of two collectors tells of its own member alone, so that together every datagram counts once."""
    options = ["discard", "--bind", str(address), "--bpffs", str(bpffs), "--count", "2", *METRICS]
    async with (
        Member(*options, "--index", "0", report=tmp_path / "0") as zero,
        Member(*options, "--index", "1", report=tmp_path / "1") as one,
    ):
        members = [zero, one]
        urls = []
        for member in members:
            urls.append((await member.event("metrics"))["url"])
            await member.ready()
        await flood(address, 1000)
        told = await at_rest(urls, 1000)
        ends = [await member.stop() for member in members]
    assert [one["member_received_total"] for one in told] == [
        {index: end["received"]} for index, end in enumerate(ends)
    ]
    assert [one["group_members_alive"] for one in told] == [{None: 2}] * 2


async def test_takeover(bpffs, address, tmp_path):
    """Who takes a member over gets its port for metrics too."""
    options = ["discard", "--bind", str(address), "--bpffs", str(bpffs), "--metrics"]
    async with Member(*options, "127.0.0.1:0", report=tmp_path / "0") as former:
        url = (await former.event("metrics"))["url"]
        await former.ready()
        port = url.removeprefix("http://").removesuffix("/metrics")
        async with Member(*options, port, "--takeover", report=tmp_path / "1") as member:
            await member.event("metrics_wait")
            assert (await member.event("metrics"))["url"] == url
            await former.ended()
            await flood(address, 10)
            await at_rest([url], 10)
            assert (await member.stop())["handled"] == 10


@pytest.mark.parametrize("more", [[], ["--workers", "2"]], ids=["collector", "supervisor"])
async def test_a_port_in_use(bpffs, address, more):
    """Nobody joins a group when the metrics cannot be served: exit status 3, and no pins."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with server:
        taken = "{}:{}".format(*server.sockets[0].getsockname())
        options = ["discard", "--bind", str(address), "--bpffs", str(bpffs), *more, "--metrics", taken]
        async with Supervisor(*options) as refused:
            assert await refused.ended() == 3
    assert f"aiolb: error: metrics cannot be served at {taken}: Address already in use" in refused.said
    assert not (bpffs / "aiolb").exists()


async def test_classic(tmp_path):
    """Without a group a collector tells what it counts itself; a supervisor says that it cannot."""
    options = ["discard", "--bind", "127.0.0.1:0", "--balancer", "classic", *METRICS]
    async with Member(*options, report=tmp_path / "0") as member:
        url = (await member.event("metrics"))["url"]
        bind = (await member.ready())["bind"]
        await flood(bind, 100)
        (told,) = await at_rest([url], 100)
        assert "member_packets_total" not in told
        assert (await member.stop())["handled"] == 100
    async with Supervisor(*options, "--workers", "2") as supervisor:
        await supervisor.event("metrics_limited")
        told = await read(supervisor.named("metrics")[0]["url"])
        assert (told["group_info"], "member_alive" in told) == ({None: 1}, False)
        assert await supervisor.stop() == 0
