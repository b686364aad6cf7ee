"""Where groups live: the folder, the lock on it, creations that were cut off, and races."""

from __future__ import annotations

import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf import abi, pins
from aiolb.bpf.group import Group, GroupOptions
from aiolb.bpf.pins import Pins
from aiolb.errors import GroupError, GroupNotFoundError, KernelError

ADDRESS = Address("127.0.0.1", 9)


@contextmanager
def opened(bpffs, address=ADDRESS, **options):
    """A group, created where there is none; its pins go with the last one."""
    with Group.opened_or_created(address, GroupOptions(bpffs=bpffs, **options)) as group:
        pass
    try:
        yield group
    finally:
        group.delete_if_empty()
        group.close()


@contextmanager
def held(folder: Path):
    """Hold the lock on a folder, as another process would."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (Address("127.0.0.1", 9), "udp_127-0-0-1_9"),
        (Address("0.0.0.0", 10001), "udp_0-0-0-0_10001"),
        (Address("::1", 9), "udp_::1_9"),
        (Address("fd00:1:2:3:4:5:6:7", 65535), "udp_fd00:1:2:3:4:5:6:7_65535"),
    ],
)
def test_the_folder_of_a_group(bpffs, address, name):
    """Each address has its folder below the network namespace's, by a name that bpffs takes."""
    with opened(bpffs, address):
        (folder,) = bpffs.glob("aiolb/*/*")
        assert folder.relative_to(bpffs).parts == ("aiolb", str(pins.network_namespace()), name)
        assert {path.name for path in folder.iterdir()} == {"prog", *(spec.pin for spec in abi.MAPS)}
        assert folder.stat().st_mode & 0o777 == 0o700


def test_nothing_is_left(bpffs):
    """With the last group its folders go too; another group's stay."""
    with opened(bpffs), opened(bpffs, Address("127.0.0.1", 10)):
        pass
    assert list(bpffs.glob("aiolb")) == []


def test_a_creation_that_was_killed(bpffs):
    """Pins that a killed creation left are no group: it is not found, and the next one makes it afresh."""
    with opened(bpffs, seed=1):
        (folder,) = bpffs.glob("aiolb/*/*")
        (folder / "config").unlink()
        (folder / "prog").rename(folder / "prog_new")
        with pytest.raises(GroupError, match="there is no group"):
            Group.open(ADDRESS, bpffs=bpffs)
        with opened(bpffs, seed=2) as group:
            assert group.config.seed == 2
            assert not (folder / "prog_new").exists()


@pytest.mark.parametrize("failing", range(8))
def test_a_creation_that_fails(bpffs, monkeypatch, failing):
    """When any of the pins cannot be made, nothing is left of any of them."""
    pin, calls = pins.syscall.obj_pin, iter(range(100))

    def fail(fd, path):
        if next(calls) == failing:
            raise OSError(28, "No space left on device")
        pin(fd, path)

    monkeypatch.setattr(pins.syscall, "obj_pin", fail)
    with pytest.raises(KernelError, match=r"the group at 127\.0\.0\.1:9 cannot be created"), opened(bpffs):
        pytest.fail("created")
    assert list(bpffs.glob("aiolb")) == []


def test_a_replacement_of_the_program_that_was_killed(bpffs, compiled_debug):
    """A program that was pinned beside the old one, and not moved to its place, does not stop the next replacement."""
    with opened(bpffs) as group:
        (folder,) = bpffs.glob("aiolb/*/*")
        pins.syscall.obj_pin(group._objects.program_fd, str(folder / "prog_new"))
        with opened(bpffs, program=compiled_debug) as again, sockets.bind_reuseport(Address("127.0.0.1", 0)) as sock:
            again.join(sock, 0)
            assert again.config.program == compiled_debug.digest
        assert not (folder / "prog_new").exists()


def test_a_lock_that_is_not_released(bpffs, monkeypatch):
    """A lock that another process holds on to ends the wait with an error, and leaves the group alone."""
    monkeypatch.setattr(pins, "LOCK_TIMEOUT", 0.05)
    with opened(bpffs):
        (folder,) = bpffs.glob("aiolb/*/*")
        with held(folder), pytest.raises(GroupError, match=r"has held the lock on .* for 0\.05 s") as caught:
            Group.open(ADDRESS, bpffs=bpffs)
        assert caught.value.hint == f"find it with: fuser -v {folder}"
        Group.open(ADDRESS, bpffs=bpffs).close()


def test_the_lock_is_reentrant(bpffs, monkeypatch):
    """Who holds the lock may ask for it again; inside, others wait, and outside they do not."""
    monkeypatch.setattr(pins, "LOCK_TIMEOUT", 0.05)
    with opened(bpffs) as group:
        with group.locked(), group.locked():
            pass
        with group.locked(), pytest.raises(GroupError):
            Group.open(ADDRESS, bpffs=bpffs)
        Group.open(ADDRESS, bpffs=bpffs).close()


def test_deleted_twice(bpffs):
    """A group whose pins are gone already counts as deleted."""
    with opened(bpffs) as group:
        group.delete()
        group.delete()
        with pytest.raises(GroupNotFoundError):
            Group.open(ADDRESS, bpffs=bpffs)


