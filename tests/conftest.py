"""What all tests share: Hypothesis settings, required tools, and the proof that a test leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import documents
import pytest
import structlog.testing
import uvloop
from deadline import DEADLINE
from events import children
from hypothesis import settings

from aiolb import loops
from aiolb.bpf import compiler
from aiolb.bpf.spec import ProgramSpec
from aiolb.errors import CompileError
from aiolb.receive import choose
from aiolb.receive.choose import Parts

pytest_plugins = ["aiolb.testing.plugin"]

IN_CI = os.environ.get("CI") == "true"


# A slow machine is no defect; in CI the same examples every time.
settings.register_profile("aiolb", deadline=None, derandomize=IN_CI, database=None)
settings.load_profile("aiolb")


def pytest_configure() -> None:
    """Let SIGINT reach what tests start, also where a script runs them in the background: there it is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _missing(reason: str) -> None:
    """Skip on a laptop, fail in CI: there, everything is installed."""
    if IN_CI:
        pytest.fail(f"needed in CI: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def missing() -> Callable[[str], None]:
    """Report something that the machine lacks: ``missing(reason)`` skips on a laptop and fails in CI."""
    return _missing


@pytest.fixture(scope="session")
def needs() -> Callable[[str, str], str]:
    """The path of a tool: ``needs(command, debian_package)`` skips on a laptop without it and fails in CI."""

    def find(command: str, package: str) -> str:
        path = shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if path is None:
            _missing(f"{command} is not installed (apt-get install {package})")
        return str(path)

    return find


@pytest.fixture(scope="session")
def promtool(needs: Callable[[str, str], str]) -> Callable[..., str]:
    """What promtool says, to which nothing may be wrong: ``promtool("check", "metrics", text=metrics)``."""
    program = needs("promtool", "prometheus")

    def run(*arguments: str | Path, text: str | None = None) -> str:
        command = [program, *map(str, arguments)]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="session", params=["plain", "fast"])
def parts(request: pytest.FixtureRequest) -> Parts:
    """The interchangeable parts: a test with this runs on the plain ones and on the compiled ones."""
    if request.param == "plain":
        return choose.PLAIN
    try:
        return choose.compiled()
    except ImportError as error:
        if os.environ.get(choose.REQUIRE_FAST) == "1":
            raise
        pytest.skip(f"the compiled parts are not built: {error}")


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Wait for a condition: ``wait_until(lambda: ..., "what")`` fails after the deadline."""

    def wait(condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"did not happen within {DEADLINE:g} s: {what}")
            time.sleep(0.005)

    return wait


@pytest.fixture(scope="session")
def ip_as_root(needs: Callable[[str, str], str]) -> str:
    """The path of iproute2's ``ip``, for namespaces with the eBPF balancer, which take root."""
    if os.geteuid() != 0:
        _missing("needs root, for namespaces and the eBPF balancer")
    return needs("ip", "iproute2")


@pytest.fixture
def namespaces(tmp_path: Path, ip_as_root: str) -> Iterator[documents.Namespaces]:
    """A network and a mount namespace with a bpffs, for the commands of a document, which run in ``tmp_path``."""
    with documents.opened(tmp_path, ip_as_root) as made:
        yield made


@pytest.fixture(scope="session")
def compiled() -> ProgramSpec:
    """The balancer compiled by bcc now; skips without bcc, and fails in CI."""
    return _compile(debug=False)


@pytest.fixture(scope="session")
def compiled_debug() -> ProgramSpec:
    """The same, built so that it traces every decision: another program."""
    return _compile(debug=True)


def _compile(*, debug: bool) -> ProgramSpec:
    try:
        return compiler.compile_balancer(debug=debug)
    except CompileError as error:
        _missing(str(error))
        raise


def _descriptors() -> dict[str, str]:
    found = {}
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found[descriptor.name] = str(descriptor.readlink())
        except FileNotFoundError:  # the one that lists the folder
            continue
    return found


def _namespaces() -> set[str]:
    folder = Path("/run/netns")
    return {path.name for path in folder.glob(f"aiolb-test-{os.getpid()}-*")} if folder.is_dir() else set()


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fail a test that leaves a descriptor, a child process or a network namespace behind."""
    before = _descriptors(), children(os.getpid()), _namespaces()
    yield
    gc.collect()
    after = _descriptors(), children(os.getpid()), _namespaces()
    opened = {number: name for number, name in after[0].items() if before[0].get(number) != name}
    assert not opened, f"left open: {opened}"
    assert after[1] <= before[1], "child processes left"
    assert after[2] <= before[2], "network namespaces left"


@pytest.fixture
def logged() -> Iterator[list[structlog.typing.EventDict]]:
    """The events that a test logs, which are not shown."""
    with structlog.testing.capture_logs() as events:
        yield events


@pytest.fixture
def logs_as_before() -> Iterator[None]:
    """A test with this leaves no configuration of the log behind."""
    yield
    structlog.reset_defaults()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Let the collector of garbage look no more at what is there for good: ``nothing_left`` calls it for each test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _uvloop_was_used() -> None:
    """The first loop of a process makes a pipe that libuv keeps for signals: let no test be blamed for it."""
    uvloop.new_event_loop().close()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Run a coroutine on each event loop; nothing may reach the loop's exception handler."""
    unhandled = []

    async def within_deadline(coroutine):
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        async with asyncio.timeout(DEADLINE):
            return await coroutine

    def runner(coroutine):
        with loops.runner(request.param) as loop_runner:
            return loop_runner.run(within_deadline(coroutine))

    yield runner
    assert unhandled == []
