"""What tests against the kernel share: a bpffs of their own, both programs, namespaces, groups and senders."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import random
import select
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import serving

from aiolb import sockets
from aiolb.address import Address, IPAddress, canonical, to_send_to
from aiolb.bpf import hashing, probe, spec, syscall
from aiolb.bpf.group import Group, GroupOptions, GroupStatistics, Membership
from aiolb.bpf.keys import Key
from aiolb.bpf.members import Bind, Members, join_all
from aiolb.bpf.spec import ProgramSpec
from aiolb.bpf.steering import JoinOptions

HERE = Path(__file__).parent
SEED = 0x0123456789ABCDEF_FEDCBA9876543210
DEADLINE = 10.0  # seconds until datagrams that do not arrive count as lost
CHUNK = 256  # datagrams sent before they are taken out of the queues again
CLONE_NEWNET = 0x40000000
IP_PKTINFO, IPV6_FREEBIND = 8, 78  # names that Python 3.11 lacks


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test in this folder is a kernel test."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.kernel)


@pytest.fixture(scope="session", autouse=True)
def kernel(missing: Callable[[str], None]) -> None:
    """The kernel takes the balancer; else skip with its reason, and fail in CI."""
    finding = probe.balancer()
    if not finding:
        missing(finding.reason)


@pytest.fixture(autouse=True)
def _nothing_left(nothing_left: None) -> None:
    """Every test in this folder cleans up after itself."""


@pytest.fixture(scope="session")
def _bpffs_mount() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="aiolb-bpffs-") as folder:
        syscall.mount_bpffs(folder)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)  # noqa: S607 - found by PATH on every system


@pytest.fixture
def bpffs(_bpffs_mount: Path) -> Iterator[Path]:
    """A BPF file system of the tests' own, empty before and after; pins of dead groups are swept.

    A group that a live socket is still in fails the test.
    """
    yield _bpffs_mount
    alive = [str(folder) for folder in _groups(_bpffs_mount) if _has_live_member(folder)]
    for folder, _, files in os.walk(_bpffs_mount, topdown=False):
        for name in files:
            if folder != str(_bpffs_mount):
                (Path(folder) / name).unlink()
        if folder != str(_bpffs_mount):
            Path(folder).rmdir()
    assert not alive, "sockets are still in these groups"


def _groups(bpffs: Path) -> list[Path]:
    return sorted(bpffs.glob("aiolb/*/*"))


def _has_live_member(folder: Path) -> bool:
    try:
        fd = syscall.obj_get(str(folder / "targets"))
    except OSError:
        return False
    try:
        return any(syscall.map_lookup(fd, index, 8) is not None for index in range(1024))
    except OSError:  # a map of another shape that a test put there
        return False
    finally:
        os.close(fd)


@pytest.fixture(params=["shipped", "bcc"])
def program(request: pytest.FixtureRequest) -> ProgramSpec:
    """The balancer from both loaders: the bytecode that the package brings, and what bcc makes of the source."""
    return spec.shipped() if request.param == "shipped" else request.getfixturevalue("compiled")


@pytest.fixture(scope="session")
def python() -> Callable[..., Any]:
    """Run Python code in a process of its own: ``python(code, *arguments, prefix=[...])`` gives the JSON it prints.

    ``prefix`` is a command that runs it, such as ``unshare --mount``.
    """

    def run(code: str, *arguments: object, prefix: Sequence[str] = ()) -> Any:
        command = [*prefix, sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (child.returncode, child.stderr) == (0, ""), child.stderr
        return json.loads(child.stdout)

    return run


@pytest.fixture(scope="session")
def powerless(needs: Callable[[str, str], str]) -> list[str]:
    """The command that runs another one without any capability."""
    return [needs("setpriv", "util-linux"), "--bounding-set=-all", "--inh-caps=-all"]


@pytest.fixture(scope="session")
def with_bpf(needs: Callable[[str, str], str]) -> list[str]:
    """The command that runs another one with CAP_BPF alone."""
    return [needs("setpriv", "util-linux"), "--bounding-set=-all,+bpf", "--inh-caps=-all"]


@pytest.fixture(scope="session")
def private_mounts(needs: Callable[[str, str], str]) -> list[str]:
    """The command that runs another one with mounts of its own."""
    return [needs("unshare", "util-linux"), "--mount"]


class NetworkNamespace:
    """A network namespace with its loopback up, and one thread that lives in it."""

    def __init__(self, ip: str, name: str) -> None:
        self.name = name
        self._path = ip
        self._ip_command("netns", "add", name)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=self._enter)
        self.ip("link", "set", "lo", "up")

    def _ip_command(self, *arguments: str) -> None:
        subprocess.run([self._path, *arguments], check=True)

    def ip(self, *arguments: str) -> None:
        """Configure the namespace, as `ip -n NAME` does."""
        self._ip_command("-n", self.name, *arguments)

    def _enter(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            if libc.setns(fd, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(fd)

    def call(self, function: Callable[..., Any], *arguments: object, **named: object) -> Any:
        """Run a function in the namespace; sockets made there belong to it and may be used anywhere."""
        return self._thread.submit(function, *arguments, **named).result(timeout=60)

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs a program in the namespace."""
        return [self._path, "netns", "exec", self.name, *arguments]

    def add_addresses(self, *addresses: str) -> None:
        """Give addresses (``fd00::1/128``) to the loopback device."""
        batch = "".join(f"address add {address} dev lo nodad\n" for address in addresses)
        subprocess.run([self._path, "-n", self.name, "-batch", "-"], input=batch, text=True, check=True)

    def add_local(self, prefix: str) -> None:
        """Make every address of an IPv6 prefix one of this namespace's (IPV6_FREEBIND binds them)."""
        self.ip("-6", "route", "add", "local", prefix, "dev", "lo")

    def close(self) -> None:
        """Leave and delete the namespace."""
        self._thread.shutdown()
        self._ip_command("netns", "delete", self.name)


