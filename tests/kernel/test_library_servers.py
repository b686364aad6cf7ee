"""docs/how-to/library.md is true: its servers run as they stand, as three members, and each source stays on one."""

from __future__ import annotations

import ast
import datetime as dt
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from deadline import DEADLINE

TESTS = Path(__file__).parent.parent
PAGE = (TESTS.parent / "docs" / "how-to" / "library.md").read_text()
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
PROGRAMS = {"asyncio": "tcp", "uvicorn": "http", "aiohttp": "http", "quic": "quic"}
SOURCES = [f"127.0.{number // 200 + 1}.{number % 200 + 1}" for number in range(60)]


def blocks(language):
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


class Namespaces:
    """A network and a mount namespace in which every port is free, and what runs in them."""

    def __init__(self, folder, holder):
        self._folder = folder
        self._enter = ["nsenter", f"--target={holder.pid}", "--net", "--mount", "--root", f"--wd={folder}", "--"]

    def start(self, *command):
        """Start a command; the caller ends it."""
        return subprocess.Popen(
            [*self._enter, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRONMENT, text=True
        )

    def run(self, *command):
        """Run a command to its end; its output."""
        process = self.start(*command)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        return output

    def ask(self, protocol):
        """The member that answers each source."""
        return json.loads(self.run("python", str(TESTS / "library_client.py"), protocol, *SOURCES))


@pytest.fixture
def namespaces(tmp_path, needs):
    """Namespaces with the programs of the page, and a certificate, in the working directory."""
    for block in blocks("python"):
        name = re.match(r"# (\w+\.py)\n", block)
        (tmp_path / name[1]).write_text(block)
    script = f"{needs('ip', 'iproute2')} link set lo up && mount -t bpf bpf /sys/fs/bpf && echo ready && exec cat"
    with subprocess.Popen(
        [needs("unshare", "util-linux"), "--net", "--mount", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:  # the end of its input is the end of the namespaces
        assert holder.stdout.readline() == b"ready\n"
        yield Namespaces(tmp_path, holder)


def write_certificate(folder):
    """A certificate for localhost that is signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def wait_until_joined(namespaces, name, count):
    """Until so many members are alive, as `aiolb group show` says."""
    for _ in range(200):
        process = namespaces.start("aiolb", "group", "show", name, "--json")
        output, _ = process.communicate(timeout=DEADLINE)
        if process.returncode == 0 and json.loads(output)[0]["alive"] == count:
            return
        select.select([], [], [], 0.05)
    pytest.fail(f"{count} members did not join: {output}")


@pytest.mark.parametrize("name", PROGRAMS)
def test_three_members(namespaces, tmp_path, name):
    """Every source is answered by one member, all three have some; who leaves loses nobody, and only its own move."""
    protocol = PROGRAMS[name]
    if protocol == "quic":
        write_certificate(tmp_path)
    group = "127.0.0.1:9000" if protocol == "quic" else "tcp:127.0.0.1:9000"
    with ExitStack() as stack:
        servers = []
        for index in range(3):
            server = namespaces.start("python", f"{name}_server.py", str(index))
            stack.callback(server.communicate)
            stack.callback(server.kill)
            servers.append(server)
        wait_until_joined(namespaces, group, 3)
        first, second = namespaces.ask(protocol), namespaces.ask(protocol)
        assert first == second
        assert set(first.values()) == {0, 1, 2}
        servers[2].send_signal(signal.SIGTERM)
        output, _ = servers[2].communicate(timeout=DEADLINE)
        # uvicorn ends by the signal that it was sent, once it has done everything else.
        assert servers[2].returncode in (0, -signal.SIGTERM), output
        assert "Traceback" not in output
        third = namespaces.ask(protocol)
        assert set(third.values()) == {0, 1}
        assert [source for source in SOURCES if first[source] != 2 and third[source] != first[source]] == []


def test_the_commands(namespaces):
    """The commands of the page prepare a group, show it and take it away."""
    outputs = [
        namespaces.run(*shlex.split(line)) for block in blocks("sh") for line in block.splitlines() if line.strip()
    ]
    assert outputs[0].startswith("tcp:127.0.0.1:9000 is prepared for nobody: 3 members, key source\n")
    assert "owner     nobody:nogroup, prepared" in outputs[1]
    assert outputs[2] == "deleted tcp:127.0.0.1:9000\n"


def test_every_block_is_tested():
    """There are no blocks but programs, each of which parses, and commands."""
    assert set(re.findall(r"^```(\S+)$", PAGE, re.MULTILINE)) == {"python", "sh"}
    for program in blocks("python"):
        ast.parse(program)
    assert {re.match(r"# (\w+)_server\.py\n", program)[1] for program in blocks("python")} == set(PROGRAMS)
