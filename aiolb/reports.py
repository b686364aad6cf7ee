"""The report file: found to be writable before the start, written at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from aiolb.errors import ConfigurationError

_log = structlog.get_logger(__name__)


def write_report(file: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON; log it when that fails."""
    try:
        file.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        _log.error("report_failed", file=str(file), reason=error.strerror)


def check_writable(report: Path | None) -> None:
    """Find out before the start, not at the end, that the report cannot be written."""
    if report is None:
        return
    try:
        existed = report.exists()
        report.open("a").close()
        if not existed:
            report.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"the report {report} cannot be written: {error.strerror}", hint="--report FILE in a folder that exists"
        ) from None
