"""A real Prometheus reads real collectors: the dashboard says what `aiolb status` says, and alerts fire for causes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import urllib.parse
import urllib.request
from contextlib import asynccontextmanager

import pytest
from dashboard import PANELS, asked
from documents import ROOT
from serving import AIOLB, Member, flood
from supervision import Supervisor

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("nothing_left")]

METRICS = ["--metrics", "127.0.0.1:0"]
QUERIES = [
    (panel["title"], target["legendFormat"].removeprefix("{{host}} {{group}} "), asked(target["expr"]))
    for panel in PANELS
    for target in panel["targets"]
]
DEADLINE = 60
"""Seconds after which something that must happen counts as not happening."""
SLOW = """
import asyncio
from aiolb import Collector

class Slow(Collector):
    async def handle(self, datagram, addr):
        await asyncio.Event().wait()
"""


async def _until(look, is_it) -> None:
    """Look until it is as it must become."""
    found = None
    try:
        async with asyncio.timeout(DEADLINE):
            while not is_it(found := await look()):  # noqa: ASYNC110 - another process has no event of ours
                await asyncio.sleep(0.1)
    except TimeoutError:
        pytest.fail(f"in the end it is {found}")


class Prometheus:
    """What a Prometheus is asked."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/api/v1"

    async def _get(self, what: str):
        def get():
            with urllib.request.urlopen(f"{self._url}/{what}", timeout=DEADLINE) as answer:  # noqa: S310 - it is ours
                return json.load(answer)["data"]

        return await asyncio.to_thread(get)

    async def query(self, query: str) -> dict[str | None, float]:
        """The values now, by member; None is the group."""
        data = await self._get(f"query?{urllib.parse.urlencode({'query': query})}")
        found = {one["metric"].get("member"): float(one["value"][1]) for one in data["result"]}
        assert len(found) == len(data["result"])
        return found

    async def until(self, query: str, expected: dict[str | None, float]) -> None:
        """Wait until a query has these values."""
        await _until(lambda: self.query(query), lambda found: found == expected)

    async def firing(self) -> set[tuple[str, str]]:
        """The alerts, each with what says whose it is."""
        alerts = (await self._get("alerts"))["alerts"]
        assert all(alert["annotations"]["summary"] for alert in alerts)
        return {
            (one["labels"]["alertname"], one["labels"].get("member", "")) for one in alerts if one["state"] == "firing"
        }

    async def until_firing(self, *expected: tuple[str, str]) -> None:
        """Wait until these alerts fire, and no other."""
        await _until(self.firing, lambda found: found == set(expected))

    async def looked(self) -> None:
        """Wait until every rule was looked at twice more."""

        async def times():
            return [group["lastEvaluation"] for group in (await self._get("rules"))["groups"]]

        for _ in range(2):
            before = await times()
            await _until(times, lambda now, before=before: not any(map(str.__eq__, before, now)))


@pytest.fixture
def prometheus(needs, tmp_path):
    """Run a Prometheus that reads what these serve: ``prometheus(*urls)``.

    Its alert rules fire at once. Only three looks in a row that time out are an end: all is slow where tests run.
    """
    program = needs("prometheus", "prometheus")

    @asynccontextmanager
    async def running(*urls: str):
        rules = (ROOT / "examples/prometheus/alerts.yml").read_text()
        rules = re.sub(r"\bfor: \w+", "for: 0s", rules.replace("[10m]", "[20s]"))
        rules = re.sub(r"(AiolbDown\n.*\n +for): 0s", r"\1: 3s", rules)
        (tmp_path / "rules.yml").write_text(rules)
        targets = [url.removeprefix("http://").removesuffix("/metrics") for url in urls]
        # JSON is YAML.
        settings = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "200ms"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "aiolb", "static_configs": [{"targets": targets}]}],
        }
        (tmp_path / "prometheus.yml").write_text(json.dumps(settings))
        process = await asyncio.create_subprocess_exec(
            program,
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            "--web.listen-address=127.0.0.1:0",
            stderr=subprocess.PIPE,
        )
        said, drain = b"", None
        try:
            async with asyncio.timeout(DEADLINE):
                while b"Server is ready" not in said:
                    line = await process.stderr.readline()
                    assert line, said.decode()
                    said += line
            drain = asyncio.create_task(process.stderr.read())
            yield Prometheus(re.search(rb'"Listening on" address=(\S+)', said)[1].decode())
        finally:
            process.terminate()
            await (drain or process.stderr.read())
            await process.wait()

    return running


