"""Tools to test one's own collectors with; :mod:`aiolb.testing.plugin` has the same as pytest fixtures."""

from aiolb.testing.fake import FakeMember as FakeMember
from aiolb.testing.fake import collector as collector
from aiolb.testing.fake_base import SOURCE as SOURCE
from aiolb.testing.fake_streams import FakeConnection as FakeConnection
from aiolb.testing.fake_streams import FakeStreamMember as FakeStreamMember
from aiolb.testing.outcomes import UnhandledError as UnhandledError
from aiolb.testing.running import RunningGroup as RunningGroup
from aiolb.testing.running import group as group
from aiolb.testing.running_streams import RunningStreamGroup as RunningStreamGroup

__all__ = [
    "SOURCE",
    "FakeConnection",
    "FakeMember",
    "FakeStreamMember",
    "RunningGroup",
    "RunningStreamGroup",
    "UnhandledError",
    "collector",
    "group",
]
