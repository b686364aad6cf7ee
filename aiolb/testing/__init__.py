"""Tools to test one's own collectors with; :mod:`aiolb.testing.plugin` has the same as pytest fixtures."""

from aiolb.testing.fake import SOURCE as SOURCE
from aiolb.testing.fake import FakeMember as FakeMember
from aiolb.testing.fake import collector as collector
from aiolb.testing.outcomes import UnhandledError as UnhandledError
from aiolb.testing.running import RunningGroup as RunningGroup
from aiolb.testing.running import group as group

__all__ = ["SOURCE", "FakeMember", "RunningGroup", "UnhandledError", "collector", "group"]
