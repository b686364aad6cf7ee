"""`aiolb serve` as its users meet it: processes, their output, their exit status, and one line for each mistake."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner
from deadline import DEADLINE
from serving import AIOLB

from aiolb import sockets
from aiolb.address import Address
from aiolb.builtin import PREVIEW
from aiolb.cli.main import main
from aiolb.cli.members import MemberProcess
from aiolb.cli.serve import Size, serve
from aiolb.config import ServeConfig
from aiolb.errors import StartError

ROOT = Path(__file__).parent.parent
ALONE = ["--bind", "127.0.0.1:0", "--balancer", "none"]
NOBODY = 65534
RMEM_MAX = int(Path("/proc/sys/net/core/rmem_max").read_text())

pytestmark = pytest.mark.usefixtures("logs_as_before", "nothing_left")


APP = """
import asyncio
import logging
from aiolb import Collector, ConfigurationError

class Good(Collector):
    async def handle(self, datagram, addr):
        if datagram == b"bad":
            raise ValueError("bad datagram")
        if datagram == b"log":
            logging.getLogger("mine").warning("careful")
        self.reply(datagram, addr)

    def on_error(self, error, datagram, addr):
        self.reply(b"sorry", addr)

class Slow(Good):
    async def startup(self):
        print("starting", flush=True)
        await asyncio.Event().wait()

    async def shutdown(self):
        print("never", flush=True)

class FailingStartup(Good):
    async def startup(self):
        raise OSError("no database")

class FailingInit(Good):
    def __init__(self):
        raise OSError("no file")

class NeedsArguments(Good):
    def __init__(self, database):
        pass

class Strict(Good):
    async def startup(self):
        raise ConfigurationError("DATABASE is not set", hint="export DATABASE=...")

class PlainHandle(Collector):
    def handle(self, datagram, addr):
        pass

class Plain:
    pass
"""


@pytest.fixture
def app(tmp_path):
    """The path of a file with collectors."""
    path = tmp_path / "app.py"
    path.write_text(APP)
    return path


class Process:
    """A process whose output is read line by line, within the deadline."""

    def __init__(self, process):
        self.process = process
        self.address = None

    async def line(self, stream="stderr"):
        """The next line of an output; empty at its end."""
        async with asyncio.timeout(DEADLINE):
            return (await getattr(self.process, stream).readline()).decode()

    async def until(self, text):
        """The first line of its log with the text."""
        while text not in (line := await self.line()):
            assert line, f"it ended without {text!r}"
        return line

    async def ready(self):
        """Wait until it says that it is ready, and where."""
        bound = re.search(r"bind=([^ ]+):(\d+)", await self.until("ready"))
        self.address = (bound[1], int(bound[2]))

    async def end(self):
        """Its exit status, when it ends, and what it still logged."""
        async with asyncio.timeout(DEADLINE):
            rest = (await self.process.stderr.read()).decode()
            return await self.process.wait(), rest


@pytest.fixture
async def launch():
    """Processes of the command with these arguments; killed at the end."""
    async with AsyncExitStack() as stack:

        async def launch(*arguments, command=AIOLB, **options):
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
            process = await asyncio.create_subprocess_exec(*command, *arguments, **pipes)

            async def end():
                if process.returncode is None:
                    process.kill()
                await process.communicate()

            stack.push_async_callback(end)
            return Process(process)

        yield launch


@pytest.fixture
async def member(tmp_path):
    """Members with these arguments that log JSON, and what they said when they were ready."""
    async with AsyncExitStack() as stack:

        async def start(*arguments):
            process = MemberProcess(*arguments, report=tmp_path / "report.json")
            await stack.enter_async_context(process)
            async with asyncio.timeout(DEADLINE):
                return process, await process.ready()

        yield start


@pytest.fixture
def client():
    """Ask a collector: ``client(address, b"x")`` is its answer."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)

        def ask(address, datagram):
            sock.connect(address)
            sock.send(datagram)
            return sock.recv(65536)

        yield ask


