"""The example collectors, datagram by datagram: what they take, what they refuse, what they report."""

from __future__ import annotations

import asyncio
import json
import struct

import exporters
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyasn1.codec.ber import decoder, encoder
from pysnmp.proto import api

from aiolb.base_collector import check_class

SOURCE, OTHER = ("192.0.2.1", 40000), ("192.0.2.2", 40000)
COLLECTORS = {
    "syslog_collector": "Syslog",
    "netflow_collector": "NetFlow",
    "statsd_collector": "StatsD",
    "snmp_trap_collector": "Traps",
}

syslog, netflow, statsd, snmp = map(exporters.example, COLLECTORS)


def give(app, *datagrams, source=SOURCE):
    """Let a collector handle datagrams of one source, as the server would; its report as the file has it."""

    async def handle():
        await app.handle_batch([(datagram, source) for datagram in datagrams])

    asyncio.run(handle())
    return json.loads(json.dumps(app.report()))


@pytest.mark.parametrize(("name", "collector"), COLLECTORS.items())
def test_small(name, collector):
    """Each example is a usable collector in less than 80 lines."""
    check_class(getattr(exporters.example(name), collector))
    assert len((exporters.EXAMPLES / f"{name}.py").read_text().splitlines()) < 80


@pytest.mark.parametrize(
    ("datagram", "message"),
    [
        # The examples of RFC 5424, section 6.5, and of RFC 3164, section 5.4
        (
            "<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \ufeff'su root' failed for lonvick",
            ("crit", "mymachine.example.com", "su", "'su root' failed for lonvick"),
        ),
        (
            "<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time to make the do-nuts.",
            ("notice", "192.0.2.1", "myproc", "%% It's time to make the do-nuts."),
        ),
        (
            '<165>1 2003-10-11T22:14:15.003Z example.com evntslog - ID47 [a@32473 iut="3"][b@32473 class="a\\"]b"]',
            ("notice", "example.com", "evntslog", ""),
        ),
        (
            "<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick",
            ("crit", "mymachine", "su", "'su root' failed for lonvick"),
        ),
        ("<13>Feb  5 17:32:18 10.0.0.99 Use the BFG!", ("notice", "10.0.0.99", "Use", "the BFG!")),
        ("<30>Oct 11 22:14:15 host cron[23]: two\nlines\n", ("info", "host", "cron", "two\nlines")),
        ("<30>2024-10-11T22:14:15.003+02:00 host cron[23]: x", ("info", "host", "cron", "x")),
        ("<34>1 - - - - - -", ("crit", "-", "-", "")),
        ("Use the BFG!", None),
        ("<34>1 - - - - - [open", None),
        ("<1000>Oct 11 22:14:15 mymachine su: x", None),
        ("", None),
    ],
)
def test_syslog_messages(datagram, message):
    """Both formats are told apart, and their fields found."""
    assert syslog.parse(datagram.encode()) == (message and syslog.Message(*message))


@given(st.binary() | st.binary().map(lambda text: b"<34>1 - - - - - [" + text) | st.binary().map(b"<3>1 ".__add__))
def test_syslog_takes_anything(datagram):
    """Whatever comes is a message or none."""
    assert syslog.parse(datagram) is None or isinstance(syslog.parse(datagram), syslog.Message)


def test_syslog_folds_repeats(capsys):
    """A message that a source repeats is counted and not printed again; what another source says does not matter."""
    app = syslog.Syslog()
    one, two = b"<11>Oct 11 22:14:15 h a: one", b"<14>Oct 11 22:14:15 h a: two"
    give(app, one, one.replace(b"15", b"16"), two, one)
    report = give(app, one, b"nothing", source=OTHER)
    assert report == {
        "messages": {"192.0.2.1": 4, "192.0.2.2": 1},
        "severities": {"err": 4, "info": 1},
        "repeated": 1,
        "malformed": 1,
    }
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["source"], line["text"]) for line in printed] == [
        ("192.0.2.1", "one"),
        ("192.0.2.1", "two"),
        ("192.0.2.1", "one"),
        ("192.0.2.2", "one"),
    ]


def v9(*sets, domain=0):
    """A NetFlow v9 datagram."""
    return struct.pack("!HHIIII", 9, len(sets), 0, 0, 0, domain) + b"".join(sets)


def ipfix(*sets, domain=0):
    """An IPFIX datagram."""
    body = b"".join(sets)
    return struct.pack("!HHIII", 10, 16 + len(body), 0, 0, domain) + body


def a_set(number, *words):
    """A set of 16-bit words."""
    return struct.pack(f"!{2 + len(words)}H", number, 4 + 2 * len(words), *words)


OCTETS_AND_PACKETS = (256, 2, 1, 4, 2, 4)  # template 256: octets (element 1) and packets (element 2), 4 bytes each
PACKETS_AND_OCTETS = (256, 2, 2, 4, 1, 4)
VERSIONS = pytest.mark.parametrize(("datagram", "template"), [(v9, 0), (ipfix, 2)], ids=["v9", "ipfix"])


