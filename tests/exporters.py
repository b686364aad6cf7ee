"""What tests of the example collectors share: the examples, captures, and the tools that export to them."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from types import ModuleType

import serving
from deadline import DEADLINE
from loading import module_of

PORT = 10001
MEMBERS = 3
EXPORTERS = 12
SOURCES = [f"127.2.0.{number}" for number in range(EXPORTERS)]

EXAMPLES = Path(__file__).parent.parent / "examples"
ETHERNET, IPV4, UDP = 1, 0x0800, 17


def example(name: str) -> ModuleType:
    """The module examples/NAME.py."""
    return module_of(EXAMPLES / f"{name}.py")


def write_capture(file: Path, flows: int) -> dict[str, int]:
    """Write a pcap file of that many UDP flows of a packet each, no two of a size; their sums, as NetFlow has them.

    The format is that of pcap-savefile(5).
    """
    packets = [_packet(IPv4Address("10.0.0.1") + number, 1 + number) for number in range(flows)]
    with file.open("wb") as capture:
        capture.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, ETHERNET))
        for packet in packets:
            capture.write(struct.pack("<IIII", 1_700_000_000, 0, len(packet), len(packet)) + packet)
    return {"flows": flows, "packets": flows, "octets": sum(len(packet) - 14 for packet in packets)}


def _packet(source: IPv4Address, size: int) -> bytes:
    udp = struct.pack("!HHHH", 40000, 53, 8 + size, 0) + bytes(size)
    addresses = source.packed + IPv4Address("10.255.0.1").packed
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, UDP, 0) + addresses
    return struct.pack("!6s6sH", b"\2\0\0\0\0\1", b"\2\0\0\0\0\2", IPV4) + ip + udp


def softflowd(path: str, capture: Path, target: str, version: int) -> list[str]:
    """The command that exports the flows of a capture, and ends; its pid file would be the same for all."""
    options = ["-d", "-c", "none", "-p", str(capture.with_suffix(".pid"))]
    return [path, "-r", str(capture), "-n", target, "-v", str(version), *options]


class Member(serving.Member):
    """A member in a network namespace."""

    def __init__(self, enter, *arguments, report):
        super().__init__(*arguments, report=report)
        become = f"import os, sys; os.execv({enter[0]!r}, {enter!r} + [sys.executable] + sys.argv[1:])"
        self._command = ["-c", become, *self._command]


class Site:
    """A network namespace with one port that members share, and tools that send to it from addresses of their own.

    What is sent to 127.1.0.N comes from 127.2.0.N: so says the route, and the tools need no option for it.
    """

    def __init__(self, netns, nsenter, folder, bpffs):
        self.netns = netns
        self._enter = [nsenter, f"--net=/run/netns/{netns.name}"]
        self._folder, self._bpffs = folder, bpffs
        for number, source in enumerate(SOURCES):
            netns.ip("route", "replace", "local", self.host(number), "dev", "lo", "src", source, "table", "local")

    def host(self, number):
        """Where an exporter sends to."""
        return f"127.1.0.{number}"

    def target(self, number):
        """The same with the port."""
        return f"{self.host(number)}:{PORT}"

    async def start(self, stack, app, *options):
        """Three members that run a collector, ready."""
        common = [str(EXAMPLES / app), "--bind", f"0.0.0.0:{PORT}", "--bpffs", str(self._bpffs)]
        common += ["--count", str(MEMBERS), *options]
        members = [
            Member(self._enter, *common, "--index", str(index), report=self._folder / f"{index}.json")
            for index in range(MEMBERS)
        ]
        for member in members:
            await stack.enter_async_context(member)
        await asyncio.gather(*[member.ready() for member in members])
        return members

    async def run(self, *commands, **environment):
        """Run commands side by side, each to its good end."""
        await asyncio.gather(*[self._run(command, environment) for command in commands])

    async def _run(self, command, environment):
        process = await asyncio.create_subprocess_exec(
            *self._enter,
            *command,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(DEADLINE):
                said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, said.decode()

    @contextmanager
    def running(self, *command):
        """Run a command until the end of the block, and stop it."""
        with subprocess.Popen([*self._enter, *command]) as process:
            try:
                yield
            finally:
                process.terminate()
