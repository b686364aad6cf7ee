"""Rules and limits: what can be written, what it means, and what is said about a mistake."""

from __future__ import annotations

import math
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb.bpf.abi import MAX_RULES, RULE_ALLOW, RULE_DENY
from aiolb.bpf.rules import GuardOptions, GuardRules, Limit, networks
from aiolb.errors import ConfigurationError


def nets(*texts):
    """Networks of texts."""
    return [ip_network(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3", "10.1.2.3/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("fd00::/8", "fd00::/8"),
        ("::/0", "::/0"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::fffe:0:0/95", "::fffe:0:0/95"),
    ],
)
def test_networks(text, network):
    """An address is a network of one, and a network of IPv4-mapped IPv6 addresses is an IPv4 network."""
    assert list(GuardRules.of(networks([text])).allowed) == nets(network)


def test_a_file(tmp_path):
    """@FILE has a network a line; comments, spaces and empty lines are left out."""
    path = tmp_path / "rules"
    path.write_text("# exporters\n10.0.0.0/8  # the old ones\n\n  fd00::/8\t\n#::/0\n192.0.2.7\n")
    assert list(networks([f"@{path}", "127.0.0.1"])) == nets("10.0.0.0/8", "fd00::/8", "192.0.2.7", "127.0.0.1")


def test_mistakes_in_a_file(tmp_path):
    """A mistake is told with its line, a file that cannot be read with the reason."""
    path = tmp_path / "rules"
    path.write_text("10.0.0.0/8\n10.0.0.1/8\n")
    with pytest.raises(ConfigurationError, match=f"^{path}:2: '10.0.0.1/8' is no network: .* has host bits set"):
        list(networks([f"@{path}"]))
    with pytest.raises(ConfigurationError, match=f"^'{tmp_path}/none' cannot be read: No such file or directory"):
        list(networks([f"@{tmp_path}/none"]))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=f"^'{path}' cannot be read: it is no UTF-8 text"):
        list(networks([f"@{path}"]))


def test_rules():
    """Each network has its action; with at least one allowed, what is in none is dropped."""
    rules = GuardRules.of(nets("10.0.0.0/8"), nets("10.1.0.0/16"))
    assert dict(rules) == dict(zip(nets("10.0.0.0/8", "10.1.0.0/16"), (RULE_ALLOW, RULE_DENY), strict=True))
    assert (rules.listed_only, GuardRules.of((), nets("10.0.0.0/8")).listed_only) == (True, False)
    assert (bool(rules), bool(GuardRules()), GuardRules().listed_only) == (True, False, False)


@pytest.mark.parametrize(
    ("source", "dropped_by"),
    [
        ("10.0.0.1", None),
        ("10.1.0.1", "deny 10.1.0.0/16"),
        ("::ffff:10.1.0.1", "deny 10.1.0.0/16"),
        ("10.1.1.1", None),
        ("192.0.2.1", "no rule allows it"),
        ("fd00::1", "deny ::/0"),
    ],
)
def test_what_drops_a_source(source, dropped_by):
    """The longest prefix decides, of the networks of the same family; a source that none allows is dropped too."""
    rules = GuardRules.of(nets("10.0.0.0/8", "10.1.1.0/24"), nets("10.1.0.0/16", "::/0"))
    assert rules.dropped_by(ip_address(source)) == dropped_by
    assert GuardRules().dropped_by(ip_address(source)) is None


def test_a_network_that_is_allowed_and_denied():
    """One network has one rule, however it is written."""
    with pytest.raises(ConfigurationError, match=r"^10\.0\.0\.0/8, fd00::/8 is allowed and denied"):
        GuardRules.of(nets("10.0.0.0/8", "fd00::/8"), nets("fd00::/8", "::ffff:10.0.0.0/104"))


def test_too_many_rules():
    """A group has room for so many rules, and no more."""
    many = [ip_network((0x0A000000 + number, 32)) for number in range(MAX_RULES + 1)]
    rules = GuardRules.of(many[1:])
    assert len(rules.allowed) == MAX_RULES
    with pytest.raises(ConfigurationError, match=r"^a group has at most 65,536 rules, not 65,537"):
        rules.with_rules(GuardRules.of((), many[:1]))
    assert rules.with_rules(GuardRules.of((), many[1:])).listed_only is False


