"""`aiolb serve --protocol tcp --workers`: replaced, killed, more and fewer workers while connections come in."""

from __future__ import annotations

import itertools
import json
import os
import signal
from contextlib import AsyncExitStack, suppress

import pytest
import service_manager
import streams
import supervision
from events import until
from streams import ask, connected
from supervision import Answer

from aiolb import listening
from aiolb.supervised import SupervisedMember
from aiolb.systemd import SocketName

address, script = streams.address, supervision.script

HOSTS = [f"127.0.7.{number}" for number in range(1, 21)]


@pytest.fixture
def app(tmp_path):
    """The application: ``app.says("2")`` makes it another version, ``app.report()`` is what it told at the end."""

    class App:
        path = tmp_path / "app.py"
        report_file = tmp_path / "report.json"

        def says(self, version):
            return streams.write_app(self.path, version=version)

        def report(self):
            return json.loads(self.report_file.read_text())

    return App()


@pytest.fixture
def supervised(app, address, bpffs):
    """``supervised(2, ...)``: a supervisor in a process of its own, with that many workers."""

    def make(workers, *options, **how):
        arguments = ["--protocol", "tcp", "--bind", str(address), "--workers", str(workers), "--bpffs", str(bpffs)]
        return supervision.Supervisor(
            app.says("1"), *arguments, "--report", str(app.report_file), "--graceful-timeout", "10", *options, **how
        )

    return make


def sums(report):
    """Accepted, closed, errors, abandoned."""
    return tuple(report[name] for name in ("accepted", "closed", "errors", "abandoned"))


@pytest.mark.parametrize("balancer", ["ebpf", "classic", "none"])
async def test_rolling_restarts(app, supervised, address, balancer):
    """Workers are replaced under load twice: nobody is refused or reset, and every source stays on one member."""
    async with supervised(2, "--balancer", balancer) as running:
        await running.supervising(workers=2)
        async with streams.Load(address, HOSTS) as load:
            await load.more()
            for number in (2, 3):
                app.says(str(number))
                running.send_signal(signal.SIGHUP)
                await running.event("restarted", nth=number - 1)
                await load.more()
        assert load.failures == []
        assert await running.stop() == 0
    for answers in load.answers.values():
        versions = [answer.version for answer in answers]
        assert set(versions) == {"1", "2", "3"}
        if balancer != "none":
            assert versions == sorted(versions)
            assert len({answer.index for answer in answers}) == 1
    report = app.report()
    assert sums(report) == (load.connections, load.connections, 0, 0)
    assert (report["workers"], report["killed"], report["kernel_drops"]) == (6, 0, 0)


async def test_open_connections_end_in_the_old_worker(app, supervised, address):
    """The new worker accepts at once; what was open goes on in the old one until it ends."""
    async with supervised(1) as running:
        await running.supervising(workers=1)
        async with connected(address) as client:
            old = Answer(await ask(*client))
            app.says("2")
            running.send_signal(signal.SIGHUP)
            await running.event("ready", nth=2)
            new = await streams.who(address, HOSTS[0])
            assert (new.version, new.index, new.pid != old.pid) == ("2", 0, True)
            assert Answer(await ask(*client)).pid == old.pid
            assert running.named("replaced") == []
        replaced = await running.event("replaced")
        assert (replaced["old"], replaced["new"]) == (old.pid, new.pid)
        assert await running.stop() == 0
    assert sums(app.report()) == (2, 2, 0, 0)


async def test_open_connections_are_cut_at_the_timeout(app, supervised, address):
    """What does not end within the graceful timeout is cut, and counted; the restart goes on."""
    async with supervised(2, "--graceful-timeout", "0.2") as running:
        await running.supervising(workers=2)
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(address, host)) for host in HOSTS]
            answers = [Answer(await ask(*client)) for client in clients]
            running.send_signal(signal.SIGHUP)
            await running.event("restarted")
            assert [await reader.read() for reader, _ in clients] == [b""] * len(HOSTS)
        assert await running.stop() == 0
    assert {answer.index for answer in answers} == {0, 1}
    assert sums(app.report()) == (20, 0, 0, 20)


