"""docs/how-to/library.md is true: its servers run as they stand, as three members, and each source stays on one."""

from __future__ import annotations

import datetime as dt
import json
import select
import shlex
import signal
import subprocess
from contextlib import ExitStack

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from deadline import DEADLINE
from documents import ROOT, blocks, blocks_of, commands, shown_files

PAGE = "docs/how-to/library.md"
CLIENT = str(ROOT / "tests" / "library_client.py")
PROGRAMS = {"asyncio": "tcp", "uvicorn": "http", "aiohttp": "http", "quic": "quic"}
SOURCES = [f"127.0.{number // 200 + 1}.{number % 200 + 1}" for number in range(60)]


@pytest.fixture
def namespaces(namespaces):
    """Namespaces with the programs of the page in the working directory."""
    for name, text in shown_files(PAGE).items():
        (namespaces.folder / name).write_text(text)
    return namespaces


def started(namespaces, command):
    """A process that runs a command; its output is text."""
    return namespaces.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ask(namespaces, protocol):
    """The member that answers each source."""
    return json.loads(namespaces.run(shlex.join(["python", CLIENT, protocol, *SOURCES])))


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
        process = started(namespaces, f"aiolb group show {name} --json")
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
            server = started(namespaces, f"python {name}_server.py {index}")
            stack.callback(server.communicate)
            stack.callback(server.kill)
            servers.append(server)
        wait_until_joined(namespaces, group, 3)
        first, second = ask(namespaces, protocol), ask(namespaces, protocol)
        assert first == second
        assert set(first.values()) == {0, 1, 2}
        servers[2].send_signal(signal.SIGTERM)
        output, _ = servers[2].communicate(timeout=DEADLINE)
        # uvicorn ends by the signal that it was sent, once it has done everything else.
        assert servers[2].returncode in (0, -signal.SIGTERM), output
        assert "Traceback" not in output
        third = ask(namespaces, protocol)
        assert set(third.values()) == {0, 1}
        assert [source for source in SOURCES if first[source] != 2 and third[source] != first[source]] == []


def test_the_commands(namespaces):
    """The commands of the page prepare a group, show it and take it away."""
    outputs = [namespaces.run(command) for command in commands(PAGE)]
    assert outputs[0].startswith("tcp:127.0.0.1:9000 is prepared for nobody: 3 members, key source\n")
    assert "owner     nobody:nogroup, prepared" in outputs[1]
    assert outputs[2] == "deleted tcp:127.0.0.1:9000\n"


def test_every_block_is_tested():
    """There are no blocks but programs, which another test compiles, and commands."""
    assert {block.language for block in blocks_of(PAGE)} == {"python", "sh"}
    assert len(blocks(PAGE, "python")) == len(PROGRAMS)
    assert set(shown_files(PAGE)) == {f"{name}_server.py" for name in PROGRAMS}
