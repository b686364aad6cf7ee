"""Log output: structlog events on standard error or in a file, for people or for machines."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol, TextIO

import structlog

from aiolb.log_file import LogFile

MEMBER: ContextVar[dict[str, Any]] = ContextVar("aiolb_member")
"""What every log line says of the member whose server runs in this context: index, count, bind."""

FORMATS = ("console", "json")
LEVELS = ("debug", "info", "warning", "error")

_EVENT_WIDTH = 16

_FILES: list[LogFile] = []  # the one that is written to, if any

_log = structlog.get_logger(__name__)


class _Stream(Protocol):
    """What is needed of a stream; TextIO and LogFile have it."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...

    def isatty(self) -> bool: ...

    def fileno(self) -> int: ...


def add_member(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Processor for structlog: add ``MEMBER`` to an event; what the event says itself comes first.

    Who joins without a count does not know it before.
    """
    return {**{name: value for name, value in MEMBER.get({}).items() if value is not None}, **event}


def drop_empty_hint(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Processor for structlog: an event whose hint is None has none; not every error has one to pass on."""
    if event.get("hint", "") is None:
        del event["hint"]
    return event


def configure(
    log_format: str = "console",
    level: str = "info",
    stream: TextIO | None = None,
    *,
    file: str | Path | None = None,
    owner: tuple[int, int] | None = None,
) -> None:
    """Write every event from ``level`` up as one line to ``stream`` (default: standard error); a file comes first.

    ``file`` is the name of one to append to, open until the next ``configure``; if it has to be made, it belongs to
    ``owner`` (uid, gid), for those who log without the privileges of this process. What others write through
    ``logging`` or ``warnings`` goes to the same place in the same format, unless ``logging`` was set up before. A line
    that cannot be written is lost, and nothing else. Raises ConfigurationError, and changes nothing, when the file
    cannot be opened.
    """
    opened = [] if file is None else [LogFile(Path(file), owner=owner)]
    output = _Output(opened[0] if opened else stream or sys.stderr)
    final = _json() if log_format == "json" else _console(output.isatty())
    common: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_member,
        drop_empty_hint,
        structlog.processors.add_log_level,
        _timestamper(log_format),
    ]
    structlog.configure(
        processors=[*common, *final],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(output),  # type: ignore[arg-type] # it writes, and that is all
        cache_logger_on_first_use=False,
    )
    _take_over_logging(output, common, final)
    for old in _FILES:
        old.close()
    _FILES[:] = opened


def reopen() -> None:
    """Open the log file by its name again, e.g. after logrotate moved it; without a log file, do nothing.

    When it cannot be opened, the log goes on in the old one and says so.
    """
    for file in _FILES:
        try:
            file.reopen()
        except OSError as error:
            hint = "this is the old file; SIGUSR1 tries again"
            _log.error("log_reopen_failed", file=str(file.path), reason=error.strerror, hint=hint)
        else:
            _log.info("log_reopened", file=str(file.path))


def _json() -> list[structlog.typing.Processor]:
    return [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]


def _console(colors: bool) -> list[structlog.typing.Processor]:
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(_EVENT_WIDTH, colors=colors, sort_keys=False, exception_formatter=plain)]


def _timestamper(log_format: str) -> structlog.typing.Processor:
    if log_format == "json":
        return structlog.processors.TimeStamper(fmt="iso", utc=True)
    return structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False)


def silence(stream: _Stream) -> None:
    """Lead a stream whose reader has gone to /dev/null: else its flush at exit fails, and the exit status with it."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class _Output:
    """A stream that never raises: a collector must not stop because its log cannot be written."""

    def __init__(self, stream: _Stream | None) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        self._do(lambda stream: stream.write(text))

    def flush(self) -> None:
        self._do(lambda stream: stream.flush())

    def _do(self, work: Callable[[_Stream], object]) -> None:
        if self._stream is None:  # the process was started without standard error
            return
        try:
            work(self._stream)
        except BrokenPipeError:
            silence(self._stream)
        except (OSError, ValueError):  # a full disk; a stream that was closed
            pass

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()


class _Handler(logging.StreamHandler[Any]):
    """Ours, so that it is known again when it is to be replaced."""


def _take_over_logging(
    output: _Output, common: list[structlog.typing.Processor], final: list[structlog.typing.Processor]
) -> None:
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
        root.removeHandler(old)
    if root.handlers:
        return
    handler = _Handler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=common, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final]
        )
    )
    root.addHandler(handler)
    logging.captureWarnings(capture=True)
