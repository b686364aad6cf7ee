"""What operators see with bpftool and ss: the maps by name, and the members' sockets by cookie."""

from __future__ import annotations

import json
import subprocess


def bpftool(needs, *arguments):
    """What bpftool prints, as JSON."""
    command = [needs("bpftool", "bpftool"), "-j", *map(str, arguments)]
    while True:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = json.loads(done.stdout)
        if done.returncode == 0:
            return said
        # It gives up when one of the machine's maps goes while it looks through all of them for a name.
        assert "can't get map by id" in said["error"], said


def number(value):
    """A map value as bpftool prints it, in bytes."""
    return int.from_bytes(bytes(int(byte, 16) for byte in value), "little")


def entries(dump):
    """Keys and values of a dump; bpftool prints errors in the place of values that are missing."""
    return {number(entry["key"]): number(entry["value"]) for entry in dump if isinstance(entry["value"], list)}


def test_the_map_by_name(cluster, bpffs, needs):
    """`bpftool map dump name udp_balancing_t` shows the group's members, each with its socket's cookie."""
    group = cluster(4, members=[0, 1, 3])
    (folder,) = bpffs.glob("aiolb/*/*")
    cookies = {index: member.cookie for index, member in group.memberships.items()}
    found = bpftool(needs, "map", "show", "pinned", folder / "targets")
    assert (found["name"], found["type"], found["max_entries"]) == ("udp_balancing_t", "reuseport_sockarray", 1024)
    by_name = bpftool(needs, "map", "dump", "name", "udp_balancing_t")
    # Where several groups are on the machine, each has a map of this name.
    dumps = [dump["elements"] for dump in by_name] if "elements" in by_name[0] else [by_name]
    assert cookies in [entries(dump) for dump in dumps]


def test_all_maps_have_names(cluster, bpffs, needs):
    """Every map and the program of a group carry a name that says what they are."""
    cluster(1)
    (folder,) = bpffs.glob("aiolb/*/*")
    names = {
        pin.name: bpftool(needs, "map", "show", "pinned", pin)["name"] for pin in folder.iterdir() if pin.name != "prog"
    }
    assert names == {pin: pin for pin in names} | {"targets": "udp_balancing_t"}
    program = bpftool(needs, "prog", "show", "pinned", folder / "prog")
    assert (program["type"], program["name"].startswith("aiolb_")) == ("sk_reuseport", True)


def test_the_cookies_of_ss(cluster, needs):
    """`ss -e` shows the same cookies as the group's statistics."""
    group = cluster(3)
    command = [needs("ss", "iproute2"), "-Huane", f"sport = {group.address.port}"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = {int(word[3:], 16) for line in lines for word in line.split() if word.startswith("sk:")}
    assert found == {member.cookie for member in group.statistics.members}
