"""What a supervisor tells a worker when it starts it: the application, its place, its sockets, its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from aiolb.address import parse_address
from aiolb.config import ServeConfig

_SETTINGS = ("protocol", "rcvbuf", "graceful_timeout", "concurrency", "backlog", "loop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One worker's work; it travels as an argument of the worker's command line.

    ``sockets``: address and descriptor of each bound socket. ``reports``: the descriptor of the memory for each of
    them in which it tells of itself (:class:`aiolb.bpf.shared_reports.SharedReports`).
    ``tally``: descriptor of its :class:`aiolb.tally.Tally`. ``user``: whom to run as. ``kept``: a service manager
    keeps the sockets too, so that their queues outlive the supervisor. ``beat``: seconds between two signs of life.
    ``log``: the arguments of :func:`aiolb.logs.configure`.
    """

    app: str
    index: int
    count: int
    balancer: str
    sockets: tuple[tuple[str, int], ...]
    reports: tuple[int, ...] = ()
    tally: int = -1
    user: str | None = None
    kept: bool = False
    beat: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    log: Mapping[str, Any] = field(default_factory=dict)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that it names, but for the tally."""
        return (*(number for _, number in self.sockets), *self.reports)

    @staticmethod
    def settings_of(config: ServeConfig) -> dict[str, Any]:
        """The settings that a worker needs to know of."""
        return {name: getattr(config, name) for name in _SETTINGS}

    def config(self) -> ServeConfig:
        """How the worker serves."""
        addresses = tuple(parse_address(text) for text, _ in self.sockets)
        return ServeConfig(bind=addresses, index=self.index, count=self.count, balancer=self.balancer, **self.settings)

    def to_text(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read what ``to_text`` wrote."""
        content = json.loads(text)
        pairs = tuple((address, descriptor) for address, descriptor in content.pop("sockets"))
        return cls(sockets=pairs, reports=tuple(content.pop("reports")), **content)