@VERSIONS
def test_netflow_sums(datagram, template):
    """Records are decoded with the template that came before them, in the same datagram too."""
    both = datagram(a_set(template, *OCTETS_AND_PACKETS), a_set(256, 0, 1000, 0, 2, 0, 500, 0, 1))
    report = give(netflow.NetFlow(), both, datagram(a_set(256, 0, 1, 0, 1)))
    assert report == {"exporters": {"192.0.2.1": {"flows": 3, "octets": 1501, "packets": 4}}}


@VERSIONS
def test_netflow_misses(datagram, template):
    """Records whose template did not come are counted as a miss, and no template of another exporter is taken."""
    app = netflow.NetFlow()
    give(app, datagram(a_set(template, *OCTETS_AND_PACKETS)))
    report = give(app, datagram(a_set(256, 0, 1, 0, 1)), source=OTHER)
    assert report == {"exporters": {"192.0.2.1": {}, "192.0.2.2": {"template_misses": 1}}}


@VERSIONS
def test_netflow_templates_belong_to_an_exporters_domain(datagram, template):
    """The same number is another template from another address, port or domain."""
    app = netflow.NetFlow()
    give(app, datagram(a_set(template, *OCTETS_AND_PACKETS)))
    give(app, datagram(a_set(template, *PACKETS_AND_OCTETS), domain=7))
    give(app, datagram(a_set(template, *PACKETS_AND_OCTETS)), source=(SOURCE[0], 40001))
    give(app, datagram(a_set(template, *PACKETS_AND_OCTETS)), source=OTHER)
    record = a_set(256, 0, 9, 0, 1)
    give(app, datagram(record), datagram(record, domain=7))
    give(app, datagram(record), source=(SOURCE[0], 40001))
    report = give(app, datagram(record), source=OTHER)
    assert report["exporters"] == {
        "192.0.2.1": {"flows": 3, "octets": 11, "packets": 19},
        "192.0.2.2": {"flows": 1, "octets": 1, "packets": 9},
    }


@pytest.mark.parametrize(
    ("datagram", "error"),
    [
        (v9(a_set(0, 256, 0), a_set(256, 0, 1)), "template 256 is empty"),
        (v9(a_set(0, 256, 1, 1, 0), a_set(256, 0, 1)), "template 256 is empty"),
        (v9(a_set(1, 256, 4, 0, 1, 0, 0), a_set(256, 0, 1)), "template 256 is empty"),
        (v9(struct.pack("!HH", 256, 0)), "a set of 0 bytes"),
        (ipfix(struct.pack("!HH", 2, 0)), "a set of 0 bytes"),
        (ipfix(struct.pack("!HH", 2, 3)), "a set of 3 bytes"),
        (ipfix(b"\0"), "a set of 0 bytes"),
    ],
)
def test_netflow_refuses_what_the_parser_would_stay_at(datagram, error):
    """Sets and records that have no end raise."""
    with pytest.raises(ValueError, match=error):
        netflow.NetFlow().decode(datagram, SOURCE)
    assert give(netflow.NetFlow(), datagram) == {"exporters": {"192.0.2.1": {"malformed": 1}}}


@given(st.data())
def test_netflow_takes_anything(data):
    """Whatever comes is taken or raises, and never goes on for ever; templates of any shape are followed by data."""
    words = st.lists(st.integers(0, 70) | st.sampled_from([255, 256, 257, 65535]), max_size=12)
    sets = st.builds(lambda number, body: a_set(number, *body), st.sampled_from([0, 1, 2, 3, 256]), words)
    datagram = data.draw(st.sampled_from([v9, ipfix]))(*data.draw(st.lists(sets, max_size=4)))
    app = netflow.NetFlow()
    give(app, datagram)
    report = give(app, datagram)
    sums = report["exporters"][SOURCE[0]]
    assert sums.keys() <= {"flows", "octets", "packets", "template_misses", "malformed"}
    assert sums.get("template_misses", 0) + sums.get("malformed", 0) <= 2


def test_netflow_of_another_version():
    """Other versions, and what has none, are counted apart."""
    report = give(netflow.NetFlow(), b"\0\5" + bytes(22), b"\0", b"")
    assert report == {"exporters": {"192.0.2.1": {"malformed": 3}}}


def test_statsd_sums():
    """Counters and timers are scaled by their rate, gauges are set or stepped, and what is no metric is counted."""
    lines = [b"hits:2|c\nhits:1|c|@0.1\n", b"users:7|g\nusers:-2|g\nusers:+0.5|g|#tag:x", b"db:12.5|ms", b"db:3|h|@0.5"]
    report = give(statsd.StatsD(), *lines, b"a:1|s\nb:nan|c\nc:1|c|@0", b":1|c", b"\xff")
    assert report == {
        "counters": {"hits": 12.0},
        "gauges": {"192.0.2.1": {"users": 5.5}},
        "timers": {"db": {"count": 3.0, "sum": 18.5, "max": 12.5}},
        "malformed": 5,
    }