@pytest.fixture
def make_netns(needs: Callable[[str, str], str]) -> Iterator[Callable[[], NetworkNamespace]]:
    """Make fresh network namespaces, deleted at the end of the test."""
    ip, made = needs("ip", "iproute2"), []
    numbers = itertools.count()

    def make() -> NetworkNamespace:
        made.append(NetworkNamespace(ip, f"aiolb-test-{os.getpid()}-{next(numbers)}"))
        return made[-1]

    yield make
    for namespace in made:
        namespace.close()


@pytest.fixture
def netns(make_netns: Callable[[], NetworkNamespace]) -> NetworkNamespace:
    """A fresh network namespace with its loopback up."""
    return make_netns()


@pytest.fixture
def address() -> Iterator[Address]:
    """A free port of 127.0.0.1 that stays free; with eBPF only, for who keeps it free gets datagrams without."""
    with sockets.reserved_port(Address("127.0.0.1", 0)) as free:
        yield free


@pytest.fixture
def joining(bpffs: Path, address: Address, program: ProgramSpec) -> Iterator[Callable[..., Members]]:
    """Join with all members: ``joining(3, given={...}, pinned=False)``; closed, and forgotten, at the end."""
    made: list[Members] = []
    roomy = partial(sockets.bind_buffered, size=1 << 23)

    def run(
        count: int | None = None,
        *,
        given: Mapping[int, socket.socket] | None = None,
        pinned: bool = True,
        bind: Bind = roomy,
        seed: int | None = SEED,
        strict: bool | None = None,
        program: ProgramSpec = program,
        balancer: str = "ebpf",
        takeover: bool = False,
    ) -> Members:
        group = GroupOptions(count=count, seed=seed, strict=strict, program=program, bpffs=bpffs if pinned else None)
        options = JoinOptions(balancer=balancer, takeover=takeover, group=group)
        made.append(join_all(address, bind, options, given=given))
        return made[-1]

    yield run
    for members in reversed(made):
        members.close(forget=True)