async def test_a_worker_that_is_killed(app, supervised, address):
    """Connections that waited for a worker that was killed are handled by the next one; its open ones are told."""
    async with supervised(1) as running:
        await running.supervising(workers=1)
        first = running.worker(0)
        async with AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(connected(address, host)) for host in HOSTS[:3]]
            for client in opened:
                await ask(*client)
            os.kill(first, signal.SIGSTOP)
            waiting = [await stack.enter_async_context(connected(address, host)) for host in HOSTS]
            os.kill(first, signal.SIGKILL)
            assert {Answer(await ask(*client)).pid for client in waiting} == {
                (await running.event("ready", nth=2))["pid"]
            }
            for reader, _ in opened:  # an end, or a reset where the worker had not read everything
                with suppress(ConnectionResetError):
                    assert await reader.read() == b""
        assert (await running.event("worker_died"))["lost_at_most"] == 3
        assert await running.stop() == 0
    report = app.report()
    assert sums(report) == (20, 20, 0, 0)
    assert (report["killed"], report["lost_at_most"]) == (1, 3)


@pytest.mark.parametrize("balancer", ["ebpf", "none"])
async def test_more_and_fewer(app, supervised, address, balancer):
    """Members come and go under load, and nobody is refused or reset."""
    async with supervised(2, "--balancer", balancer) as running:
        await running.supervising(workers=2)
        async with streams.Load(address, HOSTS) as load:
            await load.more()
            for nth, (number, now) in enumerate(
                ((signal.SIGTTIN, 3), (signal.SIGTTIN, 4), (signal.SIGTTOU, 3), (signal.SIGTTOU, 2)), 1
            ):
                running.send_signal(number)
                await count_changed(running, now, nth)
                await load.more()
        assert load.failures == []
        assert await running.stop() == 0
    assert sums(app.report()) == (load.connections, load.connections, 0, 0)
    assert {index for indexes in load.indexes().values() for index in indexes} == {0, 1, 2, 3}
    if balancer == "ebpf":  # a source moves once with each change at most
        for answers in load.answers.values():
            assert len([index for index, _ in itertools.groupby(answer.index for answer in answers)]) <= 5


async def count_changed(running, now, nth):
    """The supervisor, and not only one of its workers, tells of the ``nth`` change of the count."""

    def told():
        return [event["now"] for event in running.named("count_changed") if "index" not in event]

    await until(lambda: len(told()) >= nth, "another count")
    assert told()[nth - 1] == now


async def test_the_stop_handles_what_waits(app, supervised, address):
    """What the kernel took before the stop is handled; afterwards nothing listens."""
    async with supervised(2) as running:
        await running.supervising(workers=2)
        workers = [running.worker(index) for index in range(2)]
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(address, host)) for host in HOSTS]
            running.send_signal(signal.SIGTERM)
            await running.event("stopping")
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
            assert {Answer(await ask(*client)).pid for client in clients} == set(workers)
        assert await running.ended() == 0
    assert sums(app.report()) == (20, 20, 0, 0)
    with pytest.raises(ConnectionRefusedError):
        await streams.who(address, HOSTS[0])


async def test_connections_that_nobody_accepts(app, supervised, address):
    """At a stop that waits for nothing the connections that were never accepted are told as abandoned."""
    async with supervised(1) as running:
        await running.supervising(workers=1)
        os.kill(running.worker(0), signal.SIGSTOP)
        async with AsyncExitStack() as stack:
            for host in HOSTS[:5]:
                await stack.enter_async_context(connected(address, host))
            running.send_signal(signal.SIGQUIT)
            assert await running.ended() == 0
    report = app.report()
    assert (report["abandoned"], report["killed"]) == (5, 1)