async def status(address, bpffs) -> dict[str, dict]:
    """What `aiolb status` says of the members, by index as Prometheus writes it."""
    command = [*AIOLB, "status", str(address), "--bpffs", str(bpffs), "--interval", "0", "--json"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=DEADLINE, check=True)
    (group,) = json.loads(done.stdout)["groups"]
    return {str(member["index"]): member for member in group["members"]}


async def test_dashboard_and_rest(bpffs, address, prometheus):
    """Every panel has values, the same as `aiolb status`, and no alert fires; then an uneven load and an end do."""
    options = ["discard", "--bind", str(address), "--bpffs", str(bpffs), "--workers", "3", "--seed", "1"]
    async with Supervisor(*options, *METRICS) as supervisor:
        await supervisor.supervising(workers=3)
        (event,) = supervisor.named("metrics")
        members = [str(index) for index in range(3)]
        async with prometheus(event["url"]) as observer:
            await observer.until("aiolb_member_received_total", dict.fromkeys(members, 0))
            await flood(address, 3000, sources=300)
            await observer.until("sum(aiolb_member_handled_total)", {None: 3000})
            told = await status(address, bpffs)
            for metric, field in {"received": "received", "packets": "packets", "handled": "handled"}.items():
                found = await observer.query(f"aiolb_member_{metric}_total")
                assert found == {index: member[field] for index, member in told.items()}
            shown = {}
            for panel, legend, query in QUERIES:
                shown[panel, legend] = await observer.query(query)
                assert shown[panel, legend].keys() == (set(members) if "member" in legend else {None}), panel
            shares = shown["Share of each member", "{{member}}"]
            assert shares == {index: pytest.approx(one["received"] / 3000, abs=0.01) for index, one in told.items()}
            assert shown["Kernel drops per second", "{{member}}"] == dict.fromkeys(members, 0)
            assert shown["Members", "alive"] == shown["Members", "wanted"] == {None: 3}
            assert all(0 < seconds < 1 for seconds in shown["Handler time, 99 %", "{{member}}"].values())
            await observer.looked()
            assert await observer.firing() == set()

            await flood(address, 20_000, sources=1)  # all of it to one member
            told = await status(address, bpffs)
            busy = max(told, key=lambda index: told[index]["packets"])
            await observer.until_firing(("AiolbImbalance", busy))
            supervisor.send_signal(signal.SIGTERM)
            await supervisor.ended()
            await _until(observer.firing, lambda found: {("AiolbDown", ""), ("AiolbAbsent", "")} <= found)


async def test_drops_and_a_full_queue(bpffs, address, prometheus, tmp_path):
    """Handlers that hang fill one member's queue: it alone drops packets, and both alerts name it."""
    (tmp_path / "slow.py").write_text(SLOW)
    options = [f"{tmp_path}/slow.py:Slow", "--bind", str(address), "--bpffs", str(bpffs), "--workers", "3"]
    less = ["--rcvbuf", "8K", "--concurrency", "1", "--backlog", "1", "--graceful-timeout", "0.1"]
    async with Supervisor(*options, *less, *METRICS) as supervisor:
        await supervisor.supervising(workers=3)
        (event,) = supervisor.named("metrics")
        async with prometheus(event["url"]) as observer:
            await observer.until("aiolb_member_kernel_drops_total", dict.fromkeys("012", 0))
            await flood(address, 1000, sources=1)
            told = await status(address, bpffs)
            full = max(told, key=lambda index: told[index]["packets"])
            await observer.until_firing(("AiolbKernelDrops", full), ("AiolbQueueNearlyFull", full))
            told = await status(address, bpffs)
            found = await observer.query("aiolb_member_kernel_drops_total")
            assert found == {index: member["kernel_drops"] for index, member in told.items()}


async def test_dead_and_silent(bpffs, address, prometheus, tmp_path):
    """A member that nobody runs and one that hangs alert once, though both collectors tell of the group."""
    options = ["discard", "--bind", str(address), "--bpffs", str(bpffs), "--count", "3", *METRICS]
    async with (
        Member(*options, "--index", "0", report=tmp_path / "0") as zero,
        Member(*options, "--index", "1", report=tmp_path / "1") as one,
    ):
        urls, pids = [], []
        for member in (zero, one):
            urls.append((await member.event("metrics"))["url"])
            pids.append((await member.ready())["pid"])
        async with prometheus(*urls) as observer:
            await observer.until("sum(aiolb_member_alive)", {None: 2})
            await observer.until_firing(("AiolbMemberDead", ""))
            os.kill(pids[1], signal.SIGSTOP)
            await observer.until_firing(("AiolbMemberDead", ""), ("AiolbMemberSilent", ""), ("AiolbDown", ""))
            os.kill(pids[1], signal.SIGCONT)
            await observer.until_firing(("AiolbMemberDead", ""))
        for member in (zero, one):
            await member.stop()
