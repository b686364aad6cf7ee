"""What docs/reference/metrics.md says of OpenTelemetry is true: its collector exports to who takes OTLP."""

from __future__ import annotations

import sys

import yaml
from documents import blocks, commands
from documents_run import running
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

METRICS = "docs/reference/metrics.md"

# Takes what is exported, and keeps each request as a file.
ENDPOINT = """
import itertools, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

numbers = itertools.count()

class Endpoint(BaseHTTPRequestHandler):
    def do_POST(self):
        assert (self.path, self.headers["Content-Type"]) == ("/v1/metrics", "application/x-protobuf")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(f"{next(numbers)}.otlp", "wb") as file:
            file.write(body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

server = ThreadingHTTPServer(("127.0.0.1", 4318), Endpoint)
print("ready", file=sys.stderr, flush=True)
try:
    server.serve_forever()
except KeyboardInterrupt:
    pass
"""


def counts(folder):
    """What was exported last of each member, by the metric's name."""
    found = {}
    for path in sorted(folder.glob("*.otlp"), key=lambda file: int(file.stem)):
        request = ExportMetricsServiceRequest.FromString(path.read_bytes())
        metrics = [
            metric for one in request.resource_metrics for scope in one.scope_metrics for metric in scope.metrics
        ]
        for metric in metrics:
            for point in metric.sum.data_points:
                member = {attribute.key: attribute.value.int_value for attribute in point.attributes}["member"]
                found.setdefault(metric.name, {})[member] = point.as_int
    return found


def test_a_collector_that_exports(ip_as_root):
    """Three workers export their counts when they end, and the sums are what was sent."""
    (command,) = [command for command in commands(METRICS) if "OTEL_EXPORTER_OTLP_ENDPOINT" in command]
    given = {"endpoint.py": ENDPOINT}
    with (
        running(METRICS, ip_as_root, given) as document,
        document.namespaces.server(f"{sys.executable} endpoint.py"),
    ):
        with document.namespaces.server(command) as served:
            document.namespaces.run("aiolb flood 127.0.0.1:9000 --count 600 --rate 5000 --sources 60")
            served.stop()
        found = counts(document.namespaces.folder)
    assert {name: sum(members.values()) for name, members in found.items()} == {
        "aiolb.member.received": 600,
        "aiolb.member.handled": 600,
        "aiolb.member.errors": 0,
        "aiolb.member.kernel_drops": 0,
    }
    assert {name: sorted(members) for name, members in found.items()} == {name: [0, 1, 2] for name in found}
    assert all(found["aiolb.member.handled"].values())


def test_the_receiver_of_the_collector(promtool, tmp_path):
    """What the page tells the OpenTelemetry Collector's prometheus receiver, which takes Prometheus's own settings."""
    (text,) = blocks(METRICS, "yaml")
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(yaml.safe_load(text)["receivers"]["prometheus"]["config"]))
    assert "SUCCESS" in promtool("check", "config", path)
