"""A NetFlow v9 and IPFIX collector: keeps the templates of each exporter, and sums its flow records for the report.

The parser is `netflow` from PyPI.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from netflow.ipfix import IPFIXExportPacket, IPFIXTemplateNotRecognized
from netflow.v9 import V9ExportPacket, V9TemplateNotRecognized, V9TemplateRecord

from aiolb import Collector

UNKNOWN_TEMPLATE = (V9TemplateNotRecognized, IPFIXTemplateNotRecognized)
# Version: the parser, the header's size (its last four bytes are the domain), the names of octets and packets.
# netflow.parse_packet() chooses the parser too, but takes a datagram that is valid UTF-8 for hexadecimal text.
VERSIONS = {
    9: (V9ExportPacket, 20, "IN_BYTES", "IN_PKTS"),  # RFC 3954, section 5.1
    10: (IPFIXExportPacket, 16, "octetDeltaCount", "packetDeltaCount"),  # RFC 7011, section 3.1
}


class Templates(dict[int, Any]):
    """The templates of an exporter's domain. The parser would never get to the end of records of no size."""

    def __setitem__(self, number: int, template: Any) -> None:
        if isinstance(template, V9TemplateRecord):
            size = sum(field.field_length for field in template.fields)
        else:
            size = sum(template.scope_fields.values()) + sum(template.option_fields.values())
        if size == 0:
            raise ValueError(f"template {number} is empty")
        super().__setitem__(number, template)


def check_sets(datagram: bytes, start: int) -> None:
    """Raise ValueError for a set that ends before its own header does: the parser would stay at it."""
    while start < len(datagram):
        length = int.from_bytes(datagram[start + 2 : start + 4], "big")
        if length < 4:  # noqa: PLR2004 - the set's id and length
            raise ValueError(f"a set of {length} bytes")
        start += length


class NetFlow(Collector):
    """Decodes records with templates that came before, which works because an exporter has one member."""

    def __init__(self) -> None:
        self._templates: defaultdict[tuple[Any, ...], Templates] = defaultdict(Templates)
        self._exporters: defaultdict[str, Counter[str]] = defaultdict(Counter)

    async def handle(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """Decode a datagram and add up its records."""
        sums = self._exporters[addr[0]]
        try:
            for octets, packets in self.decode(datagram, addr):
                sums.update(flows=1, octets=octets, packets=packets)
        except UNKNOWN_TEMPLATE:
            sums["template_misses"] += 1
        except Exception:  # noqa: BLE001 - on what is malformed the parser raises this and that
            sums["malformed"] += 1

    def decode(self, datagram: bytes, addr: Any) -> list[tuple[int, int]]:
        """Octets and packets of each flow record; the records of options have none."""
        parser, header, octets, packets = VERSIONS[int.from_bytes(datagram[:2], "big")]
        check_sets(datagram, header)
        flows = parser(datagram, self._templates[addr, datagram[:2], datagram[header - 4 : header]]).flows
        return [(flow.data[octets], flow.data[packets]) for flow in flows if octets in flow.data]

    def report(self) -> Mapping[str, Any]:
        """The sums of each exporter."""
        return {"exporters": self._exporters}


if __name__ == "__main__":
    NetFlow.run(bind="127.0.0.1:2055", index=0, count=1)
