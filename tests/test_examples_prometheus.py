"""The alert rules and the dashboard: valid, about metrics that there are, and rules that fire for their cause only."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from dashboard import DASHBOARD, PANELS, asked
from documents import ROOT
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from aiolb.metrics_table import METRICS

VARIABLES = {one["name"]: one for one in DASHBOARD["templating"]["list"]}


def test_rules(promtool) -> None:
    """Promtool takes the alert rules."""
    assert "9 rules found" in promtool("check", "rules", ROOT / "examples/prometheus/alerts.yml")


def test_alerts(promtool) -> None:
    """In made-up hours each alert fires for its cause, with what it says, and is silent otherwise."""
    promtool("test", "rules", ROOT / "tests/alerts_test.yml")


def test_every_alert_is_tested() -> None:
    """There is an hour in which an alert fires, and one in which it does not."""
    rules, hours = (ROOT / name for name in ("examples/prometheus/alerts.yml", "tests/alerts_test.yml"))
    for alert in re.findall(r"- alert: (\w+)", rules.read_text()):
        assert re.search(rf"alertname: {alert},? *(\n +)?exp_alerts", hours.read_text()), alert
        assert re.search(rf"alertname: {alert}}}", hours.read_text()), alert


def test_queries(promtool, tmp_path: Path) -> None:
    """Promtool takes every query of the dashboard."""
    queries = [asked(target["expr"]) for panel in PANELS for target in panel["targets"]]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    assert len(rules) > len(PANELS)
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML
    assert f"{len(rules)} rules found" in promtool("check", "rules", path)


def missing_in(there: object, ours: object, path: str = "") -> list[str]:
    """Where something of ours is not there, or is something else."""
    if isinstance(ours, dict) and isinstance(there, dict):
        pairs = [(f"{path}.{name}", value, there.get(name)) for name, value in ours.items()]
    elif isinstance(ours, list) and isinstance(there, list) and len(ours) == len(there):
        pairs = [(f"{path}[{number}]", *pair) for number, pair in enumerate(zip(ours, there, strict=True))]
    else:
        return [] if ours == there else [f"{path}: {ours}"]
    return [found for name, mine, its in pairs for found in missing_in(its, mine, name)]


def by_grafana(dashboard: object) -> object:
    """A dashboard as Grafana's own schema reads it, with its defaults."""
    register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))


def test_grafana_knows_every_field() -> None:
    """Nothing of the dashboard is lost when Grafana's own schema reads it, as a misspelt field would be."""
    assert missing_in(by_grafana(DASHBOARD), DASHBOARD) == []
    misspelt = {**DASHBOARD, "panels": [{**PANELS[0], "gridPosition": PANELS[0]["gridPos"]}]}
    assert missing_in(by_grafana(misspelt), misspelt) == [f".panels[0].gridPosition: {PANELS[0]['gridPos']}"]


def test_grafana_knows_every_unit() -> None:
    """Grafana has all the units, and says them as the metrics are."""
    known = {value for name, value in vars(units).items() if not name.startswith("_")}
    for panel in PANELS:
        unit = panel["fieldConfig"]["defaults"]["unit"]
        assert unit in known
        for target in panel["targets"]:
            assert ("rate(" in target["expr"] and unit == "cps") or unit != "cps", panel["title"]


def test_panels() -> None:
    """Panels have names of their own, and none lies over another."""
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in PANELS
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    for panel in PANELS:
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names)


def test_variables() -> None:
    """Everything is asked of the data source that is chosen, every variable is there, and legends name what is kept."""
    text = json.dumps(DASHBOARD)
    assert set(re.findall(r'"uid": "(\$\{\w+\})"', text)) == {"${datasource}"}
    assert VARIABLES["datasource"]["type"] == "datasource"
    used = set(re.findall(r"\$\{?([a-z]\w*)", text))
    assert used == VARIABLES.keys()
    for target in (target for panel in PANELS for target in panel["targets"]):
        kept = re.search(r"by \(([^)]+)\)", target["expr"])
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == set(kept[1].split(", ")) - {"le"}


@pytest.mark.parametrize("instance", ["10.0.0.1:9100", "10.0.0.1", "[fd00::1]:9100", "node-a.example.org:9100"])
def test_hosts(instance: str) -> None:
    """The variable's hosts are instances without a port, as those of the queries, which find them again."""
    taken = re.fullmatch(VARIABLES["host"]["regex"].strip("/"), instance)[1]
    pattern = re.search(r'"instance", "([^"]+)"', PANELS[0]["targets"][0]["expr"])[1]
    assert re.fullmatch(pattern, instance)[1] == taken == instance.removesuffix(":9100")
    selected = re.search(r'instance=~"([^"]+)"', PANELS[0]["targets"][0]["expr"])[1]
    assert re.fullmatch(selected.replace("$host", re.escape(taken)), instance)


@pytest.mark.parametrize("name", ["prometheus/alerts.yml", "grafana/aiolb.json"])
def test_metrics_are_there(name: str) -> None:
    """Alerts and dashboard ask for no metric that nobody serves."""
    text = (ROOT / "examples" / name).read_text()
    used = {re.sub("_bucket$", "", found) for found in re.findall(r"(?<![\w:])aiolb_[a-z_]+", text)}
    assert used
    assert used <= {one.full_name for one in METRICS}
