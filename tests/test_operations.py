"""Operations: one after the other, in their order, until the end."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from aiolb.errors import ConfigurationError
from aiolb.operations import Operations


class Supervisor:
    """Asks for operations, and notes which began and ended."""

    def __init__(self):
        self.stopping = asyncio.Event()
        self.operations = Operations(self.stopping)
        self.noted = []
        self.held = asyncio.Event()
        self.begun = asyncio.Event()

    async def hold(self):
        """Take until somebody lets it go on."""
        self.noted.append("begin")
        self.begun.set()
        await self.held.wait()
        self.noted.append("end")

    async def note(self):
        """Take no time."""
        self.noted.append("note")

    async def refuse(self):
        """Fail as operations may."""
        raise ConfigurationError("no", hint="yes")

    async def stop(self):
        """End it all."""
        self.stopping.set()


@pytest.fixture
def supervisor():
    """Operations, and what becomes of them."""
    return Supervisor()


async def test_one_after_the_other(supervisor):
    """What is asked for while another one is under way waits for its end, also if it was asked for before the begin."""
    supervisor.operations.ask(supervisor.hold)
    running = asyncio.create_task(supervisor.operations.run())
    await supervisor.begun.wait()
    supervisor.operations.ask(supervisor.note)
    supervisor.operations.ask(supervisor.note)
    supervisor.operations.ask(supervisor.stop)
    supervisor.held.set()
    await running
    assert supervisor.noted == ["begin", "end", "note", "note"]


async def test_the_same_again(supervisor):
    """Without ``again`` one that waits is enough, and one that is under way is done once more."""
    running = asyncio.create_task(supervisor.operations.run())
    for _ in range(2):
        supervisor.operations.ask(supervisor.hold, again=False)
    await supervisor.begun.wait()
    for _ in range(2):
        supervisor.operations.ask(supervisor.hold, again=False)
    supervisor.operations.ask(supervisor.stop)
    supervisor.held.set()
    await running
    assert supervisor.noted == ["begin", "end"] * 2


async def test_the_end(supervisor):
    """What is under way at the end is done, and nothing after it."""
    running = asyncio.create_task(supervisor.operations.run())
    supervisor.operations.ask(supervisor.hold)
    supervisor.operations.ask(supervisor.note)
    await supervisor.begun.wait()
    supervisor.stopping.set()
    supervisor.held.set()
    await running
    assert supervisor.noted == ["begin", "end"]


async def test_the_end_of_an_idle_one(supervisor):
    """With nothing to do it ends as well."""
    running = asyncio.create_task(supervisor.operations.run())
    await asyncio.sleep(0)
    supervisor.stopping.set()
    await running


async def test_one_that_fails(supervisor):
    """What cannot be done is logged, and the next one is done."""
    for operation in (supervisor.refuse, supervisor.note, supervisor.stop):
        supervisor.operations.ask(operation)
    with capture_logs() as logs:
        await supervisor.operations.run()
    assert logs == [{"event": "operation_failed", "log_level": "error", "reason": "no", "hint": "yes"}]
    assert supervisor.noted == ["note"]


async def test_a_defect(supervisor):
    """Any other error stops the supervisor, which raises it."""

    async def break_down():
        raise ZeroDivisionError

    supervisor.operations.ask(break_down)
    with pytest.raises(ZeroDivisionError):
        await supervisor.operations.run()
    assert supervisor.stopping.is_set()