def test_rules_are_added_and_removed():
    """A newer rule for a network replaces the older one; only what is there can be removed."""
    rules = GuardRules.of(nets("10.0.0.0/8"), nets("10.1.0.0/16"))
    more = rules.with_rules(GuardRules.of((), nets("10.0.0.0/8", "fd00::/8")))
    assert dict(more) == dict.fromkeys(nets("10.0.0.0/8", "10.1.0.0/16", "fd00::/8"), RULE_DENY)
    assert more.without(nets("::ffff:10.0.0.0/104", "fd00::/8")) == GuardRules.of((), nets("10.1.0.0/16"))
    assert rules == GuardRules.of(nets("10.0.0.0/8"), nets("10.1.0.0/16"))
    with pytest.raises(ConfigurationError, match=r"^there is no rule for 10\.1\.0\.0/24, fd00::/8"):
        rules.without(nets("10.0.0.0/8", "10.1.0.0/24", "fd00::/8"))


@pytest.mark.parametrize(
    ("text", "interval", "burst"),
    [
        ("1000", 1_000_000, 1000),
        ("1000:5", 1_000_000, 5),
        ("0.001:86", 10**12, 86),
        ("0.5", 2 * 10**9, 1),
        ("2.5", 400_000_000, 3),
        ("1e9", 1, 10**9),
        ("1000000000:1", 1, 1),
        ("3:3", 333_333_333, 3),
        ("off", 0, 0),
    ],
)
def test_limits(text, interval, burst):
    """Packets a second become the time that a token takes; the burst is that of a second where none is given."""
    limit = Limit.parse(text)
    assert (limit.interval, limit.burst, bool(limit)) == (interval, burst, text != "off")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, f"'{text}' is no limit") for text in ("", "a", "1:", "1:b", "1:2.5", ":5", "1:2:3", "on")),
        *(
            (text, f"a limit is 0.001 to 1,000,000,000 packets a second, not {text}")
            for text in ("0", "-1", "0.0009", "1000000001")
        ),
        ("nan:1", "a limit is 0.001 to 1,000,000,000 packets a second, not nan"),
        ("1e99:1", "a limit is 0.001 to 1,000,000,000 packets a second, not 1e99"),
        *((f"1:{burst}", f"a burst is 1 to 1,000,000,000 packets, not {burst}") for burst in (0, -1, 1_000_000_001)),
        ("0.001:87", "with 0.001:87 a bucket takes 87,000 s until it is full, and 86,400 s is the most"),
        ("nan", "'nan' is no limit"),
        ("inf", "'inf' is no limit"),
    ],
)
def test_limits_that_cannot_work(text, message):
    """What is no limit, or not a possible one, is refused with what was written."""
    with pytest.raises(ConfigurationError) as caught:
        Limit.parse(text)
    assert str(caught.value) == message
    assert caught.value.hint


@given(st.integers(1, 999_999), st.integers(-3, 3), st.integers(1, 80))
def test_limits_round_trip(digits, exponent, burst):
    """A limit of up to six digits is written as it was read."""
    pps = float(f"{digits}e{exponent}")
    if not 0.001 <= pps <= 1e3:  # nanoseconds tell six digits up to there
        pps = 1.0
    limit = Limit.parse(f"{pps!r}:{burst}")
    assert math.isclose(limit.pps, pps, rel_tol=1e-6)
    assert Limit.parse(str(limit)) == limit


@pytest.mark.parametrize("pps", [0.001, 0.3, 1, 3, 7, 999, 1000, 12_345, 250_000, 10**6, 10**9])
def test_a_limit_is_told_as_it_was_written(pps):
    """Although it is kept as a time in nanoseconds."""
    assert Limit.parse(f"{pps}:1").pps == pps
    assert Limit().pps == math.inf


def test_options():
    """Without networks the rules stay, without a limit that stays; `off` is a limit that ends one."""
    assert not GuardOptions.parse()
    assert GuardOptions.parse(limit="off") == GuardOptions(None, Limit())
    assert GuardOptions.parse(deny=["10.0.0.0/8"]) == GuardOptions(GuardRules.of((), nets("10.0.0.0/8")), None)
    assert GuardOptions.parse(limit="off")
    assert GuardOptions(GuardRules())