def test_a_group_that_is_deleted_while_others_wait(bpffs, monkeypatch):
    """Who waits for the lock of a group that is then deleted makes a new group, not one in a folder that is gone."""
    waiting = threading.Event()
    monkeypatch.setattr(pins.time, "sleep", lambda _: waiting.set())
    with opened(bpffs, seed=1) as old, ThreadPoolExecutor(1) as pool:
        with old.locked():
            future = pool.submit(found_by_address, bpffs, seed=2)
            assert waiting.wait(10)
            old.delete()
        assert (old.config.seed, future.result(10)) == (1, 2)


def found_by_address(bpffs, **options):
    """The seed of the group that others find once it is made."""
    with opened(bpffs, **options):
        found = Group.open(ADDRESS, bpffs=bpffs)
        try:
            return found.config.seed
        finally:
            found.close()


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("seen", [None, FileExistsError()])
def test_folders_that_vanish_while_one_is_made(bpffs, monkeypatch, depth, seen):
    """The last member of another group removes folders that a new group has just made or found: it makes them again."""
    mkdir, removed = Path.mkdir, []

    def vanishing(folder, *arguments, **named):
        mkdir(folder, *arguments, **named)
        if not removed and len(folder.relative_to(bpffs).parts) == depth:
            removed.extend([folder, *folder.parents][:depth])
            for path in removed:
                path.rmdir()
            if seen:  # as mkdir(exist_ok=True) does when the folder is gone at its second look
                raise seen

    monkeypatch.setattr(Path, "mkdir", vanishing)
    with opened(bpffs, seed=3):
        assert found_by_address(bpffs) == 3
    assert removed


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_folder_that_vanishes_before_it_is_locked(bpffs, monkeypatch, parts):
    """A group's folder that is removed between making it and opening it is made again."""
    make, removed = Pins._make_folder, []

    def vanishing(self, *arguments):
        make(self, *arguments)
        if not removed:
            removed.extend([self.folder, *self.folder.parents][:parts])
            for path in removed:
                path.rmdir()

    monkeypatch.setattr(Pins, "_make_folder", vanishing)
    with opened(bpffs, seed=3):
        assert found_by_address(bpffs) == 3
    assert removed


def test_groups_that_come_and_go_at_the_same_time(bpffs):
    """Four threads create and forget groups at two addresses over and over: no error, and nothing is left."""
    addresses = [ADDRESS, ADDRESS, Address("127.0.0.1", 10), Address("127.0.0.1", 11)]

    def come_and_go(address):
        for _ in range(15):
            with opened(bpffs, address):
                pass
        return True

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(come_and_go, addresses)) == [True] * 4
    assert list(bpffs.glob("aiolb")) == []


def test_looking_makes_no_folder(bpffs):
    """Looking for a group where none ever was makes no folder."""
    with pytest.raises(FileNotFoundError), Pins(ADDRESS, bpffs=bpffs).locked():
        pytest.fail("locked")
    assert list(bpffs.iterdir()) == list(bpffs.glob("*.debug"))


def test_an_old_group_leaves_a_new_one_alone(bpffs):
    """A group whose pins were removed does not touch those of the next group at its address, nor wait for its lock."""
    with opened(bpffs, seed=1) as old:
        old.delete()
        with opened(bpffs, seed=2) as new, new.locked():
            old.delete()
            old.delete_if_empty()
            assert not old.leave(0, 1)
            (folder,) = bpffs.glob("aiolb/*/*")
            assert (folder / "config").exists()


def test_the_lock_is_released_and_taken_again(bpffs, monkeypatch):
    """The folder stays open between locks, and is not locked then; closing it releases the lock."""
    monkeypatch.setattr(pins, "LOCK_TIMEOUT", 0.05)
    with opened(bpffs) as group:
        (folder,) = bpffs.glob("aiolb/*/*")
        mine = Pins(ADDRESS, bpffs=bpffs)
        for _ in range(2):
            with mine.locked(), pytest.raises(GroupError):
                group.leave(0, 1)
            with held(folder):
                pass
        with mine.locked():
            mine.close()
            mine.close()
            assert not group.leave(0, 1)
        assert not mine.complete


@pytest.mark.parametrize("interface", ["lo", "my_if_0"])
def test_the_name_of_a_link_local_group(interface):
    """Whatever an interface is called, the folder's name says which group it is."""
    address = Address(f"fe80::1%{interface}", 9000)
    assert pins.names_of(f"tcp_{address.host}_9000") == ("tcp", address)


@pytest.mark.parametrize(
    ("bpffs", "where"), [(abi.BPFFS, ""), (Path("/mnt/b p f"), " --bpffs '/mnt/b p f'")], ids=["usual", "with blanks"]
)
def test_commands_in_hints(bpffs, where):
    """A command that is told finds the group where it is, whatever the folder is called."""
    assert Pins(ADDRESS, bpffs=bpffs).command("delete", "--force") == f"aiolb group delete {ADDRESS} --force{where}"