@pytest.fixture
def powerless(needs):
    """The start of a command line that takes every capability away; nothing where there is none."""
    if os.geteuid() != 0:
        return []
    return [needs("setpriv", "util-linux"), "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]


def address_of(event):
    """Where a member that is ready is bound."""
    host, port = event["bind"].rsplit(":", 1)
    return host, int(port)


# What is wrong is told in one line


def invoke(arguments):
    """Run a command that is expected to end in this process."""
    return CliRunner().invoke(main, arguments, prog_name="aiolb")


def lines_of(result):
    """Exit status and lines of a command that said nothing but errors."""
    assert result.stdout == ""
    return result.exit_code, result.stderr.splitlines()


HELP = "  hint: see: aiolb serve --help"
MISTAKES = [
    (["--index", "3", "--count", "3"], "index 3 is outside of a group of 3", True),
    (["--index", "-1"], "-1 is no index: it is a number from 0 to 1023", True),
    (["--index", "1024"], "1024 is no index: it is a number from 0 to 1023", True),
    (["--count", "0"], "a group has 1 to 1024 members, not 0", True),
    (["--count", "-3"], "a group has 1 to 1024 members, not -3", True),
    (["--count", "1025"], "a group has 1 to 1024 members, not 1025", True),
    (["--bind", "127.0.0.1:70000"], "'70000' in '127.0.0.1:70000' is no port", True),
    (["--bind", "[::1"], "'[::1' is no address", True),
    (["--bind", "127.0.0.1:5", "--bind", "127.0.0.1:5"], "127.0.0.1:5 is given twice", False),
    (["--seed", "-1"], "a seed is a number from 0 to 2^128 - 1, not -1", False),
    (["--graceful-timeout", "-1"], "the graceful timeout is 0 to 86400 seconds, not -1.0", False),
    (["--graceful-timeout", "nan"], "the graceful timeout is 0 to 86400 seconds, not nan", False),
    (["--concurrency", "0"], "the concurrency is 1 to 1048576 handlers, not 0", False),
    (["--backlog", "0"], "the backlog is 1 to 16777216 datagrams, not 0", False),
    (["--rcvbuf", "0"], "the receive buffer is 1 to 1073741823 bytes, not 0", False),
    (["--rcvbuf", "2G"], "the receive buffer is 1 to 1073741823 bytes, not 2147483648", False),
    (["--balancer", "classic", "--takeover"], "the balancer 'classic' has no takeover and nothing to", True),
    (["--balancer", "none", "--debug"], "the balancer 'none' has no takeover and nothing to", True),
    (["--report", "/nowhere/report"], "the report /nowhere/report cannot be written: No such file or", True),
]
MISUSES = [
    (["--count", "many"], "Invalid value for '--count': 'many' is not a valid integer"),
    (["--rcvbuf", "12Q"], "Invalid value for '--rcvbuf': '12Q' is no size; e.g. 20M or 20971520"),
    (["--rcvbuf", ""], "Invalid value for '--rcvbuf': '' is no size; e.g. 20M or 20971520"),
    (["--event-loop", "trio"], "Invalid value for '--event-loop': 'trio' is not one of 'uvloop', 'asyncio'"),
    (["--balancer", "magic"], "Invalid value for '--balancer': 'magic' is not one of 'auto', 'ebpf', "),
    (["--report", "/"], "Invalid value for '--report': File '/' is a directory"),
    (["--colour"], "No such option '--colour'"),
    (["one", "two"], "Got unexpected extra argument"),
]


@pytest.mark.parametrize(("options", "message", "hint"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_mistakes(options, message, hint):
    """A setting that cannot work is told in one line, with a hint where there is one; exit status 2."""
    status, lines = lines_of(invoke(["serve", "discard", *options]))
    assert (status, len(lines)) == (2, 1 + hint)
    assert lines[0].startswith(f"aiolb: error: {message}")
    assert all(line.startswith("  hint: ") for line in lines[1:])


@pytest.mark.parametrize(("options", "message"), MISUSES, ids=[" ".join(m[0]) for m in MISUSES])
def test_misuse(options, message):
    """What the command line cannot read is told in the same form."""
    status, lines = lines_of(invoke(["serve", *options]))
    assert (status, lines[1:]) == (2, [HELP])
    assert lines[0].startswith(f"aiolb: error: {message}")


@pytest.mark.parametrize("arguments", [["--colour"], ["sevre"]])
def test_misuse_before_the_command(arguments):
    """An unknown command, or an option in front of it, is told in the same form."""
    status, lines = lines_of(invoke(arguments))
    assert (status, lines[1:]) == (2, ["  hint: see: aiolb --help"])
    assert lines[0].startswith(f"aiolb: error: No such {'option' if arguments[0][0] == '-' else 'command'} '")


APPS = [
    ("nonsense", 2, "'nonsense' names no collector"),
    ("nowhere.py:Good", 2, "there is no file nowhere.py"),
    ("nowhere:Good", 2, "there is no module 'nowhere'"),
    ("{app}:Nobody", 2, "{app} has no 'Nobody'; it has Good, Slow, "),
    ("{app}:Plain", 2, "<class 'app.Plain'> is no subclass of aiolb.Collector"),
    ("{app}:PlainHandle", 2, "PlainHandle.handle is not a coroutine function"),
    ("{app}:Strict", 2, "DATABASE is not set"),
    ("{app}:NeedsArguments", 3, "NeedsArguments() failed: TypeError: NeedsArguments.__init__() missing 1 "),
]


@pytest.mark.parametrize(("name", "status", "message"), APPS, ids=[app[0] for app in APPS])
def test_bad_apps(app, name, status, message):
    """An app that is not there, or is none, is told in one line, without a traceback."""
    got, lines = lines_of(invoke(["serve", name.format(app=app), *ALONE]))
    assert (got, lines[0].startswith(f"aiolb: error: {message.format(app=app)}")) == (status, True), lines
    assert all(line.startswith("  hint: ") for line in lines[1:])


@pytest.mark.parametrize(
    ("name", "trace", "message"),
    [
        ("FailingStartup", 'raise OSError("no database")', "startup() failed: OSError: no database"),
        ("FailingInit", 'raise OSError("no file")', "FailingInit() failed: OSError: no file"),
    ],
)
def test_failing_apps(app, name, trace, message):
    """What the user's own code raises is shown with the user's own part of the traceback; exit status 3."""
    status, lines = lines_of(invoke(["serve", f"{app}:{name}", *ALONE]))
    assert status == 3
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == f"aiolb: error: {message}"
    assert trace in "\n".join(lines)
    assert [line.split('"')[1] for line in lines if line.startswith("  File ")] == [str(app)]


def test_an_app_that_fails_on_import(tmp_path):
    """An app whose import fails shows its own lines only."""
    (tmp_path / "broken.py").write_text("import math\n\nmath.sqrt(-1)\n")
    status, lines = lines_of(invoke(["serve", f"{tmp_path}/broken.py:App", *ALONE]))
    assert (status, lines[:3]) == (
        3,
        [
            "Traceback (most recent call last):",
            f'  File "{tmp_path}/broken.py", line 3, in <module>',
            "    math.sqrt(-1)",
        ],
    )
    assert lines[-2:] == [
        "ValueError: math domain error",
        f"aiolb: error: {tmp_path}/broken.py failed on import: ValueError: math domain error",
    ]


def test_a_port_in_use():
    """A port that a socket without SO_REUSEPORT holds is told with the process that holds it."""
    with socket.socket(type=socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        bind = f"127.0.0.1:{holder.getsockname()[1]}"
        options = ["serve", "discard", "--bind", bind, "--balancer", "none"]
        done = subprocess.run([*AIOLB, *options], capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert (done.returncode, done.stdout) == (3, "")
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"aiolb: error: {bind} is held by a socket without SO_REUSEPORT (pid {os.getpid()}, user ")
    assert hint == "  hint: stop that process, or choose another port"


def test_no_such_address():
    """An address that this machine does not have is told with a hint."""
    options = ["serve", "discard", "--bind", "192.0.2.1:9", "--balancer", "none"]
    assert lines_of(invoke(options)) == (
        3,
        [
            "aiolb: error: cannot bind 192.0.2.1:9: Cannot assign requested address",
            "  hint: use an address of this machine (ip address), or 0.0.0.0 for all",
        ],
    )


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("4096", 4096), ("64k", 65536), ("64KiB", 65536), ("20M", 20 << 20), ("1g", 1 << 30)]
)
def test_sizes(text, size):
    """Sizes are bytes, or have a unit of 1,024."""
    assert Size().convert(text, None, None) == size


def test_the_defaults_of_the_command_line_are_those_of_the_library():
    """Without options the command line serves as ServeConfig() does."""
    options = {option.name: option.default for option in serve.params}
    assert Size().convert(options.pop("rcvbuf"), None, None) == ServeConfig().rcvbuf
    assert options["binds"] == [str(address) for address in ServeConfig().bind]
    for name in ("index", "balancer", "graceful_timeout", "concurrency", "backlog", "loop", "bpffs"):
        assert options[name] == getattr(ServeConfig(), name)


HEAVY = {"asyncio", "uvloop", "structlog", "rich", "aiolb.server", "aiolb.publisher"}


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["demo", "--help"], ["serve", "--index", "-1"]])
def test_help_is_light(arguments):
    """Help, and the news of a wrong number, import nothing that takes its time, and no other command."""
    source = (
        "import sys\nfrom aiolb.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    print('loaded', *sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert loaded[0] == "loaded"
    assert HEAVY.isdisjoint(loaded)
    commands = {name for name in ("serve", "demo", "top") if f"aiolb.cli.{name}" in loaded}
    assert commands == ({"serve", "demo", "top"} if arguments[0] == "--help" else {arguments[0]})


# Processes


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_json_log(member, app, client, loop):
    """Every line of the log is JSON and names the member, also what the app logs itself and what failed."""
    process, ready = await member(f"{app}:Good", *ALONE, "--index", "1", "--count", "2", "--event-loop", loop)
    where = address_of(ready)
    assert [await asyncio.to_thread(client, where, datagram) for datagram in (b"hi", b"bad", b"log")] == [
        b"hi",
        b"sorry",
        b"log",
    ]
    report = await process.stop()
    assert [event["event"] for event in process.events] == [
        "ready",
        "handler_error",
        "careful",
        "signal",
        "stopping",
        "stopped",
    ]
    assert len(process.events) == len(process._tail), "a line was no JSON"
    for event in process.events:
        assert (event["index"], event["count"], event["bind"]) == (1, 2, ready["bind"])
        assert event["timestamp"].endswith("Z")
    assert [event["level"] for event in process.events] == ["info", "error", "warning", "info", "info", "info"]
    assert process.events[1]["exception"][0]["exc_value"] == "bad datagram"
    assert ready["pid"] == report["pid"] == process.process.pid
    assert (report["received"], report["handled"], report["errors"], report["sent"]) == (3, 2, 1, 3)
    assert report["collector"] == {}


async def test_console_log(launch):
    """The log for people has one line for each event, with the member and what it says."""
    process = await launch("serve", "echo", *ALONE)
    line = await process.until("ready")
    assert re.fullmatch(
        r"[\d-]{10} [\d:]{8} \[info     \] ready            index=0 count=1 bind=127.0.0.1:\d+ "
        rf"balancer=none pid={process.process.pid}\n",
        line,
    )
    process.process.send_signal(signal.SIGINT)
    status, rest = await process.end()
    assert status == 0
    assert [line.split()[4] for line in rest.splitlines()] == ["signal", "stopping", "stopped"]


async def test_log_level(launch):
    """With a higher level the log is silent."""
    with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
        process = await launch("serve", "print", "--bind", str(address), "--balancer", "none", "--log-level", "error")

        def pids():
            return {holder.pid for holder in sockets.holders_of(address)}

        async with asyncio.timeout(DEADLINE):
            while process.process.pid not in await asyncio.to_thread(pids):  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0.01)
    process.process.terminate()
    assert await process.end() == (0, "")


