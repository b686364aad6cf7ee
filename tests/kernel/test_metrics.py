"""`aiolb serve --metrics`: what real collectors and supervisors tell, against what they and the sender counted."""

from __future__ import annotations

import asyncio
import json
import signal
import urllib.request

import pytest
import streams
from deadline import DEADLINE
from prometheus_client.parser import text_string_to_metric_families
from serving import AIOLB, Member, flood
from supervision import Supervisor

from aiolb import sockets

METRICS = ["--metrics", "127.0.0.1:0"]


def text_at(url):
    """What is served at a URL."""
    with urllib.request.urlopen(url, timeout=DEADLINE) as answer:  # noqa: S310 - it is ours
        return answer.read().decode()


async def read(url):
    """The samples at a URL: name to value by group, member and what else labels say; without histograms' buckets."""
    found = {}
    for family in text_string_to_metric_families(await asyncio.to_thread(text_at, url)):
        for sample in family.samples:
            member = sample.labels.get("member")
            if "le" not in sample.labels:
                found.setdefault(sample.name.removeprefix("aiolb_"), {})[member and int(member)] = sample.value
    return found


@pytest.fixture
def check_conventions(promtool):
    """Promtool finds nothing to say about what is told at a URL."""

    async def check(url):
        text = await asyncio.to_thread(text_at, url)
        assert await asyncio.to_thread(promtool, "check", "metrics", text=text) == ""

    return check


async def at_rest(urls, number, *, sources=0):
    """What several processes tell, once their members have handled so many together, of so many sources or more."""
    async with asyncio.timeout(DEADLINE):
        while True:
            told = [await read(url) for url in urls]
            handled, seen = (
                sum(sum(one[name].values()) for one in told) for name in ("member_handled_total", "member_sources")
            )
            if handled == number and seen >= sources:
                return told
            await asyncio.sleep(0.02)


async def test_a_supervisor_tells_of_all_members(bpffs, address, tmp_path, check_conventions):
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
        (told,) = await at_rest([event["url"]], 3000, sources=100)
        assert supervisor.named("metrics") == [event]
        await check_conventions(event["url"])
        assert await supervisor.stop() == 0
    members = json.loads(report.read_text())["members"]
    assert told["member_received_total"] == {member["index"]: member["received"] for member in members}
    assert told["member_packets_total"] == {member["index"]: member["messages"] for member in members}
    assert told["member_batch_datagrams_sum"] == told["member_received_total"]
    assert told["member_alive"] == {0: 1, 1: 1, 2: 1}
    assert all(told["member_handler_duration_seconds_count"].values())
    assert sum(told["member_slots"].values()) == 16_384
    assert (told["group_members"], told["group_members_alive"]) == ({None: 3}, {None: 3})
    assert told["group_sources"] == {None: 100}


async def test_collectors_tell_of_themselves(bpffs, address, tmp_path, check_conventions):
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
        await check_conventions(urls[0])
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


@pytest.mark.parametrize("balancer", ["classic", "none"])
async def test_without_a_group(tmp_path, check_conventions, balancer):
    """Without a group a collector tells what it counts itself."""
    options = ["discard", "--bind", "127.0.0.1:0", "--balancer", balancer, *METRICS]
    async with Member(*options, report=tmp_path / "0") as member:
        url = (await member.event("metrics"))["url"]
        bind = (await member.ready())["bind"]
        await flood(bind, 100)
        (told,) = await at_rest([url], 100)
        await check_conventions(url)
        assert "member_packets_total" not in told
        assert "group_members" not in told
        assert (await member.stop())["handled"] == 100


@pytest.mark.parametrize("balancer", ["classic", "none", "unpinned"])
async def test_a_supervisor_without_pins(tmp_path, needs, check_conventions, balancer):
    """It has all that the workers tell, through a restart and with another number of members; its report agrees."""
    report = tmp_path / "report"
    options = ["discard", "--bind", "127.0.0.1:0", "--workers", "2", "--report", str(report), *METRICS]
    options += ["--bpffs", str(tmp_path)] if balancer == "unpinned" else ["--balancer", balancer]
    # Who may not mount has no BPF file system there.
    command = [needs("setpriv", "util-linux"), "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", *AIOLB]
    async with Supervisor(*options, command=command) as supervisor:
        await supervisor.supervising(workers=2)
        assert supervisor.named("metrics_limited") == []
        assert len(supervisor.named("unpinned")) == (balancer == "unpinned")
        (event,) = supervisor.named("metrics")
        bind = supervisor.named("supervising")[0]["bind"]
        await flood(bind, 500)
        (told,) = await at_rest([event["url"]], 500, sources=100)
        assert (told["group_members"], told["group_members_alive"]) == ({None: 2}, {None: 2})
        assert told["group_sources"] == {None: 100}
        assert all(told["member_handler_duration_seconds_count"].values())
        supervisor.send_signal(signal.SIGHUP)
        await supervisor.event("restarted")
        await flood(bind, 500)
        await at_rest([event["url"]], 1000)
        supervisor.send_signal(signal.SIGTTIN)
        await supervisor.event("count_changed", now=3)
        await flood(bind, 500)
        (told,) = await at_rest([event["url"]], 1500)
        assert told["group_members"] == {None: 3}
        assert ("member_slots" in told) == ("member_packets_total" in told) == (balancer == "unpinned")
        await check_conventions(event["url"])
        assert await supervisor.stop() == 0
    members = json.loads(report.read_text())["members"]
    for name in ("received", "handled", "abandoned"):
        assert told[f"member_{name}_total"] == {member["index"]: member.get(name, 0) for member in members}


@pytest.mark.parametrize("balancer", ["ebpf", "classic", "none"])
@pytest.mark.parametrize("more", [[], ["--workers", "2"]], ids=["collector", "supervisor"])
async def test_connections(bpffs, tmp_path, check_conventions, balancer, more):
    """Of connections there are sources, times and the accept queue, and no bytes of a queue and no batches."""
    app = streams.write_app(tmp_path / "app.py")
    with sockets.reserved_port(streams.LOCAL, "tcp") as address:
        options = [app, "--protocol", "tcp", "--bind", str(address), "--bpffs", str(bpffs), "--balancer", balancer]
        async with Supervisor(*options, *more, *METRICS) as supervisor:
            await supervisor.event("supervising" if more else "ready")
            (event,) = supervisor.named("metrics")
            for host in [f"127.0.4.{number}" for number in range(1, 21)]:
                await streams.who(address, host)
            (told,) = await at_rest([event["url"]], 20, sources=20)
            await check_conventions(event["url"])
            assert await supervisor.stop() == 0
    assert sum(told["member_received_total"].values()) == 20
    assert sum(told["member_handler_duration_seconds_count"].values()) == 20
    assert (sum(told["member_in_flight"].values()), sum(told["member_waiting"].values())) == (0, 0)
    assert all(told["member_waiting_limit"].values())
    assert not {"member_queue_bytes", "member_batch_datagrams_count"} & told.keys()
    assert told.get("group_sources") == (None if balancer != "ebpf" and not more else {None: 20})