class Sender:
    """Sends datagrams from any source of this machine through one socket (IP_PKTINFO, IPV6_PKTINFO)."""

    def __init__(self, family: socket.AddressFamily) -> None:
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            self.sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)

    def send(self, source: IPAddress, to: Address, payload: bytes = b"x") -> None:
        """Send one datagram."""
        if isinstance(source, IPv4Address):
            control = (socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I4s4x", 0, source.packed))
        else:
            control = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("=16sI", source.packed, 0))
        assert self.sock.sendmsg([payload], [control], 0, (to.host, to.port)) == len(payload)


class Taken(NamedTuple):
    """A datagram, and which socket received it."""

    socket: int | str
    payload: bytes
    source: IPAddress
    port: int


@pytest.fixture
def sender() -> Iterator[Sender]:
    """Sends IPv4 datagrams from any source."""
    made = Sender(socket.AF_INET)
    yield made
    made.sock.close()


class Cluster:
    """A group and its members' sockets, all in this process."""

    def __init__(self, address: Address, options: GroupOptions, members: Iterable[int]) -> None:
        self.sockets: dict[int | str, socket.socket] = {}
        self.memberships: dict[int, Membership] = {}
        self._senders: dict[int, Sender] = {}
        with sockets.reserved_port(address) as self.address:
            with Group.opened_or_created(self.address, options) as self.group:
                pass
            for index in members:
                self.join(index)

    def bind(self, name: int | str) -> socket.socket:
        """One more socket on the port, which is no member yet."""
        sock = sockets.bind_reuseport(self.address)
        sockets.set_receive_buffer(sock, 1 << 22)
        self.sockets[name] = sock
        return sock

    def join(self, index: int, *, count: int | None = None) -> None:
        """A new socket takes the place ``index``."""
        self.memberships[index] = self.group.join(self.bind(index), index, count=count)

    def kill(self, *names: int | str) -> None:
        """Close members' sockets, as the kernel does when their processes are killed."""
        for name in names:
            self.sockets.pop(name).close()

    def send(self, sources: Iterable[IPAddress], payload: bytes = b"x", *, to: Address | None = None) -> None:
        """Send one datagram from each source."""
        target = to or self.target
        for source in sources:
            sender = self._senders.get(source.version)
            if sender is None:
                family = socket.AF_INET if source.version == 4 else socket.AF_INET6
                sender = self._senders[source.version] = Sender(family)
            sender.send(source, target, payload)

    def forget_ports(self) -> None:
        """Send from other ports from now on."""
        while self._senders:
            self._senders.popitem()[1].sock.close()

    @property
    def target(self) -> Address:
        """Where to send: the group's address, or its loopback one."""
        return Address(to_send_to(self.address.host), self.address.port)

    def receive(self, expected: int) -> dict[IPAddress, int | str]:
        """Take ``expected`` datagrams, each of another source: which socket received each source."""
        taken = self.take(expected)
        found = {datagram.source: datagram.socket for datagram in taken}
        assert len(found) == len(taken), "a source was received twice"
        return found

    def take(self, expected: int) -> list[Taken]:
        """Take ``expected`` datagrams out of the sockets."""
        found: list[Taken] = []
        while len(found) < expected:
            assert self.wait(), f"{expected - len(found)} of {expected} datagrams did not arrive"
            for name, sock in self.sockets.items():
                found += [Taken(name, *datagram) for datagram in _drain(sock)]
        assert len(found) == expected
        return found

    def wait(self) -> bool:
        """Wait until a socket is readable; False when none is in ten seconds."""
        poll = select.poll()
        for sock in self.sockets.values():
            poll.register(sock, select.POLLIN)
        return bool(poll.poll(DEADLINE * 1000))

    def route(self, sources: Sequence[IPAddress], *, to: Address | None = None) -> dict[IPAddress, int | str]:
        """Send one datagram from each source; which socket received each source."""
        found: dict[IPAddress, int | str] = {}
        for start in range(0, len(sources), CHUNK):
            chunk = sources[start : start + CHUNK]
            self.send(chunk, to=to)
            received = self.receive(len(chunk))
            assert received.keys() == set(chunk)
            found |= received
        return found

    def route_flows(
        self, sources: Iterable[IPAddress], *, to: Address | None = None
    ) -> dict[tuple[IPAddress, int], int | str]:
        """Send one datagram from each source, and from a port that the kernel chooses; which socket received each."""
        target, flows = to or self.target, []
        for source in sources:
            with socket.socket(socket.AF_INET if source.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as sender:
                if source.version == 6:
                    sender.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
                sender.bind((str(source), 0))
                sender.sendto(b"x", (target.host, target.port))
                flows.append((source, sender.getsockname()[1]))
        found = {(taken.source, taken.port): taken.socket for taken in self.take(len(flows))}
        assert found.keys() == set(flows)
        return found

    def predict(self, sources: Iterable[IPAddress], alive: Iterable[int]) -> dict[IPAddress, int | None]:
        """What the pure twin says about each source."""
        key = self.group.key
        keys = {source: key.bytes_of(source) for source in sources}
        return dict(zip(keys, self.members_of(keys.values(), alive), strict=True))

    def members_of(self, keys: Iterable[bytes], alive: Iterable[int]) -> list[int | None]:
        """The member that the pure twin names for what is hashed of each key."""
        config, slots, living = self.group.config, self.group.slots, set(alive)
        return [
            hashing.choose(config.seed, key, slots, config.count, living, newest=config.newest).member for key in keys
        ]

    @property
    def statistics(self) -> GroupStatistics:
        """The group's counters now."""
        return self.group.statistics()

    def close(self) -> None:
        """Close everything and remove the pins."""
        self.forget_ports()
        self.kill(*self.sockets)
        self.group.delete_if_empty()
        self.group.close()


def _drain(sock: socket.socket) -> Iterator[tuple[bytes, IPAddress, int]]:
    while True:
        try:
            payload, addr = sock.recvfrom(65536)
        except BlockingIOError:
            return
        yield payload, canonical(ip_address(addr[0])), addr[1]


@pytest.fixture
def aiolb(bpffs: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command that is expected to end: ``aiolb("serve", ...)``; not to be used for one that stays."""

    def run(*arguments: str, prefix: Sequence[str] = (), bpffs: Path = bpffs) -> subprocess.CompletedProcess[str]:
        command = [*prefix, *serving.AIOLB, *arguments, "--bpffs", str(bpffs)]
        return subprocess.run(command, capture_output=True, text=True, timeout=serving.DEADLINE, check=False)

    return run


@pytest.fixture
def cluster(bpffs: Path, program: ProgramSpec) -> Iterator[Callable[..., Cluster]]:
    """Make groups with live members: ``cluster(count=3, members=range(3), host="127.0.0.1", strict=None)``."""
    made = []

    def make(
        count: int = 3,
        *,
        members: Iterable[int] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        seed: int = SEED,
        strict: bool | None = None,
        key: Key | None = None,
        program: ProgramSpec = program,
    ) -> Cluster:
        options = GroupOptions(count=count, seed=seed, strict=strict, key=key, program=program, bpffs=bpffs)
        made.append(Cluster(Address(host, port), options, range(count) if members is None else members))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


def _sources_v4(number: int, *, seed: int = 1) -> list[IPv4Address]:
    numbers = random.Random(seed).sample(range(1, (1 << 24) - 1), number)
    return [IPv4Address(127 << 24 | low) for low in numbers]


def _sources_v6(number: int, *, seed: int = 1) -> list[IPv6Address]:
    generator = random.Random(seed)
    return [IPv6Address(0xFD << 120 | generator.getrandbits(120)) for _ in range(number)]


@pytest.fixture(scope="session")
def sources_v4() -> Callable[..., list[IPv4Address]]:
    """Different IPv4 sources, always the same ones: ``sources_v4(1000)``, all in 127.0.0.0/8."""
    return _sources_v4


@pytest.fixture(scope="session")
def sources_v6() -> Callable[..., list[IPv6Address]]:
    """Different IPv6 sources, always the same ones: ``sources_v6(1000)``, all in fd00::/8."""
    return _sources_v6