async def test_print(launch):
    """`aiolb serve` prints a line for each datagram."""
    process = await launch("serve", *ALONE)
    await process.ready()
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.connect(process.address)
        source = f"127.0.0.1:{sock.getsockname()[1]}"
        for datagram in (b"hello", b"\0\xff" * 100):
            sock.send(datagram)
    assert await process.line("stdout") == f"{source:<21}      5 bytes  hello\n"
    assert await process.line("stdout") == f"{source:<21}    200 bytes  {'.' * PREVIEW}…\n"
    process.process.terminate()
    assert (await process.end())[0] == 0


async def test_print_into_a_closed_pipe(launch):
    """When its reader goes away (`aiolb serve | head`), print stops gracefully, with exit status 0."""
    reader, writer = os.pipe()
    process = await launch("serve", "print", *ALONE, stdout=writer)
    os.close(writer)
    await process.ready()
    os.close(reader)
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", process.address)
    status, rest = await process.end()
    assert status == 0
    assert [line.split()[4] for line in rest.splitlines()] == ["stopping", "stopped"]


async def test_a_closed_log(launch, client, tmp_path):
    """When nobody reads its log any more, a collector goes on, stops gracefully, and writes its report."""
    reader, writer = os.pipe()
    report = tmp_path / "report.json"
    command = ["serve", "echo", *ALONE, "--report", str(report), "--log-format", "json"]
    process = await launch(*command, stderr=writer)
    os.close(writer)
    with os.fdopen(reader) as log:
        where = address_of(json.loads(await asyncio.to_thread(log.readline)))
    assert await asyncio.to_thread(client, where, b"x") == b"x"
    process.process.terminate()
    async with asyncio.timeout(DEADLINE):
        assert await process.process.wait() == 0
    assert json.loads(report.read_text())["handled"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_during_startup(launch, app, number):
    """A collector that is told to stop while it starts does so, with exit status 0."""
    process = await launch("serve", f"{app}:Slow", *ALONE)
    assert await process.line("stdout") == "starting\n"
    process.process.send_signal(number)
    status, rest = await process.end()
    assert status == 0
    assert [line.split()[4] for line in rest.splitlines()] == ["signal"]
    assert await process.line("stdout") == ""


async def test_a_script_of_ones_own(launch, tmp_path, client):
    """A class can be run from a script, with the same log and the same end."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'examples')!r})\nfrom echo_collector import Echo\n"
        'Echo.run(bind="127.0.0.1:0", index=0, count=1, balancer="none")\nprint("after")\n'
    )
    process = await launch(str(script), command=[sys.executable])
    await process.ready()
    assert await asyncio.to_thread(client, process.address, b"hello") == b"hello"
    process.process.send_signal(signal.SIGINT)
    status, rest = await process.end()
    assert (status, await process.line("stdout")) == (0, "after\n")
    assert "handled=1" in rest.splitlines()[-1]


async def test_without_privileges(powerless, tmp_path):
    """Without capabilities a collector serves with the classic balancer, and warns of all that it misses."""
    (tmp_path / "bpffs").mkdir()
    process = MemberProcess(
        "discard",
        *["--bind", "127.0.0.1:0", "--rcvbuf", "512M", "--bpffs", str(tmp_path / "bpffs")],
        report=tmp_path / "report.json",
    )
    if powerless:
        become = f"import os, sys; os.execv({powerless[0]!r}, {[*powerless, sys.executable]!r} + sys.argv[1:])"
        process._command = ["-c", become, *process._command]
    async with process:
        async with asyncio.timeout(DEADLINE):
            ready = await process.ready()
        await process.stop()
    assert ready["balancer"] == "classic"
    fallback, capped = list(process.events)[:2]
    assert (fallback["event"], fallback["level"]) == ("balancer_fallback", "warning")
    assert fallback["missing"].startswith("no failover, slots, takeover or aiolb status")
    assert fallback["reason"]
    assert fallback["hint"]
    assert (capped["event"], capped["level"]) == ("receive_buffer_capped", "warning")
    assert (capped["wanted"], capped["given"]) == (512 << 20, RMEM_MAX)
    assert capped["hint"] == f"as root: sysctl -w net.core.rmem_max={512 << 20}"
    assert not (tmp_path / "bpffs").exists() or not list((tmp_path / "bpffs").iterdir())


AS_NOBODY = """
import os, sys
import asyncio, uvloop, structlog, aiolb.application, aiolb.collector, aiolb.server, aiolb.cli.main
import encodings.idna, rich.console
os.setgroups([])
os.setgid({user})
os.setuid({user})
aiolb.cli.main.main(sys.argv[1:])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user(launch):
    """A real user without privileges gets members of a classic group, and may not enter the port of another user."""
    command = [sys.executable, "-c", AS_NOBODY.format(user=NOBODY)]
    with sockets.reserved_port(Address("127.0.0.1", 0)) as ours:
        refused = await launch("serve", "discard", "--bind", str(ours), "--log-format", "json", command=command)
        status, said = await refused.end()
    lines = said.splitlines()
    assert (status, len(lines)) == (3, 2), said
    assert lines[0].startswith(f"aiolb: error: {ours} is held by another user (")
    assert lines[1] == "  hint: all sockets of a group need the same effective user"

    first = await launch("serve", "discard", "--bind", "127.0.0.1:0", "--count", "2", command=command)
    await first.ready()
    bind = ["--bind", "{}:{}".format(*first.address)]
    second = await launch("serve", "discard", *bind, "--index", "1", "--count", "2", command=command)
    await second.ready()
    for process in (first, second):
        process.process.terminate()
        assert (await process.end())[0] == 0


# Members that another command starts


async def test_a_member_that_cannot_start(tmp_path):
    """What a member said when it failed is the error of whoever started it."""
    async with MemberProcess("nonsense", report=tmp_path / "report.json") as process:
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(StartError, match="a member did not start: 'nonsense' names no collector") as caught:
                await process.ready()
            with pytest.raises(StartError, match="a member ended with status 2: 'nonsense' names no collector"):
                await process.stop()
    assert caught.value.hint.startswith("write it as FILE.py:Class")


async def test_a_member_that_dies(member):
    """The end of a dead member's log is the error of whoever waits for it."""
    process, _ = await member("discard", *ALONE)
    process.process.kill()
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(StartError, match="a member ended, and never was stopped:") as caught:
            await process.event("stopped")
        with pytest.raises(StartError, match="a member ended with status -9:"):
            await process.ended()
    assert '"event": "ready"' in str(caught.value)


async def test_a_member_is_killed_at_the_end(tmp_path):
    """A member that still runs at the end of the block is killed."""
    async with MemberProcess("discard", *ALONE, report=tmp_path / "report.json") as process:
        async with asyncio.timeout(DEADLINE):
            await process.ready()
    assert process.process.returncode == -signal.SIGKILL
