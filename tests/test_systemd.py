"""The service manager hears every state, keeps sockets over a death and passes them on; without one nothing happens."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import service_manager
import structlog
from hypothesis import given
from hypothesis import strategies as st

from aiolb import systemd
from aiolb.address import Address
from aiolb.errors import ConfigurationError, StartError
from aiolb.systemd import Inherited, ServiceManager, SocketName

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples" / "systemd"


StandIn = service_manager.ServiceManager

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def heard():
    """``heard(manager)``: what this process tells the stand-in, which takes it for the service."""

    def connect(manager):
        manager.main_pid = os.getpid()
        return ServiceManager.from_environment(manager.environment())

    return connect


@pytest.fixture
def udp():
    """A bound UDP socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


# --- states


async def test_states(heard):
    """Every state reaches the manager as sd_notify(3) writes it."""
    async with StandIn(watchdog=3) as manager:
        service = heard(manager)
        service.ready()
        service.ready("3 workers")
        service.status("busy")
        service.watchdog()
        service.stopping()
        service.stopping("draining")
        await manager.told("STATUS=draining")
    assert [message.assignments for message in manager.messages] == [
        ("READY=1",),
        ("READY=1", "STATUS=3 workers"),
        ("STATUS=busy",),
        ("WATCHDOG=1",),
        ("STOPPING=1",),
        ("STOPPING=1", "STATUS=draining"),
    ]
    assert {message.pid for message in manager.messages} == {os.getpid()}


async def test_a_reload_carries_the_time_at_which_it_began(heard):
    """RELOADING=1 comes with CLOCK_MONOTONIC in microseconds, taken after the request, as Type=notify-reload wants."""
    async with StandIn() as manager:
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        heard(manager).reloading("reading the configuration")
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        message = await manager.told("RELOADING=1")
    assert before <= int(message["MONOTONIC_USEC"]) <= after
    assert message["STATUS"] == "reading the configuration"


async def test_abstract_socket(heard):
    """A name that begins with @ is that of an abstract socket."""
    async with StandIn(abstract=True) as manager:
        assert manager.address.startswith("@")
        heard(manager).ready()
        await manager.told("READY=1")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("two\nREADY=1\nlines", "two READY=1 lines"),
        ("x" * 2000, "x" * 1000),
        ("😀" * 2000, "😀" * 1000),
        ("\udcff is no text", "? is no text"),
    ],
)
async def test_status_is_one_line(heard, text, told):
    """A status is one line of a length that the manager takes, and no other assignment."""
    async with StandIn() as manager:
        heard(manager).status(text)
        message = await manager.told("STATUS=")
    assert message.assignments == (f"STATUS={told}",)


async def test_an_empty_status_is_no_message(heard):
    """Nothing is sent where nothing is said."""
    async with StandIn() as manager:
        service = heard(manager)
        service.status("")
        service.ready()
        await manager.told("READY=1")
    assert len(manager.messages) == 1


def test_without_a_manager(udp):
    """Without a manager every call does nothing, so that callers need no ifs."""
    service = ServiceManager.from_environment({"WATCHDOG_USEC": "1000000", "FDSTORE": "5"})
    service.ready("up")
    service.reloading()
    service.stopping()
    service.status("text")
    service.watchdog()
    assert not service.keep("name", udp)
    service.forget("name")
    assert (service.kept, service.capacity, service.watchdog_interval) == (False, 0, None)


def test_an_empty_name_is_no_manager():
    """NOTIFY_SOCKET= is as good as none."""
    with structlog.testing.capture_logs() as logs:
        ServiceManager.from_environment({"NOTIFY_SOCKET": ""}).ready()
    assert logs == []


@pytest.mark.parametrize("address", ["/nonexistent/notify", "@aiolb-nobody-is-here", "/etc"])
def test_a_manager_that_is_gone(udp, address):
    """Messages that cannot be sent are lost without an error, and logged once."""
    with structlog.testing.capture_logs() as logs:
        service = ServiceManager.from_environment({"NOTIFY_SOCKET": address, "FDSTORE": "1"})
        service.ready()
        service.status("busy")
        assert not service.keep("name", udp)
    assert [(log["event"], log["lost"]) for log in logs] == [("service_manager_unreachable", "READY=1")]


async def test_a_manager_that_went_deaf(heard):
    """A manager whose socket was closed is survived too."""
    async with StandIn() as manager:
        service = heard(manager)
        service.ready()
        await manager.told("READY=1")
        manager.be_deaf()
        with structlog.testing.capture_logs() as logs:
            service.stopping()
    assert len(logs) == 1


