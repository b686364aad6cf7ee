"""What a supervisor tells a worker survives the way through the command line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb.address import Address
from aiolb.assignment import Assignment
from aiolb.config import ServeConfig
from aiolb.errors import ConfigurationError

assignments = st.builds(
    Assignment,
    app=st.text(),
    index=st.integers(0, 1023),
    count=st.just(1024),
    balancer=st.sampled_from(["ebpf", "classic", "none"]),
    sockets=st.lists(
        st.tuples(st.sampled_from(["127.0.0.1:1", "[::1]:1", "[fe80::1%lo]:2"]), st.integers(3, 1023)),
        min_size=1,
        unique_by=lambda pair: pair[0],
    ).map(tuple),
    user=st.none() | st.text(min_size=1),
    kept=st.booleans(),
    beat=st.floats(0.001, 3600),
    settings=st.sampled_from(["udp", "tcp"]).map(lambda name: Assignment.settings_of(ServeConfig(protocol=name))),
    log=st.dictionaries(st.text(), st.text()),
)


@given(assignment=assignments)
def test_round_trip(assignment):
    """It is read as it was written."""
    assert Assignment.from_text(assignment.to_text()) == assignment


@given(assignment=assignments)
def test_one_argument(assignment):
    """It is one line of JSON without a zero byte, as an argument of a command has to be."""
    text = assignment.to_text()
    assert isinstance(json.loads(text), dict)
    assert not {"\n", "\0"} & set(text)
    text.encode("ascii")


@given(assignment=assignments)
def test_the_protocol(assignment):
    """A worker knows whether its sockets are for datagrams or for connections."""
    assert assignment.config().protocol == assignment.settings["protocol"]


def test_the_settings_of_a_worker():
    """A worker serves with what its supervisor was told that concerns it, on the sockets it is given, and no more."""
    config = ServeConfig(
        rcvbuf=1 << 20,
        graceful_timeout=7,
        concurrency=3,
        backlog=5,
        loop="asyncio",
        takeover=True,
        seed=1,
        count=4,
    )
    work = Assignment(
        app="discard",
        index=2,
        count=4,
        balancer="ebpf",
        sockets=(("127.0.0.1:5", 7), ("[::1]:5", 8)),
        settings=Assignment.settings_of(config),
    )
    assert Assignment.from_text(work.to_text()).config() == ServeConfig(
        bind=(Address("127.0.0.1", 5), Address("::1", 5)),
        index=2,
        count=4,
        balancer="ebpf",
        rcvbuf=1 << 20,
        graceful_timeout=7,
        concurrency=3,
        backlog=5,
        loop="asyncio",
    )


def test_an_index_outside():
    """An assignment that makes no sense is refused by the worker's configuration."""
    work = Assignment(app="discard", index=2, count=2, balancer="none", sockets=(("127.0.0.1:5", 7),))
    with pytest.raises(ConfigurationError, match="index 2 is outside of a group of 2"):
        work.config()
