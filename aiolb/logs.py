"""Log output: structlog events on standard error, for people or for machines."""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import Any, TextIO

import structlog

MEMBER: ContextVar[dict[str, Any]] = ContextVar("aiolb_member")
"""What every log line says of the member whose server runs in this context: index, count, bind."""

FORMATS = ("console", "json")
LEVELS = ("debug", "info", "warning", "error")


def add_member(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Processor for structlog: add ``MEMBER`` to an event; what the event says itself comes first."""
    return {**MEMBER.get({}), **event}


def configure(log_format: str = "console", level: str = "info", stream: TextIO | None = None) -> None:
    """Write every event from ``level`` up as one line to ``stream`` (default: standard error)."""
    stream = stream or sys.stderr
    renderer: structlog.typing.Processor
    if log_format == "json":
        shared = [structlog.processors.dict_tracebacks]
        renderer = structlog.processors.JSONRenderer()
    else:
        shared = []
        renderer = structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            add_member,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *shared,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
