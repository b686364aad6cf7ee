"""aiolb: many collector processes share one UDP port, and eBPF keeps each source on one of them."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiolb.address import Address as Address
    from aiolb.bound import bind as bind
    from aiolb.bpf.changes import SlotsChange as SlotsChange
    from aiolb.bpf.location import Location as Location
    from aiolb.bpf.statistics import GroupStatistics as GroupStatistics
    from aiolb.collector import Collector as Collector
    from aiolb.config import ServeConfig as ServeConfig
    from aiolb.errors import AiolbError as AiolbError
    from aiolb.errors import ConfigurationError as ConfigurationError
    from aiolb.errors import StartError as StartError
    from aiolb.group_view import GroupView as GroupView
    from aiolb.group_view import OpenGroup as OpenGroup
    from aiolb.group_view import open_group as open_group
    from aiolb.place import Place as Place
    from aiolb.place import join as join
    from aiolb.publisher import Publisher as Publisher
    from aiolb.send.statistics import PublisherStatistics as PublisherStatistics
    from aiolb.server import Server as Server
    from aiolb.stats import CollectorStatistics as CollectorStatistics
    from aiolb.stats import StreamStatistics as StreamStatistics
    from aiolb.stream import StreamCollector as StreamCollector

# Imported when first asked for: asyncio, structlog and uvloop take 0.2 s, and `aiolb --help` needs none of them.
_HOMES = {
    "Address": "aiolb.address",
    "AiolbError": "aiolb.errors",
    "Collector": "aiolb.collector",
    "CollectorStatistics": "aiolb.stats",
    "ConfigurationError": "aiolb.errors",
    "GroupStatistics": "aiolb.bpf.statistics",
    "GroupView": "aiolb.group_view",
    "Location": "aiolb.bpf.location",
    "OpenGroup": "aiolb.group_view",
    "Place": "aiolb.place",
    "Publisher": "aiolb.publisher",
    "PublisherStatistics": "aiolb.send.statistics",
    "ServeConfig": "aiolb.config",
    "Server": "aiolb.server",
    "SlotsChange": "aiolb.bpf.changes",
    "StartError": "aiolb.errors",
    "StreamCollector": "aiolb.stream",
    "StreamStatistics": "aiolb.stats",
    "bind": "aiolb.bound",
    "join": "aiolb.place",
    "open_group": "aiolb.group_view",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
