"""The tools as fixtures of pytest-asyncio: write ``pytest_plugins = ["aiolb.testing.plugin"]`` in conftest.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any, Protocol, overload

import pytest_asyncio

from aiolb.testing.fake import FakeMember, collector
from aiolb.testing.fake_streams import FakeStreamMember
from aiolb.testing.running import RunningGroup, group
from aiolb.testing.running_streams import RunningStreamGroup
from aiolb.testing.watched import C, S


class StartCollector(Protocol):
    """What the fixture ``aiolb_collector`` is."""

    @overload
    async def __call__(self, app: C | Callable[[], C], **settings: Any) -> FakeMember[C]: ...

    @overload
    async def __call__(self, app: S | Callable[[], S], **settings: Any) -> FakeStreamMember[S]: ...

    async def __call__(self, app: Any, **settings: Any) -> Any:
        """Start a collector without a socket; arguments and errors are those of :func:`aiolb.testing.collector`."""


class StartGroup(Protocol):
    """What the fixture ``aiolb_group`` is."""

    @overload
    async def __call__(self, app: Callable[[], C], **settings: Any) -> RunningGroup[C]: ...

    @overload
    async def __call__(self, app: Callable[[], S], **settings: Any) -> RunningStreamGroup[S]: ...

    async def __call__(self, app: Callable[[], Any], **settings: Any) -> Any:
        """Start a group on a free port; arguments and errors are those of :func:`aiolb.testing.group`."""


@pytest_asyncio.fixture
async def aiolb_collector() -> AsyncIterator[StartCollector]:
    """Start collectors without sockets, and stop them when the test is over: call it as ``collector()``."""
    async with AsyncExitStack() as stack:

        async def start(app: Any, **settings: Any) -> Any:
            return await stack.enter_async_context(collector(app, **settings))

        yield start


@pytest_asyncio.fixture
async def aiolb_group() -> AsyncIterator[StartGroup]:
    """Start groups on free ports, and stop them when the test is over: call it as ``group()``."""
    async with AsyncExitStack() as stack:

        async def start(app: Callable[[], Any], **settings: Any) -> Any:
            return await stack.enter_async_context(group(app, **settings))

        yield start
