"""The settings of a collector: defaults, limits, and what is said about a wrong one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb.address import Address
from aiolb.config import BALANCERS, LOOPS, MAX_RCVBUF, ServeConfig
from aiolb.errors import ConfigurationError

ONE, OTHER, ANY_PORT = Address("127.0.0.1", 1), Address("127.0.0.1", 2), Address("127.0.0.1", 0)


def test_defaults():
    """Without any setting, one member of a group of its own listens on the default port."""
    config = ServeConfig()
    assert config.bind == (Address("0.0.0.0", 10001),)
    assert (config.index, config.count, config.balancer, config.loop) == (0, None, "auto", "uvloop")


def test_frozen():
    """Settings do not change under a running collector."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        ServeConfig().index = 1


@pytest.mark.parametrize(
    "settings",
    [
        {"index": 0, "count": 1},
        {"index": 1023, "count": 1024},
        {"index": 1023},
        {"rcvbuf": 1},
        {"rcvbuf": MAX_RCVBUF},
        {"graceful_timeout": 0},
        {"concurrency": 1},
        {"backlog": 1},
        {"protocol": "tcp", "backlog": 1 << 24, "takeover": True},
        {"bind": (ONE, OTHER)},
        {"bind": (ANY_PORT, ANY_PORT)},
        {"balancer": "ebpf", "compile": True, "debug": True, "takeover": True},
        {"balancer": "auto", "compile": True, "takeover": True},
        {"allow": ("10.0.0.0/8", "@/not/read/yet"), "deny": ("10.1.0.0/16",), "limit_source": "10:20"},
        {"balancer": "ebpf", "limit_source": "off"},
        *({"balancer": balancer} for balancer in BALANCERS),
        *({"loop": loop} for loop in LOOPS),
    ],
)
def test_what_works(settings):
    """Settings at their limits, and combinations that can work."""
    config = ServeConfig(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"allow": ("10.0.0.1/8",)}, "'10.0.0.1/8' is no network: 10.0.0.1/8 has host bits set"),
        ({"allow": ("10.0.0.1",), "deny": ("10.0.0.1/32",)}, "10.0.0.1/32 is allowed and denied"),
        ({"limit_source": "many"}, "'many' is no limit"),
        ({"balancer": "none", "deny": ("::/0",)}, "the balancer 'none' cannot allow, deny or limit sources"),
        (
            {"balancer": "classic", "limit_source": "off"},
            "the balancer 'classic' cannot allow, deny or limit sources",
        ),
        ({"bind": ()}, "a collector needs at least one address to bind"),
        ({"bind": (ONE, OTHER, ONE)}, "127.0.0.1:1 is given twice"),
        ({"count": 0}, "a group has 1 to 1024 members, not 0"),
        ({"count": -5}, "a group has 1 to 1024 members, not -5"),
        ({"count": 1025}, "a group has 1 to 1024 members, not 1025"),
        ({"index": -1}, "-1 is no index: it is a number from 0 to 1023"),
        ({"index": 1024}, "1024 is no index: it is a number from 0 to 1023"),
        ({"index": 3, "count": 3}, "index 3 is outside of a group of 3"),
        ({"graceful_timeout": -1}, "the graceful timeout is 0 to 86400 seconds, not -1"),
        ({"graceful_timeout": float("inf")}, "the graceful timeout is 0 to 86400 seconds, not inf"),
        ({"graceful_timeout": float("nan")}, "the graceful timeout is 0 to 86400 seconds, not nan"),
        ({"rcvbuf": 0}, "the receive buffer is 1 to 1073741823 bytes, not 0"),
        ({"rcvbuf": 1 << 30}, "the receive buffer is 1 to 1073741823 bytes, not 1073741824"),
        ({"concurrency": 0}, "the concurrency is 1 to 1048576 handlers, not 0"),
        ({"backlog": 0}, "the backlog is 1 to 16777216 datagrams, not 0"),
        ({"backlog": 0, "protocol": "tcp"}, "the backlog is 1 to 16777216 connections, not 0"),
        ({"protocol": "sctp"}, "'sctp' is no protocol"),
        ({"protocol": "tcp", "rcvbuf": 1 << 20}, "the receive buffer is for datagrams"),
        ({"balancer": "magic"}, "'magic' is no balancer"),
        ({"loop": "trio"}, "'trio' is no loop"),
        ({"key": "banana"}, "'banana' is no key"),
        ({"key": "prefix/24,129"}, "'prefix/24,129' has no such prefixes"),
        ({"key": "flow", "key_file": Path("k.c")}, "the key is flow, or what k.c says, but not both"),
        ({"balancer": "none", "key": "source"}, "the balancer 'none' has no key"),
        ({"balancer": "none", "key_file": Path("k.c")}, "the balancer 'none' has no key"),
        (
            {"protocol": "tcp", "key_file": Path("k.c")},
            "a key file is for UDP: the first packet of a TCP connection has",
        ),
        ({"balancer": "classic", "key_file": Path("k.c")}, "the balancer 'classic' cannot run a key file"),
        ({"balancer": "classic", "takeover": True}, "the balancer 'classic' has no takeover and nothing to compile"),
        ({"balancer": "none", "compile": True}, "the balancer 'none' has no takeover and nothing to compile"),
        ({"balancer": "none", "debug": True}, "the balancer 'none' has no takeover and nothing to compile"),
    ],
)
def test_what_cannot_work(settings, message):
    """A setting that cannot work is refused with its value, before anything was started."""
    with pytest.raises(ConfigurationError) as caught:
        ServeConfig(**settings)
    assert str(caught.value).startswith(message)


@given(st.integers(-2000, 2000), st.one_of(st.none(), st.integers(-2000, 2000)))
def test_members(index, count):
    """An index is taken exactly if it is in the group, or may be in one whose count is not known yet."""
    works = 0 <= index < 1024 and (count is None or (1 <= count <= 1024 and index < count))
    try:
        ServeConfig(index=index, count=count)
    except ConfigurationError:
        assert not works
    else:
        assert works
