"""Groups that another version left, and programs that are replaced under a running group."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aiolb.bpf import abi, syscall
from aiolb.bpf.group import Group, GroupOptions
from aiolb.errors import GroupError, GroupNotFoundError, KernelError, PrivilegeError


def reopen(group, bpffs, **options):
    """Open the group as another process would, to join it."""
    with Group.opened_or_created(group.address, GroupOptions(bpffs=bpffs, **options)) as found:
        pass
    found.close()


def folder_of(bpffs) -> Path:
    """The folder of the only group."""
    (folder,) = bpffs.glob("aiolb/*/*")
    return folder


def replace_map(folder, pin, **changes):
    """Put a map of another shape in the place of a group's."""
    spec = next(spec for spec in abi.MAPS if spec.pin == pin)
    shape = {
        "key_size": spec.key_size,
        "value_size": spec.value_size,
        "entries": spec.entries,
        "flags": spec.flags,
        **changes,
    }
    fd = syscall.map_create(abi.MAP_TYPE_ARRAY if pin == "config" else spec.type, name=pin, **shape)
    try:
        if pin == "config":
            syscall.map_update(fd, 0, abi.U32.pack(abi.LAYOUT_VERSION) + bytes(shape["value_size"] - 4))
        (folder / pin).unlink()
        syscall.obj_pin(fd, str(folder / pin))
    finally:
        os.close(fd)


@pytest.mark.parametrize("version", [0, abi.LAYOUT_VERSION + 1, 2**32 - 1])
def test_another_layout(cluster, bpffs, version):
    """A group of another layout is neither opened nor joined: the error names both versions and what to do."""
    group = cluster(2)
    group.group._write_config(layout=version)
    for attempt in (lambda: reopen(group, bpffs), lambda: Group.open(group.address, bpffs=bpffs)):
        with pytest.raises(GroupError) as caught:
            attempt()
        folder = folder_of(bpffs)
        assert str(caught.value) == (
            f"{folder} holds a group with layout {version}, and this aiolb works with layout {abi.LAYOUT_VERSION}"
        )
        command = f"aiolb group delete {group.address} --bpffs {bpffs}"
        assert caught.value.hint == f"another version made it: stop its members, then {command}"
    assert group.group.alive() == {0, 1}


def test_the_group_of_a_namespace_that_is_gone(cluster, bpffs):
    """Pins of a dead namespace whose number a new one got are no group there: it makes its own."""
    group = cluster(7)
    group.group._write_config(namespace=group.group.config.namespace + 1)
    with pytest.raises(GroupNotFoundError):
        Group.open(group.address, bpffs=bpffs)
    with Group.opened_or_created(group.address, GroupOptions(count=2, bpffs=bpffs)) as made:
        assert made.config.count == 2
        assert made.config.namespace == group.group.config.namespace - 1
    made.close()


@pytest.mark.parametrize(
    ("pin", "changes"),
    [
        ("slots", {"entries": 4096}),
        ("slots", {"value_size": 8}),
        ("targets", {"entries": 64}),
        ("members", {"value_size": 16}),
        ("member_stats", {"value_size": 64}),
        ("config", {"value_size": 4}),
        ("config", {"value_size": 256}),
    ],
)
def test_a_map_of_another_shape(cluster, bpffs, pin, changes):
    """Maps that are not as this version makes them are refused, before anything is read into too small a buffer."""
    group, folder = cluster(2), folder_of(bpffs)
    replace_map(folder, pin, **changes)
    with pytest.raises(GroupError, match=rf"holds a group with another shape of the map {pin}"):
        Group.open(group.address, bpffs=bpffs)


def test_a_missing_pin(cluster, bpffs):
    """A group that lacks one of its pins is refused, with what to do."""
    group, folder = cluster(2), folder_of(bpffs)
    (folder / "slots").unlink()
    with pytest.raises(GroupError, match=r"holds a group with .*No such file") as caught:
        Group.open(group.address, bpffs=bpffs)
    assert f"aiolb group delete {group.address} --bpffs {bpffs}" in caught.value.hint


def test_a_pin_that_is_no_map(cluster, bpffs):
    """A program where a map should be is refused as well."""
    group, folder = cluster(2), folder_of(bpffs)
    (folder / "slots").unlink()
    syscall.obj_pin(group.group._objects.program_fd, str(folder / "slots"))
    with pytest.raises(GroupError, match=r"holds a group with another shape of the map slots"):
        Group.open(group.address, bpffs=bpffs)


@pytest.mark.parametrize(
    "answer",
    [
        (5, KernelError, "the group in {folder} cannot be opened: .*Input/output error"),
        (13, PrivilegeError, "this user may not open the group in {folder}: Permission denied"),
        (1, PrivilegeError, "this user may not open the group in {folder}: Operation not permitted"),
    ],
)
def test_the_kernel_refuses(cluster, bpffs, monkeypatch, answer):
    """What the kernel answers instead of a pinned map becomes an error with the group's folder."""
    errno, kind, message = answer

    def refuse(path):
        raise OSError(errno, os.strerror(errno), path)

    group = cluster(2)
    monkeypatch.setattr(syscall, "obj_get", refuse)
    with pytest.raises(kind, match=message.format(folder=folder_of(bpffs))) as caught:
        Group.open(group.address, bpffs=bpffs)
    monkeypatch.undo()
    assert caught.value.errno == errno


def test_a_program_is_replaced(cluster, bpffs, compiled_debug, sources_v4):
    """A member with another version of the program brings it along: same seed, slots and counters, nobody moves."""
    group, sources = cluster(2), sources_v4(300)
    before = group.route(sources)
    group.kill(1)
    options = GroupOptions(program=compiled_debug, bpffs=bpffs)
    with Group.opened_or_created(group.address, options) as newer:
        newer.join(group.bind(1), 1)
    assert newer.config.program == compiled_debug.digest
    newer.close()
    assert group.route(sources) == before
    assert sum(member.packets for member in group.statistics.members) == 600


def test_the_same_program_is_not_loaded_again(cluster, bpffs, program, monkeypatch):
    """Who joins with the program that is there takes the pinned one."""
    group = cluster(2)
    monkeypatch.setattr(syscall, "prog_load", None)
    reopen(group, bpffs, program=program)
