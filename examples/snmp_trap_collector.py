"""An SNMP trap receiver (v1, v2c): a line of JSON for each notification, a response to each inform, sums in the report.

Messages are read and written with `pysnmp` from PyPI.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pyasn1.codec.ber import decoder, encoder
from pysnmp.proto import api
from pysnmp.proto.proxy import rfc2576

from aiolb import Collector

TRAP_OID = "1.3.6.1.6.3.1.1.4.1.0"  # snmpTrapOID.0, RFC 3418: which notification it is


def parse(datagram: bytes) -> tuple[Any, Any]:
    """The message, and the notification in it as SNMPv2 has it."""
    version = api.PROTOCOL_MODULES[api.decodeMessageVersion(datagram)]
    message, _ = decoder.decode(datagram, asn1Spec=version.Message())
    pdu = version.apiMessage.get_pdu(message)
    if isinstance(pdu, api.v1.TrapPDU):
        pdu = rfc2576.v1_to_v2(pdu)
    if not isinstance(pdu, (api.v2c.SNMPv2TrapPDU, api.v2c.InformRequestPDU)):
        raise TypeError(f"{type(pdu).__name__} is no notification")
    return message, pdu


class Traps(Collector):
    """Prints each notification once, also when its sender asks again because our response was lost."""

    def __init__(self) -> None:
        self._last_inform: dict[str, tuple[int, int]] = {}
        self._notifications: Counter[str] = Counter()
        self._sums = {"informs": 0, "repeated": 0, "malformed": 0}

    async def handle(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """Print a notification, and answer an inform."""
        try:
            message, pdu = parse(datagram)
        except Exception:  # noqa: BLE001 - on what is malformed the parser raises this and that
            self._sums["malformed"] += 1
            return
        if isinstance(pdu, api.v2c.InformRequestPDU):
            self._respond(message, pdu, addr)
            inform = (addr[1], int(api.v2c.apiPDU.get_request_id(pdu)))
            if self._last_inform.get(addr[0]) == inform:
                self._sums["repeated"] += 1
                return
            self._last_inform[addr[0]] = inform
        values = {oid.prettyPrint(): value.prettyPrint() for oid, value in api.v2c.apiPDU.get_varbinds(pdu)}
        self._notifications[values.get(TRAP_OID, "")] += 1
        print(json.dumps({"source": addr[0], **values}), flush=True)

    def _respond(self, message: Any, inform: Any, addr: tuple[str, int]) -> None:
        """Send back what came, as RFC 3416, section 4.2.7, asks for."""
        response = api.v2c.apiMessage.get_response(message)
        pdu = api.v2c.apiMessage.get_pdu(response)
        api.v2c.apiPDU.set_varbinds(pdu, api.v2c.apiPDU.get_varbinds(inform))
        self.reply(encoder.encode(response), addr)
        self._sums["informs"] += 1

    def report(self) -> Mapping[str, Any]:
        """Notifications by their OID, informs answered, and those that had come before."""
        return {"notifications": self._notifications, **self._sums}


if __name__ == "__main__":
    Traps.run(bind="127.0.0.1:10162", index=0, count=1)
