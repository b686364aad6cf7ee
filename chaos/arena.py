"""Where one scenario takes place: a ledger, processes that mark in it, a publisher, and the verdict."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Self, TypeVar

from aiolb.bpf.group import Group
from aiolb.publisher import Publisher
from chaos.behaviour import BROKEN, LEDGER
from chaos.findings import Findings
from chaos.ledger import Ledger, Process
from chaos.processes import ScenarioError, Served, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiolb.address import Address

ROOT = Path(__file__).parent.parent
FIRST_SOURCE = IPv4Address("127.0.0.2")
"""The address of the publisher's source 0; the others follow."""
RCVBUF = "64M"
KEPT_SOCKETS = 64
CAPACITY = 1 << 17
"""Datagrams of one source that the ledger has room for."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Load:
    """What the publisher sends: datagrams per second, sources."""

    rate: float
    sources: int


SHORT = Load(rate=2_000, sources=50)
LONG = Load(rate=20_000, sources=200)


@dataclass(slots=True)
class Verdict:
    """What a scenario found; ``broken`` says what does not hold."""

    findings: Findings
    remark: str = ""
    expected_split: frozenset[int] = frozenset()
    lost: int = 0
    split: int = 0
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lost = self.findings.lost
        self.split = len(self.findings.split - self.expected_split)
        self.require_none("duplicated", self.findings.duplicated)
        self.require_none("stray", self.findings.stray)
        self.require_none("split", self.split)

    def require(self, holds: object, what: str) -> None:
        """Note what does not hold."""
        if not holds:
            self.broken.append(what)

    def require_none(self, name: str, number: int) -> None:
        """Note that there is something of which there must be nothing."""
        self.require(number == 0, f"{number:,} {name}")

    def require_nothing_lost(self) -> None:
        """Every datagram that was sent was handled."""
        self.require_none("lost", self.lost)
        self.require(
            sum(process.handled for process in self.findings.processes.values()) == self.findings.received,
            "the processes' own counts do not add up",
        )

    def require_order(self) -> None:
        """Every source was handled in order, whatever happened."""
        self.require_none("reordered", self.findings.reordered)


class Arena:
    """A context manager; the folder is for its files. ``short`` chooses the load, and the numbers of ``choose``."""

    def __init__(self, folder: Path, *, short: bool, seed: int | None = None) -> None:
        self.short = short
        self.load = SHORT if short else LONG
        self.random = Random(seed)  # noqa: S311 - it chooses victims
        self._folder = folder
        self._numbers = itertools.count()
        self._stack = AsyncExitStack()
        self._publisher: Publisher | None = None
        self._sending: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> Self:
        path = self._folder / "ledger"
        with ExitStack() as stack:
            self.ledger = stack.enter_context(Ledger.create(path, sources=self.load.sources, capacity=CAPACITY))
            self.broken = self._folder / "broken"
            python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
            stack.enter_context(_environment({LEDGER: str(path), BROKEN: str(self.broken), "PYTHONPATH": python_path}))
            self._stack.push(stack.pop_all())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def choose(self, *, long: _T, short: _T) -> _T:
        """What belongs to the chosen version."""
        return short if self.short else long

    # Processes

    async def supervisor(self, *options: str, app: str = "Marking", workers: int = 3, bind: str = "") -> Served:
        """A supervisor whose workers receive."""
        served = await self._serve(app, "--bind", bind or "127.0.0.1:0", "--workers", str(workers), *options)
        await served.until_said("supervising")
        return served

    async def member(self, address: Address, index: int, *options: str, app: str = "Marking") -> Served:
        """A single member that receives."""
        served = await self._serve(app, "--bind", str(address), "--index", str(index), *options)
        await served.until_said("ready")
        return served

    def command(self, *arguments: str, app: str = "Marking") -> list[str]:
        """The command line of a collector that somebody else starts."""
        return [sys.executable, "-m", "aiolb", "serve", f"chaos.collectors:{app}", "--rcvbuf", RCVBUF, *arguments]

    async def manager(self, command: Sequence[str]) -> Any:
        """A service manager that keeps sockets, and under which the command is ready."""
        # It is the tests', whose types are not checked.
        stand_in = import_module("tests.service_manager")
        manager = await self._stack.enter_async_context(stand_in.ServiceManager(store=KEPT_SOCKETS))
        await self.start_again(manager, command)
        return manager

    @staticmethod
    async def start_again(manager: Any, command: Sequence[str]) -> None:
        """Let the service manager start the command, with the sockets that it keeps, and wait until it is ready."""
        await manager.start(*command, stderr=asyncio.subprocess.DEVNULL)
        await manager.told("READY=1")

    async def _serve(self, app: str, *arguments: str) -> Served:
        report = self._folder / f"report-{next(self._numbers)}.json"
        # The last one of an option counts.
        served = Served(f"chaos.collectors:{app}", "--rcvbuf", RCVBUF, *arguments, report=report)
        return await self._stack.enter_async_context(served)

    def process_of(self, member: int) -> Process:
        """The newest process of a member, as the ledger has it."""
        return [process for process in self.ledger.processes if process.member == member][-1]

    # The publisher

    async def publish(self, address: Address, **settings: Any) -> None:
        """Begin to send, and wait until something of every source was handled."""
        settings = {"rate": self.load.rate, "sources": self.load.sources, "stamp": True} | settings
        self._publisher = await self._stack.enter_async_context(Publisher(address, **settings))
        self._sending = asyncio.create_task(self._publisher.run())
        self._stack.push_async_callback(self.stop_publishing)
        await self.all_get_through()

    @property
    def sent(self) -> dict[int, int]:
        """Datagrams sent so far, by source."""
        assert self._publisher is not None  # noqa: S101 - publish() came before
        per_source = self._publisher.statistics().sent_per_source
        return {int(IPv4Address(address)) - int(FIRST_SOURCE): sent for address, sent in per_source.items()}

    async def sends(self, datagrams: float) -> None:
        """Wait until so many more datagrams were sent."""
        publisher = self._publisher
        assert publisher is not None  # noqa: S101 - publish() came before
        # Not the deadline for all of them: they may be many.
        end = publisher.statistics().sent + datagrams
        while (now := publisher.statistics().sent) < end:
            if self._sending is not None and self._sending.done():
                raise ScenarioError("the publisher ended too early")
            await until(lambda now=now: publisher.statistics().sent > now, "a datagram is sent")  # type: ignore[misc]

    async def handled(self, sent: Mapping[int, int] | None = None) -> None:
        """Wait until of each source the last one of these was handled; by default of what is sent by now."""
        sent = self.sent if sent is None else sent
        await until(lambda: self.ledger.has_reached(sent), "what was sent is handled")

    async def all_get_through(self) -> None:
        """Wait until of each source something was handled that was sent after now."""
        await self.handled({source: sent + 1 for source, sent in self.sent.items()})

    async def stop_publishing(self) -> None:
        """Send no more. Idempotent."""
        if self._publisher is not None and self._sending is not None:
            self._publisher.stop()
            await self._sending

    # The end

    async def end(self, served: Served) -> dict[str, Any]:
        """Stop the publisher, then a supervisor or a member; its report."""
        await self.stop_publishing()
        served.signal(signal.SIGTERM)
        return await served.ended()

    def group(self, address: Address) -> closing[Group]:
        """The group at an address."""
        return closing(Group.open(address))

    def verdict(self, remark: str = "", *, expected_split: frozenset[int] = frozenset()) -> Verdict:
        """What became of everything that was sent, when no process is left that could handle it."""
        return Verdict(Findings(self.ledger, self.sent), remark, expected_split)


def address_of(source: int) -> IPv4Address:
    """The address of a source of the publisher."""
    return FIRST_SOURCE + source


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