def test_a_manager_that_does_not_read(tmp_path, monkeypatch):
    """A full queue holds a message up for a limited time, then it is lost."""
    monkeypatch.setattr(systemd, "SEND_TIMEOUT", 0.01)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf, structlog.testing.capture_logs() as logs:
        deaf.bind(str(tmp_path / "notify"))
        service = ServiceManager(str(tmp_path / "notify"))
        while not logs:
            service.ready()
    assert logs[0]["event"] == "service_manager_unreachable"


@pytest.mark.parametrize("address", ["vsock:2:1234", "notify", "relative/notify", "@", "/" + "x" * 107])
def test_other_sockets_are_refused(address):
    """What cannot be an AF_UNIX socket is refused with what can be."""
    with pytest.raises(ConfigurationError) as refused:
        ServiceManager.from_environment({"NOTIFY_SOCKET": address})
    assert address in refused.value.message
    assert refused.value.hint


def test_children_do_not_speak_for_the_service():
    """The variables are taken out of the environment that children get, and others are left."""
    environ = {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "FDSTORE": "1", "PATH": "/bin"}
    ServiceManager.from_environment(environ)
    assert environ == {"PATH": "/bin"}


# --- watchdog


@pytest.mark.parametrize("named", [False, True])
def test_watchdog_interval(named):
    """It is half of what the manager waits, for this process or for whoever is asked."""
    environ = {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "30000000"}
    if named:
        environ["WATCHDOG_PID"] = str(os.getpid())
    assert ServiceManager.from_environment(environ).watchdog_interval == 15.0


async def test_no_watchdog(heard):
    """Where the manager does not watch, or watches another process, no watchdog message is sent."""
    async with StandIn() as manager:
        others = manager.environment() | {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getppid())}
        for service in (heard(manager), ServiceManager.from_environment(others)):
            assert service.watchdog_interval is None
            service.watchdog()
            service.ready()
            await manager.told("READY=1")
    assert {message.assignments for message in manager.messages} == {("READY=1",)}


@pytest.mark.parametrize(
    "environ",
    [
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "9" * 5000},
        {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "me"},
        {"FDSTORE": "many"},
        {"FDSTORE": "¹"},
    ],
)
def test_wrong_numbers(environ):
    """A number that is none is told with its variable and a way out."""
    with pytest.raises(ConfigurationError) as refused:
        ServiceManager.from_environment(environ | {"NOTIFY_SOCKET": "/n"})
    assert refused.value.message.startswith(tuple(environ))
    assert "env -u" in refused.value.hint


# --- the store


async def test_kept_is_what_the_manager_says(heard, udp):
    """A notify socket alone does not say that there is a store, so nothing is sent to one."""
    async with StandIn(store=4, tells_store=False) as manager:
        service = heard(manager)
        assert not service.kept
        assert not service.keep("name", udp)
        service.forget("name")
        service.ready()
        await manager.told("READY=1")
    assert len(manager.messages) == 1


async def test_keep_and_forget(heard, udp):
    """A socket is kept under its name, once however often it is given, until it is forgotten."""
    async with StandIn(store=4) as manager:
        service = heard(manager)
        assert service.kept
        assert service.keep("one", udp)
        message = await manager.told("FDSTORE=1")
        assert (message.assignments, message.descriptors) == (("FDSTORE=1", "FDNAME=one", "FDPOLL=0"), 1)
        ((name, kept),) = manager.stored
        assert name == "one"
        assert os.fstat(kept).st_ino == os.fstat(udp.fileno()).st_ino
        assert service.keep("one", udp)
        await manager.told("FDSTORE=1")
        assert len(manager.stored) == 1
        service.forget("one")
        message = await manager.told("FDSTOREREMOVE=1")
        assert (message.assignments, message.descriptors) == (("FDSTOREREMOVE=1", "FDNAME=one"), 0)
        assert manager.stored == []


