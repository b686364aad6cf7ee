"""A syslog collector (RFC 5424, RFC 3164): a line of JSON for each message but repeats, and sums in the report."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from aiolb import Collector

SEVERITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")

# RFC 5424, section 6: <PRI>1 TIMESTAMP HOSTNAME APP-NAME PROCID MSGID STRUCTURED-DATA [MSG]
STRUCTURED_DATA = r'-|(?:\[(?:[^\]"]|"(?:\\.|[^"\\])*")*\])+'
RFC5424 = re.compile(
    rf"<(?P<pri>\d{{1,3}})>1 \S+ (?P<host>\S+) (?P<app>\S+) \S+ \S+ (?:{STRUCTURED_DATA})(?: (?P<text>.*))?", re.DOTALL
)
# RFC 3164, section 4.1: <PRI>Mmm dd hh:mm:ss HOSTNAME TAG: TEXT; some senders write the time as RFC 5424 does.
RFC3164 = re.compile(
    r"<(?P<pri>\d{1,3})>(?:[A-Z][a-z]{2} [ \d]\d [\d:]{8}|\d{4}-\S+) (?P<host>\S+) (?P<app>[^\s:\[]*)\S* ?(?P<text>.*)",
    re.DOTALL,
)


class Message(NamedTuple):
    """What both formats tell, but when."""

    severity: str
    host: str
    app: str
    text: str


def parse(datagram: bytes) -> Message | None:
    """The message, or None for what is in neither format."""
    line = datagram.decode(errors="replace").rstrip("\n\0")
    found = RFC5424.fullmatch(line) or RFC3164.fullmatch(line)
    if found is None:
        return None
    severity = SEVERITIES[int(found["pri"]) % 8]
    return Message(severity, found["host"], found["app"], (found["text"] or "").removeprefix("\ufeff"))


class Syslog(Collector):
    """Prints messages; all of a source come to this member, so it can tell when one repeats itself."""

    def __init__(self) -> None:
        self._last: dict[str, Message] = {}
        self._messages: Counter[str] = Counter()
        self._severities: Counter[str] = Counter()
        self._sums = {"repeated": 0, "malformed": 0}

    async def handle(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """Print the message, unless its source said the same just before."""
        message, source = parse(datagram), addr[0]
        if message is None:
            self._sums["malformed"] += 1
            return
        self._messages[source] += 1
        self._severities[message.severity] += 1
        if self._last.get(source) == message:
            self._sums["repeated"] += 1
            return
        self._last[source] = message
        print(json.dumps({"source": source, **message._asdict()}), flush=True)

    def report(self) -> Mapping[str, Any]:
        """Messages by source and by severity, and how many of them were repeats."""
        return {"messages": self._messages, "severities": self._severities, **self._sums}


if __name__ == "__main__":
    Syslog.run(bind="127.0.0.1:5514", index=0, count=1)
