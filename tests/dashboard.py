"""The dashboard of examples/grafana: its panels, and their queries as Grafana asks them."""

from __future__ import annotations

import json
import re
from typing import Any

from documents import ROOT

DASHBOARD: dict[str, Any] = json.loads((ROOT / "examples/grafana/aiolb.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]

_GIVEN = {"__rate_interval": "1m", "group": ".*", "host": ".*"}


def asked(query: str) -> str:
    """A panel's query with what Grafana puts in for variables."""
    return re.sub(r"\$([a-z_]+)", lambda name: _GIVEN[name[1]], query)