async def test_a_full_store(heard, udp):
    """What does not fit is not sent, and a warning names the setting; a name that is kept already still fits."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as another:
        async with StandIn(store=1) as manager:
            service = heard(manager)
            assert service.keep("one", udp)
            assert service.keep("one", udp)
            with structlog.testing.capture_logs() as logs:
                assert not service.keep("two", another)
            service.forget("one")
            assert service.keep("two", another)
            await manager.told("FDNAME=two")
            assert [name for name, _ in manager.stored] == ["two"]
    assert [(log["event"], log["name"], log["capacity"]) for log in logs] == [("socket_not_kept", "two", 1)]
    assert "FileDescriptorStoreMax=" in logs[0]["hint"]


@pytest.mark.parametrize("name", ["", "a:b", "new\nline", "\x7f", "ümlaut", "x" * 256])
def test_names_that_the_manager_would_not_take(udp, name):
    """They are refused before anything is sent, with or without a manager."""
    with pytest.raises(ConfigurationError):
        ServiceManager().keep(name, udp)
    with pytest.raises(ConfigurationError):
        ServiceManager().forget(name)


# --- what is passed on


def test_nothing_inherited():
    """Without the variables nothing was passed on."""
    assert systemd.inherited({}) == Inherited({}, ())


def test_meant_for_another_process():
    """Descriptors of another process are not touched, and its variables go no further."""
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1000", "LISTEN_FDNAMES": "x", "LISTEN_PIDFDID": "7", "PATH": "/bin"}
    assert systemd.inherited(environ) == Inherited({}, ())
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"LISTEN_PID": "me"},
        {"LISTEN_FDS": "some"},
        {"LISTEN_FDS": "0"},
        {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "one"},
        {"LISTEN_FDNAMES": "one:two"},
    ],
)
def test_wrong_variables(monkeypatch, udp, wrong):
    """Values that cannot be right are refused with a way out."""
    monkeypatch.setattr(systemd, "FIRST_DESCRIPTOR", udp.fileno())
    monkeypatch.setattr(systemd, "_close_on_exec", lambda *_: None)
    with pytest.raises(ConfigurationError) as refused:
        systemd.inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"} | wrong)
    assert refused.value.hint


@pytest.mark.parametrize("number", ["1", "9" * 18])
def test_descriptors_that_are_not_open(monkeypatch, number):
    """A descriptor that a wrapper closed is a failed start that names it."""
    free = os.dup(0)
    os.close(free)
    monkeypatch.setattr(systemd, "FIRST_DESCRIPTOR", free)
    with pytest.raises(StartError, match=f"{number} descriptors, but {free} is not open"):
        systemd.inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": number})


def test_names_and_close_on_exec(monkeypatch, udp):
    """Our names give sockets, the rest is returned apart; none of them reaches a child process."""
    base = fcntl.fcntl(udp, fcntl.F_DUPFD, 200)
    passed = [base, *(os.dup2(udp.fileno(), base + place) for place in (1, 2, 3))]
    monkeypatch.setattr(systemd, "FIRST_DESCRIPTOR", base)
    names = "aiolb_udp_127.0.0.1_10001_2:http::aiolb_udp_127.0.0.1_10001_2"
    try:
        found = systemd.inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "4", "LISTEN_FDNAMES": names})
        assert not any(map(os.get_inheritable, passed))
    finally:
        for descriptor in passed:
            os.close(descriptor)
    assert found.sockets == {SocketName(Address("127.0.0.1", 10001), 2): base}
    assert found.others == (("http", base + 1), ("", base + 2), ("aiolb_udp_127.0.0.1_10001_2", base + 3))


def test_without_names(monkeypatch, udp):
    """Descriptors without names are called unknown, as sd_listen_fds_with_names(3) calls them."""
    monkeypatch.setattr(systemd, "FIRST_DESCRIPTOR", udp.fileno())
    found = systemd.inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
    assert found == Inherited({}, (("unknown", udp.fileno()),))


# --- names


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (Address("127.0.0.1", 10001), "aiolb_udp_127.0.0.1_10001_2"),
        (Address("::", 514), "aiolb_udp_--_514_2"),
        (Address("2001:db8::1", 2055), "aiolb_udp_2001-db8--1_2055_2"),
        (Address("fe80::1%my_vlan-7.1", 2055), "aiolb_udp_fe80--1%my_vlan-7.1_2055_2"),
    ],
)
def test_socket_name(address, text):
    """A name says protocol, address, port and index, and is read back as such."""
    assert str(SocketName(address, 2)) == text
    assert SocketName.parse(text) == SocketName(address, 2)


addresses = st.builds(Address, st.ip_addresses().map(str), st.integers(1, 65535))


@given(addresses, st.integers(0, 1023), st.sampled_from(["udp", "tcp"]))
def test_socket_names_round_trip(address, index, protocol):
    """Every name is read back, has no colon, and is one that the manager takes."""
    name = SocketName(Address(str(systemd.parse_ip(address.host)), address.port), index, protocol)
    systemd._check_name(str(name))
    assert SocketName.parse(str(name)) == name


@given(st.one_of(st.text(), st.from_regex(r"aiolb_(udp|tcp)_[-0-9a-f.%_]{0,20}_\d{0,6}_\d{0,3}", fullmatch=True)))
def test_other_names_are_left_alone(text):
    """A name is ours only if it is written exactly as we write it."""
    name = SocketName.parse(text)
    assert name is None or str(name) == text


@pytest.mark.parametrize(
    "text",
    [
        "stored",
        "aiolb",
        "aiolb_udp_127.0.0.1_10001",
        "aiolb_sctp_127.0.0.1_10001_2",
        "aiolb_udp_127.0.0.1_0_2",
        "aiolb_udp_127.0.0.1_65536_2",
        "aiolb_udp_127.0.0.1_10001_02",
        "aiolb_udp_127.0.0.1_10001_-2",
        "aiolb_udp_127.0.0.1_10001_²",
        "aiolb_udp_127-0-0-1_10001_2",
        "aiolb_udp_localhost_10001_2",
        "aiolb_udp_0-0--0_10001_2",
        "aiolb_udp_--ffff-127.0.0.1_10001_2",
    ],
)
def test_names_that_are_not_ours(text):
    """Names that differ from ours in anything are nobody's."""
    assert SocketName.parse(text) is None


