"""`aiolb serve --workers` as its users meet it: processes, their output, their exit status, a line for each mistake."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import supervision
from click.testing import CliRunner

from aiolb.cli.main import main
from aiolb.cli.supervise import Workers

HERE = Path(__file__).parent


Client, children = supervision.Client, supervision.children

ALONE = ("--bind", "127.0.0.1:0", "--balancer", "none")


HANGS = "            time.sleep(3600)  # here it hangs"


@pytest.fixture
def app(tmp_path):
    """How the command line names the application."""
    return supervision.write_app(tmp_path / "app.py")


@pytest.fixture
async def supervise(nothing_left, tmp_path):  # noqa: ARG001 - it looks before and after
    """Supervisors with these arguments, and their reports; killed at the end."""
    async with AsyncExitStack() as stack:

        async def start(*arguments, **options):
            report = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
            process = supervision.Supervisor(*arguments, *ALONE, "--report", str(report), **options)
            process.report = lambda: json.loads(report.read_text())
            return await stack.enter_async_context(process)

        yield start


# What is wrong is told in one line


def lines_of(*options):
    """Exit status and lines of a command that is expected to end in this process, and said nothing but errors."""
    result = CliRunner().invoke(main, ["serve", *options], prog_name="aiolb")
    assert result.stdout == ""
    return result.exit_code, result.stderr.splitlines()


ALL_MEMBERS = "--workers runs all members of the group"
MISTAKES = [
    (["--workers", "2", "--index", "1"], ALL_MEMBERS),
    (["--workers", "2", "--count", "2"], ALL_MEMBERS),
    (["--workers", "0"], "a group has 1 to 1024 members, not 0"),
    (["--workers", "1025"], "a group has 1 to 1024 members, not 1025"),
    (["--worker-timeout", "5"], "--worker-timeout is for a supervisor"),
    (["--start-timeout", "5"], "--start-timeout is for a supervisor"),
    (["--restart-limit", "5/60"], "--restart-limit is for a supervisor"),
    (["--recycle-after", "1M"], "--recycle-after is for a supervisor"),
    (["--workers", "2", "--rebalance", "--balancer", "classic"], "the balancer 'classic' has no slots to move"),
    (["--workers", "2", "--rebalance", "--balancer", "none"], "the balancer 'none' has no slots to move"),
    (["--workers", "1", "--restart-limit", "5"], "'5' is no restart limit"),
    (["--workers", "1", "--restart-limit", "-1/60"], "'-1/60' is no restart limit"),
    (["--workers", "1", "--restart-limit", "5/never"], "'never' is no duration"),
    (["--workers", "1", "--recycle-after", "nonsense"], "'nonsense' is no number of datagrams and no duration"),
    (["--workers", "1", "--user", "nobody-of-that-name"], "there is no user 'nobody-of-that-name'"),
    (["--workers", "1", "--user", "root"], "'root' is root, which keeps its privileges"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES, ids=[" ".join(mistake[0]) for mistake in MISTAKES])
def test_mistakes(options, message):
    """A setting that cannot work is told in one line with a hint; exit status 2."""
    status, lines = lines_of("discard", *options)
    assert (status, len(lines)) == (2, 2), lines
    assert lines[0].startswith(f"aiolb: error: {message}")
    assert lines[1].startswith("  hint: ")


@pytest.mark.parametrize(
    ("option", "value"), [("--worker-timeout", "0"), ("--worker-timeout", "nan"), ("--start-timeout", "-1")]
)
def test_timeouts_that_cannot_work(option, value):
    """A timeout that would end every worker at once is refused; exit status 2."""
    name = option.removeprefix("--").replace("-", " ")
    assert lines_of("discard", *ALONE, "--workers", "1", option, value) == (
        2,
        [f"aiolb: error: the {name} is above 0 and at most 86,400 seconds, not {value}"],
    )


@pytest.mark.parametrize("value", ["many", "-1", "1.5", ""])
def test_no_number_of_workers(value):
    """What is neither a number nor auto is told in the same form."""
    assert lines_of("--workers", value) == (
        2,
        [
            f"aiolb: error: Invalid value for '--workers': {value!r} is neither a number nor auto",
            "  hint: see: aiolb serve --help",
        ],
    )


def test_as_many_workers_as_cpus():
    """`--workers auto` is one for each CPU that the process may use."""
    assert Workers().convert("auto", None, None) == len(os.sched_getaffinity(0))


# Starts that fail


async def test_an_app_that_fails_on_import(supervise, tmp_path):
    """Its traceback is shown once, nothing is tried again, nothing is left; exit status 3."""
    app = supervision.write_app(tmp_path / "app.py", start="1 / 0")
    process = await supervise(app, "--workers", "3")
    assert await process.ended() == 3
    said = "\n".join(process.lines)
    assert said.count("ZeroDivisionError: division by zero") == 2  # the traceback's end, and the error in one line
    assert said.count("Traceback (most recent call last):") == 1
    assert process.lines[-1] == "aiolb: error: the worker of member 0 did not start; what it said is above"
    assert process.named("ready") == process.named("supervising") == process.named("worker_died") == []


async def test_a_signal_during_the_start(supervise, tmp_path):
    """A supervisor that is told to stop while its first worker starts does so; exit status 0."""
    start = 'import sys; print(\'{"event": "importing"}\', file=sys.stderr, flush=True); time.sleep(3600)'
    process = await supervise(supervision.write_app(tmp_path / "app.py", start=start), "--workers", "2")
    await process.event("importing")
    assert await process.stop() == 0
    assert process.named("supervising") == []


# Running, and stopping


@pytest.mark.parametrize(("loop", "number"), [("uvloop", signal.SIGINT), ("asyncio", signal.SIGTERM)])
async def test_run_and_stop(supervise, app, loop, number):
    """Every line comes through as it was written; a stop handles what was sent before, and reports the sums."""
    process = await supervise(app, "--workers", "2", "--event-loop", loop)
    with Client(await process.supervising(workers=2)) as client:
        client.send(*map(str, range(50)))
        os.killpg(process.pid, number)  # as Ctrl-C: to the whole process group
        assert await process.ended() == 0
    assert process.lines == []
    said = [(event["event"], event.get("index")) for event in process.events]
    assert sorted(said[:2]) == [("ready", 0), ("ready", 1)]
    assert said[2:5] == [("supervising", None), ("signal", None), ("stopping", None)]
    assert sorted(said[5:-1]) == [("stopping", 0), ("stopping", 1)]
    assert said[-1] == ("stopped", None)
    supervising, stopped = process.named("supervising")[0], process.named("stopped")[0]
    assert {(event["bind"], event["level"]) for event in process.events} == {(supervising["bind"], "info")}
    assert (supervising["pid"], supervising["workers"], supervising["balancer"]) == (process.pid, 2, "none")
    assert [(event["count"], event["balancer"]) for event in process.named("ready")] == [(2, "none")] * 2
    told = {name: stopped[name] for name in ("received", "handled", "errors", "abandoned", "kernel_drops")}
    assert told == {"received": 50, "handled": 50, "errors": 0, "abandoned": 0, "kernel_drops": 0}
    report = process.report()
    assert (report["pid"], report["received"], report["sent"]) == (process.pid, 50, 50)
    members = [(member["index"], member["workers"], member["killed"]) for member in report["members"]]
    assert members == [(0, 1, 0), (1, 1, 0)]


async def test_a_killed_worker(supervise, app):
    """Another one is started at once, tells that it is ready, and handles what came in between; nothing is lost."""
    process = await supervise(app, "--workers", "1")
    with Client(await process.supervising(workers=1)) as client:
        before = await client.ask("first")
        os.kill(before.pid, signal.SIGSTOP)  # it has read nothing of what comes now
        client.send(*map(str, range(100)))
        os.kill(before.pid, signal.SIGKILL)
        died = await process.event("worker_died")
        assert (died["pid"], died["reason"], died["restart_in"]) == (before.pid, "SIGKILL", 0)
        answers = [await client.hear() for _ in range(100)]
    (after,) = {answer.pid for answer in answers}
    assert (await process.event("ready", index=0, nth=2))["pid"] == after
    assert await process.stop() == 0
    (member,) = process.report()["members"]
    assert (member["workers"], member["killed"], member["received"], member["handled"]) == (2, 1, 100, 100)
    assert member["collector"] == [{"version": "1", "handled": [str(number) for number in range(100)]}]


async def test_a_worker_stopped_by_hand(supervise, app):
    """A worker that gets SIGTERM is replaced without loss, and its report is kept."""
    process = await supervise(app, "--workers", "1")
    with Client(await process.supervising(workers=1)) as client:
        before = await client.ask("first")
        os.kill(before.pid, signal.SIGTERM)
        client.send("second")
        replaced = await process.event("replaced", reason="asked")
        after = await client.hear()
        last = await client.ask("third")
    assert (replaced["old"], replaced["new"]) == (before.pid, last.pid)
    assert after.pid in (before.pid, last.pid)
    assert await process.stop() == 0
    report = process.report()
    assert (report["received"], report["handled"], report["killed"], report["workers"]) == (3, 3, 0, 2)
    handled = [datagram for worker in report["members"][0]["collector"] for datagram in worker["handled"]]
    assert handled == ["first", "second", "third"]
    assert process.named("worker_died") == []


async def test_stop_now(supervise, app):
    """A second SIGINT does not wait for a handler that waits: its datagram counts as abandoned."""
    process = await supervise(app, "--workers", "1", "--graceful-timeout", "3600")
    with Client(await process.supervising(workers=1)) as client:
        assert (await client.ask("wait")).version == "waiting"
        for number in (1, 2):
            process.send_signal(signal.SIGINT)
            await process.event("signal", name="SIGINT", nth=number)
        assert await process.ended() == 0
    report = process.report()
    assert (report["received"], report["handled"], report["abandoned"], report["killed"]) == (1, 0, 1, 0)


async def test_a_worker_that_hangs(supervise, app, tmp_path):
    """It is replaced, and standard error says in which line of the application it hung."""
    source = (tmp_path / "app.py").read_text().splitlines()
    process = await supervise(app, "--workers", "1", "--worker-timeout", "0.5")
    with Client(await process.supervising(workers=1)) as client:
        client.send("hang", "next")
        hung = await process.event("worker_hung")
        died = await process.event("worker_died")
        assert (died["pid"], died["reason"]) == (hung["pid"], "SIGABRT")
        await process.event("ready", nth=2)
        client.send("last")
        assert (await client.hear()).pid == process.worker(0, nth=1)
    assert await process.stop() == 0
    trace = "\n".join(process.lines)
    assert trace.startswith("Fatal Python error: Aborted")
    file = app.removesuffix(":App")
    assert f'File "{file}", line {1 + source.index(HANGS)} in handle' in trace
    assert len(process.named("worker_hung")) == len(process.named("worker_died")) == 1


async def test_a_killed_supervisor(supervise, app):
    """Its workers handle what was sent, say so, and end; no process is left."""
    process = await supervise(app, "--workers", "2")
    with Client(await process.supervising(workers=2)) as client:
        workers = children(process.pid)
        answer = await client.ask()
        os.kill(answer.pid, signal.SIGSTOP)
        client.send(*map(str, range(10)))
        process.send_signal(signal.SIGKILL)
        os.kill(answer.pid, signal.SIGCONT)
        assert {(await client.hear()).pid for _ in range(10)} == {answer.pid}
    assert await process.ended() == -signal.SIGKILL
    await supervision.gone(workers)
    assert len(process.named("supervisor_gone", level="warning")) == len(workers) == 2


async def test_without_the_compiled_parts(supervise, app, tmp_path):
    """Workers with the plain parts say so, are replaced without loss, and stop with exact counts."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['aiolb.receive._fast'] = None\n")
    process = await supervise(app, "--workers", "1", env={"PYTHONPATH": str(tmp_path), "AIOLB_REQUIRE_FAST": "0"})
    with Client(await process.supervising(workers=1)) as client:
        client.send(*map(str, range(20)))
        process.send_signal(signal.SIGHUP)
        await process.event("restarted")
        client.send(*map(str, range(20, 40)))
        process.send_signal(signal.SIGTERM)
        assert await process.ended() == 0
    assert len(process.named("fast_receiver_missing")) == 2
    handled = [number for worker in process.report()["members"][0]["collector"] for number in worker["handled"]]
    assert handled == [str(number) for number in range(40)]


async def test_modules_in_the_working_directory(supervise, app, tmp_path, monkeypatch):
    """What lies beside the application is not taken for a library, least of all before privileges are dropped."""
    (tmp_path / "structlog.py").write_text("raise SystemExit(99)")
    monkeypatch.chdir(tmp_path)
    command = (sys.executable, "-P", "-m", "aiolb")
    process = await supervise(Path(app).name, "--workers", "1", command=command)
    await process.supervising(workers=1)
    assert await process.stop() == 0