async def test_a_takeover_between_supervisors(app, supervised, address):
    """A new supervisor takes all places over under load; the old one finishes and ends."""
    async with supervised(2) as old:
        await old.supervising(workers=2)
        async with streams.Load(address, HOSTS) as load:
            await load.more()
            async with supervised(2, "--takeover") as new:
                await new.supervising(workers=2)
                assert await old.ended() == 0
                first = app.report()
                await load.more()
                await load.stop()
                assert await new.stop() == 0
        assert load.failures == []
    assert {len(indexes) for indexes in load.indexes().values()} == {1}
    assert first["accepted"] + app.report()["accepted"] == load.connections


async def test_without_capabilities(supervised, address, powerless):
    """Without any capability there is the classic balancer, affinity, and restarts without loss."""
    async with supervised(2, prefix=tuple(powerless)) as running:
        await running.supervising(workers=2)
        assert (await running.event("balancer_fallback"))["balancer"] == "classic"
        async with streams.Load(address, HOSTS) as load:
            await load.more()
            running.send_signal(signal.SIGHUP)
            await running.event("restarted")
            await load.more()
        assert load.failures == []
        assert await running.stop() == 0
    assert {len(indexes) for indexes in load.indexes().values()} == {1}


async def test_a_collector_of_datagrams(tmp_path, address, bpffs):
    """One that handles datagrams is refused with one error of its worker, and exit status 2."""
    app = supervision.write_app(tmp_path / "datagrams.py")
    arguments = (app, "--protocol", "tcp", "--bind", str(address), "--workers", "1", "--bpffs", str(bpffs))
    async with supervision.Supervisor(*arguments) as running:
        assert await running.ended() == 2
        assert running.lines[:2] == [
            "aiolb: error: App handles datagrams, and the protocol is tcp",
            "  hint: --protocol udp, or make it a subclass of aiolb.StreamCollector",
        ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_kept_sockets(app, address, bpffs, number):
    """Sockets that the service manager keeps hold what comes while there is no supervisor, for the next one."""
    command = [*supervision.AIOLB, "serve", app.says("1"), "--protocol", "tcp", "--bind", str(address)]
    command += ["--workers", "2", "--bpffs", str(bpffs), "--report", str(app.report_file)]
    async with service_manager.ServiceManager(store=8) as manager:
        await manager.start(*command)
        await manager.told("READY=1")
        assert [name for name, _ in manager.stored] == [str(SocketName(address, index, "tcp")) for index in range(2)]
        before = {host: await streams.who(address, host) for host in HOSTS}
        assert await manager.stop(number) == (0 if number == signal.SIGTERM else -number)
        await supervision.gone(answer.pid for answer in before.values())
        async with AsyncExitStack() as stack:
            clients = {host: await stack.enter_async_context(connected(address, host)) for host in HOSTS}
            app.says("2")
            await manager.start(*command)
            await manager.told("READY=1")
            after = {host: Answer(await ask(*client)) for host, client in clients.items()}
        assert {answer.version for answer in after.values()} == {"2"}
        assert {host: answer.index for host, answer in after.items()} == {
            host: answer.index for host, answer in before.items()
        }
        assert await manager.stop() == 0
    assert sums(app.report()) == (20, 20, 0, 0)


async def test_it_refuses_before_a_worker_drains(script, monkeypatch):
    """Nobody can connect any more when a worker is told to drain, for that may lack the privilege to see to it."""
    end, found = SupervisedMember.end, []

    async def noted(member, order):
        found.extend((order, listening.refuses_connections(sock)) for sock in member.places.sockets.values())
        await end(member, order)

    monkeypatch.setattr(SupervisedMember, "end", noted)
    settings = {"protocol": "tcp", "balancer": "none", "count": 2}
    async with supervision.Supervised(script, supervision.ANYWHERE, **settings) as supervised:
        await supervised.supervising()
        supervised.send_signal(signal.SIGTTOU)
        await supervised.event("count_changed")
        await supervised.stop()
    assert found == [("drain", True)] * 2