# --- over the death of a process

SERVICE = """
import os, signal, socket, sys
from aiolb import systemd
from aiolb.address import Address

manager = systemd.ServiceManager.from_environment()
passed = systemd.inherited()
assert not [name for name in os.environ if name.startswith(("LISTEN_", "NOTIFY_", "FDSTORE"))]
sockets = {name: socket.socket(fileno=fd) for name, fd in passed.sockets.items()}
for index in range(0 if sockets else int(sys.argv[1])):
    sock = socket.socket(socket.AF_INET6 if index % 2 else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("::1" if index % 2 else "127.0.0.1", 0))
    sockets[systemd.SocketName(Address(*sock.getsockname()[:2]), index)] = sock
queued = {}
for name, sock in sockets.items():
    sock.setblocking(False)
    queued[name] = 0
    try:
        while sock.recv(100):
            queued[name] += 1
    except BlockingIOError:
        manager.keep(str(name), sock)
manager.ready(" ".join(f"{name}={queued[name]}" for name in sorted(queued, key=lambda name: name.index)))
signal.pause()
"""


async def test_sockets_outlive_the_process():
    """A killed process's sockets keep their queues and reach the next one by name, not one datagram short."""
    async with StandIn(store=8) as manager:
        await manager.start(sys.executable, "-W", "error", "-c", SERVICE, "4")
        first = (await manager.told("READY=1"))["STATUS"]
        assert [name for name, _ in manager.stored] == [entry.rpartition("=")[0] for entry in first.split()]
        assert await manager.stop(9) == -9
        names = [SocketName.parse(name) for name, _ in manager.stored]
        assert [name.index for name in names] == [0, 1, 2, 3]
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as v4,
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as v6,
        ):
            for name in names:
                for _ in range(10 + name.index):
                    sender = v6 if name.address.family == socket.AF_INET6 else v4
                    sender.sendto(b"datagram", (name.address.host, name.address.port))
        await manager.start(sys.executable, "-W", "error", "-c", SERVICE, "0")
        second = await manager.told("READY=1")
        assert second["STATUS"] == " ".join(f"{name}={10 + name.index}" for name in names)
        assert len(manager.stored) == 4
        assert await manager.stop() == -15


async def test_only_the_service_is_heard():
    """A child of the service that speaks anyway is not heard, as with NotifyAccess=main."""
    speak = "from aiolb.systemd import ServiceManager as S; S.from_environment().ready()"
    code = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {speak!r}], check=True)
{speak}
"""
    async with StandIn() as manager:
        await manager.start(sys.executable, "-c", code)
        assert await manager.ended() == 0
    assert [message.assignments for message in manager.messages] == [("READY=1",)]
    assert [message.assignments for message in manager.refused] == [("READY=1",)]


async def test_the_stand_in_tells_of_an_early_end():
    """A wait for a message ends when the service does."""
    async with StandIn() as manager:
        await manager.start(sys.executable, "-c", "raise SystemExit(7)")
        with pytest.raises(AssertionError, match="ended with 7"):
            await manager.told("READY=1")


# --- the units


@pytest.mark.parametrize("unit", ["aiolb.service", "aiolb@.service"])
def test_units(tmp_path, unit, needs):
    """The units that we show are taken by systemd, without a warning."""
    # The command need not be installed where the tests run.
    text = (EXAMPLES / unit).read_text().replace("/opt/aiolb/bin/aiolb", sys.executable)
    path = tmp_path / unit.replace("@", "@0")
    path.write_text(text)
    checked = subprocess.run(
        [needs("systemd-analyze", "systemd"), "verify", "--man=no", "--recursive-errors=no", str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"SYSTEMD_LOG_LEVEL": "warning"},
    )
    assert (checked.returncode, checked.stderr) == (0, "")
