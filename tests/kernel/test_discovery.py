"""Which groups there are, and which one is meant."""

from __future__ import annotations

import pytest

from aiolb.address import Address
from aiolb.bpf import deletion
from aiolb.bpf.discovery import group_names, the_group
from aiolb.bpf.group_name import GroupName
from aiolb.bpf.pins import folder_of_namespace
from aiolb.errors import ConfigurationError, GroupNotFoundError


@pytest.mark.parametrize("text", ["127.0.0.1:2055", "[::1]:2055", "tcp:127.0.0.1:514", "tcp:[::]:514"])
def test_names(text):
    """A name is read as it is written."""
    assert str(GroupName.parse(text)) == text


def test_udp_is_the_protocol_that_needs_no_name():
    """The protocol may be said, and is udp where it is not."""
    assert (
        GroupName.parse("udp:127.0.0.1:5")
        == GroupName.parse("127.0.0.1:5")
        == GroupName("udp", Address("127.0.0.1", 5))
    )


def test_no_group(bpffs):
    """Without any group none is listed, and none is the only one."""
    assert group_names(bpffs) == []
    assert group_names(bpffs / "nowhere") == []
    with pytest.raises(GroupNotFoundError):
        the_group(None, bpffs)


def test_groups(cluster, bpffs):
    """Groups are listed in order; the only one needs no name, and of two the error lists both."""
    first = GroupName("udp", cluster(1).address)
    assert group_names(bpffs) == [first]
    assert the_group(None, bpffs) == first
    second = GroupName("udp", cluster(1, host="::1").address)
    both = sorted([first, second])
    assert group_names(bpffs) == both
    with pytest.raises(ConfigurationError, match="there are 2 groups") as caught:
        the_group(None, bpffs)
    assert caught.value.hint == f"choose one, as in: --group {both[0]}"
    assert the_group(second, bpffs) == second


def test_what_is_no_group(cluster, bpffs):
    """What somebody else has put beside the groups is no group, and stays when stale ones are removed."""
    name = GroupName("udp", cluster(1).address)
    beside = folder_of_namespace(bpffs)
    foreign = [beside / folder for folder in ("foo", "udp_x_y", "udp_x_9", "sctp_127-0-0-1_9")]
    for folder in foreign:
        folder.mkdir()
    assert group_names(bpffs) == [name]
    assert deletion.delete_stale(bpffs) == ([], [])
    for folder in foreign:
        folder.rmdir()


def test_a_living_group_comes_before_one_that_was_left(cluster, bpffs):
    """A group without members is not meant beside one that has some; of groups without members none is chosen."""
    left, living = cluster(1), cluster(1)
    left.kill(0)
    assert the_group(None, bpffs) == GroupName("udp", living.address)
    living.kill(0)
    with pytest.raises(ConfigurationError, match="there are 2 groups"):
        the_group(None, bpffs)
