"""Where a group lives in bpffs: the mount, the folder of its pins, and the lock on it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import Self

from aiolb.address import Address
from aiolb.bpf import ownership, syscall
from aiolb.bpf.abi import BPFFS
from aiolb.bpf.group_name import GroupName
from aiolb.bpf.maps import Maps
from aiolb.bpf.ownership import Owner
from aiolb.errors import GroupError, KernelError, PrivilegeError

LOCK_TIMEOUT = 10.0
"""Seconds to wait for another process that creates, joins or leaves the same group; it needs milliseconds."""

_LOCK_POLL = 0.005
_SO_NETNS_COOKIE = 71  # socket(7); the socket module has no name for it
_MARKER = "config"  # pinned last and removed first: a folder with it holds a whole group


class Pins:
    """The folder ``BPFFS/aiolb/<network namespace>/<protocol>_<address>_<port>`` of one group.

    Keeps a descriptor of the folder from the first lock until ``close()``: a process that has given up its privileges
    since may not open it again, and locks the group through that.
    """

    pinned = True

    def __init__(self, address: Address, *, protocol: str = "udp", bpffs: Path = BPFFS) -> None:
        self.bpffs = bpffs
        # bpffs refuses names with dots.
        host = address.host.replace(".", "-")
        self.folder = folder_of_namespace(bpffs) / f"{protocol}_{host}_{address.port}"
        self.name = GroupName(protocol, address)
        self._descriptor: int | None = None
        self._locked = False

    @classmethod
    def at(cls, folder: Path) -> Self:
        """The pins in a folder, of whichever network namespace."""
        protocol, address = names_of(folder.name)
        pins = cls(address, protocol=protocol, bpffs=folder.parents[2])
        pins.folder = folder
        return pins

    @property
    def owner(self) -> Owner:
        """Whose the pins are. Raises OSError."""
        folder = self.folder.stat()
        try:
            pin = (self.folder / _MARKER).lstat()
        except (FileNotFoundError, PermissionError):  # not made to the end; or closed to us, as no prepared one is
            pin = folder
        return Owner.of(folder, pin)

    @property
    def writable(self) -> bool:
        """Whether this user may replace a pin."""
        return _may(os.W_OK, self.folder)

    def command(self, action: str, *options: str) -> str:
        """``aiolb group ACTION`` for this group, to be told in a hint."""
        return " ".join(["aiolb group", action, str(self.name), *options]) + in_bpffs(self.bpffs)

    @property
    def complete(self) -> bool:
        """Whether a whole group is pinned here; look under the lock. Raises PermissionError."""
        if self._descriptor is None:
            return False
        try:
            os.stat(_MARKER, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def pin(self, maps: Maps, program_fd: int) -> None:
        """Pin what a group is made of. Raises OSError."""
        self.pin_program(program_fd)
        maps.pin(self.folder)

    def pin_program(self, fd: int) -> None:
        """Pin the program, in one step where another one is pinned."""
        (self.folder / "prog_new").unlink(missing_ok=True)  # from a replacement that was cut off
        syscall.obj_pin(fd, str(self.folder / "prog_new"))
        ownership.copy(self.folder / "prog", self.folder / "prog_new")
        (self.folder / "prog_new").rename(self.folder / "prog")

    def open_program(self) -> int:
        """A descriptor of the pinned program; the caller closes it. Raises OSError."""
        return syscall.obj_get(str(self.folder / "prog"))

    def close(self) -> None:
        """Close the folder, and release its lock. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @contextmanager
    def locked(self, *, create: bool = False) -> Iterator[None]:
        """Hold the group's lock: one process at a time creates, joins, leaves or moves slots. Re-entrant.

        With ``create`` the folder is made first, and bpffs mounted where it is missing. Raises GroupError
        after LOCK_TIMEOUT seconds, FileNotFoundError without a folder, KernelError when it cannot be made or opened.
        """
        if self._locked:
            yield
            return
        deadline = time.monotonic() + LOCK_TIMEOUT
        if self._descriptor is None:
            self._descriptor = self._acquire(deadline, create=create)
        else:
            self._acquire_again(self._descriptor, deadline)
        self._locked = True
        try:
            yield
        finally:
            self._locked = False
            if self._descriptor is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _acquire(self, deadline: float, *, create: bool) -> int:
        while True:
            try:
                fd = self._open_folder(create=create, deadline=deadline)
            except (FileNotFoundError, FileExistsError):
                if create and time.monotonic() < deadline:
                    continue  # the last member of this or of another group has just removed a folder
                raise
            try:
                self._flock(fd, self.folder, deadline)
                if _is_still_there(fd):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # deleted while we waited for it

    def _acquire_again(self, fd: int, deadline: float) -> None:
        self._flock(fd, self.folder, deadline)
        if not _is_still_there(fd):
            fcntl.flock(fd, fcntl.LOCK_UN)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))

    def _open_folder(self, *, create: bool, deadline: float) -> int:
        if create:
            self._make_folder(deadline)
        try:
            return os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError as error:
            raise self.refused(error) from error

    def refused(self, error: OSError) -> PrivilegeError:
        """Why this user may not open the group, and who may."""
        if (closed := self._closed_folder()) is not None:
            return _closed_error(closed, error)
        with suppress(OSError):
            if self.owner.uid:
                return self._refused(error, f"run as {self.owner}, or ")
        return self._refused(error)

    def _refused(self, error: OSError, otherwise: str = "") -> PrivilegeError:
        return PrivilegeError(
            f"this user may not open the group in {self.folder}: {error.strerror}",
            errno=error.errno,
            hint=otherwise + self._way_in(),
        )

    def _way_in(self) -> str:
        """What lets this user have a group here."""
        if os.geteuid() == 0:
            return "run as root, with CAP_DAC_OVERRIDE"
        return f"as root: {self.command('create', '--owner', ownership.user_name(os.geteuid()))}"

    def _closed_folder(self) -> Path | None:
        """The first folder above the group's that this user may not enter."""
        above = (self.bpffs, self.folder.parent.parent, self.folder.parent)
        for folder in above:  # from the top: in one that may not be entered, nothing seems to be there
            if _may(os.F_OK, folder) and not _may(os.X_OK, folder):
                return folder
        return None

    def _flock(self, fd: int, folder: Path, deadline: float) -> None:
        # flock(2) has no time limit of its own, and a stopped process must not hang all others for ever.
        while True:
            try:
                return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise GroupError(
                        f"another process has held the lock on {folder} for {LOCK_TIMEOUT:g} s",
                        hint=f"find it with: fuser -v {folder}",
                    ) from None
                time.sleep(_LOCK_POLL)

    def _make_folder(self, deadline: float) -> None:
        self._mount_if_missing(deadline)
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.EROFS):
                raise
            if (closed := self._closed_folder()) is not None:
                raise _closed_error(closed, error) from error
            raise PrivilegeError(
                f"this user may not create the group's folder {self.folder}",
                errno=error.errno,
                hint=f"{self._way_in()}; --balancer classic needs no privilege",
            ) from error

    def _mount_if_missing(self, deadline: float) -> None:
        try:
            if not is_bpffs(self.bpffs):
                self._mount(deadline)
        except OSError as error:
            kind = PrivilegeError if error.errno in (errno.EPERM, errno.EACCES) else KernelError
            raise kind(
                f"no BPF file system is mounted at {self.bpffs}, and mounting it failed: {error.strerror}",
                errno=error.errno,
                hint=f"as root: {mount_command(self.bpffs)}; docker run -v {self.bpffs}:{self.bpffs}",
            ) from error

    def _mount(self, deadline: float) -> None:
        # Two processes that mount at the same time would hide each other's groups: one mounts, under a lock on
        # the folder above, which no mount hides.
        above = os.open(self.bpffs.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._flock(above, self.bpffs.parent, deadline)
            if not is_bpffs(self.bpffs):
                syscall.mount_bpffs(str(self.bpffs))
        finally:
            os.close(above)

    def prepare(self, uid: int, gid: int, *, shared: bool) -> None:
        """Let a user, and if ``shared`` a group of users, join without privileges; under the lock. Raises OSError.

        The pins stay when no member is left, and only root can remove them.
        """
        ownership.open_way(self.folder.parent, below=self.bpffs)
        ownership.prepare(self.folder, uid, gid, shared=shared)

    def clear(self) -> None:
        """Remove all pins, the marker of a whole group first: also what a creation left that was cut off."""
        (self.folder / _MARKER).unlink(missing_ok=True)
        for pin in list(self.folder.iterdir()):
            pin.unlink()
        if self.owner.prepared:
            ownership.take_back(self.folder)

    def remove(self) -> None:
        """Remove all pins and the folder; maps and programs live on while sockets or processes use them.

        Call it under the lock.
        """
        self.clear()
        self.folder.rmdir()
        for parent in (self.folder.parent, self.folder.parent.parent):
            try:
                parent.rmdir()
            except OSError:  # other groups live there
                return


def in_bpffs(bpffs: Path) -> str:
    """`` --bpffs PATH``, for the end of a command in a hint; nothing where commands look by themselves."""
    return "" if bpffs == BPFFS else f" --bpffs {quote(str(bpffs))}"


def folder_of_namespace(bpffs: Path) -> Path:
    """Where the groups of this thread's network namespace are pinned."""
    return bpffs / "aiolb" / str(network_namespace())


def names_of(folder: str) -> tuple[str, Address]:
    """The protocol and the address of the group that is pinned in a folder of this name."""
    protocol, _, place = folder.partition("_")
    host, _, port = place.rpartition("_")  # of fe80::1%eth_0 the interface may have one too
    return protocol, Address(host if ":" in host else host.replace("-", "."), int(port))


def _may(mode: int, path: Path) -> bool:
    return os.access(path, mode, effective_ids=True)


def _closed_error(folder: Path, error: OSError) -> PrivilegeError:
    return PrivilegeError(
        f"this user may not enter {folder}, below which groups are pinned",
        errno=error.errno,
        hint=f"as root: chmod o+x {folder}; --balancer classic needs no privilege",
    )


def _is_still_there(folder: int) -> bool:
    """Whether a folder has its name; a removed one has no link left (inode(7))."""
    return os.fstat(folder).st_nlink > 0


def is_bpffs(path: Path) -> bool:
    """Whether ``path`` lies in a mounted BPF file system (proc_pid_mountinfo(5)). Raises OSError without a path."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        if source.startswith("bpf ") and mount.split()[2] == number:
            return True
    return False


def mount_command(path: Path) -> str:
    """What mounts a BPF file system there, by hand."""
    make = "" if path.exists() else f"mkdir -p {path} && "
    return f"{make}mount -t bpf bpf {path}"


def namespace_cookie() -> int:
    """A number of this thread's network namespace that no later one gets, as inode numbers are; 0 before Linux 5.14."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
    return 0


def network_namespace() -> int:
    """The inode number of this thread's network namespace, as ``lsns -t net`` prints it."""
    return Path("/proc/thread-self/ns/net").stat().st_ino