def test_statsd_gauges_are_a_sources_own():
    """A step changes the gauge of its source."""
    app = statsd.StatsD()
    give(app, b"users:7|g")
    assert give(app, b"users:+1|g", source=OTHER)["gauges"] == {"192.0.2.1": {"users": 7}, "192.0.2.2": {"users": 1}}


async def test_statsd_prints(capsys, monkeypatch):
    """What was summed up is printed now and then, until the collector stops."""
    app, printed = statsd.StatsD(), asyncio.Event()
    monkeypatch.setattr(statsd, "PRINT_EVERY", 0)
    monkeypatch.setattr(app, "report", lambda: printed.set() or {"counters": {"hits": 1}})
    await app.startup()
    async with asyncio.timeout(10):
        await printed.wait()
    await app.shutdown()
    with pytest.raises(asyncio.CancelledError):
        await app._printer
    assert set(capsys.readouterr().out.splitlines()) == {'{"counters": {"hits": 1}}'}


@given(st.text())
def test_statsd_takes_anything(text):
    """Whatever comes, the report stays one that JSON can hold: no infinity, and nothing that is no number."""
    report = give(statsd.StatsD(), text.encode(errors="replace"), b"x:" + text.encode(errors="replace") + b"|c|@0.1")
    json.dumps(report, allow_nan=False)


LINK_DOWN = "1.3.6.1.6.3.1.1.5.3"


def notification(pdu_class, *, version=api.v2c, request=1, binds=((snmp.TRAP_OID, LINK_DOWN),)):
    """A datagram with a notification of SNMPv2c."""
    pdu, message = pdu_class(), version.Message()
    version.apiPDU.set_defaults(pdu)
    version.apiPDU.set_request_id(pdu, request)
    version.apiPDU.set_varbinds(pdu, [(oid, version.ObjectIdentifier(value)) for oid, value in binds])
    version.apiMessage.set_defaults(message)
    version.apiMessage.set_community(message, "public")
    version.apiMessage.set_pdu(message, pdu)
    return encoder.encode(message)


def v1_trap():
    """A datagram with a linkDown of SNMPv1."""
    pdu, message = api.v1.TrapPDU(), api.v1.Message()
    api.v1.apiTrapPDU.set_defaults(pdu)
    api.v1.apiTrapPDU.set_generic_trap(pdu, "linkDown")
    api.v1.apiMessage.set_defaults(message)
    api.v1.apiMessage.set_community(message, "public")
    api.v1.apiMessage.set_pdu(message, pdu)
    return encoder.encode(message)


@pytest.fixture
def traps(monkeypatch):
    """The collector of traps, and what it answers."""
    app, app.answers = snmp.Traps(), []
    monkeypatch.setattr(app, "reply", lambda data, addr: app.answers.append((data, addr)))
    return app


def test_snmp_traps_of_both_versions(traps, capsys):
    """A trap is printed, counted by what it tells, and not answered."""
    report = give(traps, notification(api.v2c.SNMPv2TrapPDU), v1_trap())
    assert report == {"notifications": {LINK_DOWN: 2}, "informs": 0, "repeated": 0, "malformed": 0}
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["source"], line[snmp.TRAP_OID]) for line in printed] == [("192.0.2.1", LINK_DOWN)] * 2
    assert traps.answers == []


def test_snmp_informs_are_answered(traps):
    """An inform is answered with its own request and values, each time; told again, it is a repeat of its source."""
    inform = notification(api.v2c.InformRequestPDU, request=77)
    give(traps, inform, inform)
    report = give(traps, inform, source=OTHER)
    assert report == {"notifications": {LINK_DOWN: 2}, "informs": 3, "repeated": 1, "malformed": 0}
    assert [addr for _, addr in traps.answers] == [SOURCE, SOURCE, OTHER]
    answer, _ = decoder.decode(traps.answers[0][0], asn1Spec=api.v2c.Message())
    pdu = api.v2c.apiMessage.get_pdu(answer)
    assert isinstance(pdu, api.v2c.ResponsePDU)
    assert int(api.v2c.apiPDU.get_request_id(pdu)) == 77
    assert int(api.v2c.apiPDU.get_error_status(pdu)) == 0
    assert [(str(oid), str(value)) for oid, value in api.v2c.apiPDU.get_varbinds(pdu)] == [(snmp.TRAP_OID, LINK_DOWN)]


def test_snmp_requests_are_no_notifications(traps):
    """What asks for something, and what is no SNMP, is counted and gets no answer."""
    report = give(traps, notification(api.v2c.GetRequestPDU), b"x\n", b"", notification(api.v2c.SNMPv2TrapPDU)[:-1])
    assert report == {"notifications": {}, "informs": 0, "repeated": 0, "malformed": 4}
    assert traps.answers == []


@given(st.binary(), st.integers(0, 40))
def test_snmp_takes_anything(noise, start):
    """Whatever comes is a notification or malformed; noise in the midst of a trap too."""
    trap, app = notification(api.v2c.SNMPv2TrapPDU), snmp.Traps()
    app.reply = lambda *_: None  # noise can make an inform of it
    report = give(app, noise, trap[:start] + noise + trap[start + len(noise) :])
    assert sum(report["notifications"].values()) + report["malformed"] == 2
