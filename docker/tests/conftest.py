"""An engine, the images built from this checkout, and the proof that nothing of them stays on the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine import MIRROR, ROOT, Engine

AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
DEADLINE = 60.0
"""Seconds after which something that must happen counts as not happening."""


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Wait for a condition: ``wait_until(lambda: ..., "what")`` fails after a minute."""

    def wait(condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"did not happen within {DEADLINE:g} s: {what}")
            time.sleep(0.1)

    return wait


def _make_base(tar: Path) -> None:
    """A Debian with Python, as a tar file. It trusts whom this machine trusts: a proxy may sit before PyPI."""
    trust = f"--customize-hook=copy-in {AUTHORITIES} {AUTHORITIES.parent}"
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=python3,ca-certificates", trust]
    subprocess.run([*command, "bookworm", str(tar), MIRROR], check=True)


def _build(engine: Engine) -> None:
    """Build the two images as a user does, but for the base."""
    if given := os.environ.get("AIOLB_DOCKER_BASE"):
        base = Path(given)
    else:
        base = engine.folder / "base.tar"
        _make_base(base)
    engine.load(base, "aiolb-base", f"ENV PIP_CERT={AUTHORITIES}")
    for name, file in {"aiolb": "docker/Dockerfile", "aiolb-builder": "docker/builder/Dockerfile"}.items():
        build = ["build", "--network=host", "--build-arg=BASE=aiolb-base"]
        engine.docker(*build, f"--file={ROOT / file}", f"--tag={name}", str(ROOT))


def _traces(folder: Path) -> list[str]:
    """Mounts and processes that have the folder in their names."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]
    commands = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.append(process.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has ended
            continue
    return mounts + [command for command in commands if str(folder) in command]


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A running engine that has the images ``aiolb-base``, ``aiolb`` and ``aiolb-builder``.

    Its daemon has a network of its own. At the end all of it is gone.
    """
    if os.geteuid() != 0:
        pytest.fail("needs root", pytrace=False)
    # Short: a socket's path has 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="aiolb-docker-"))
    try:
        made = Engine(folder)
        made.fetch()
        with made.running(network=True):
            _build(made)
        with made.running(network=False):
            yield made
            left = made.docker("ps", "--all", "--quiet").split()
            if left:
                made.docker("rm", "--force", *left)
        assert not left, f"containers left: {left}"
    finally:
        shutil.rmtree(folder)
    assert _traces(folder) == []


@pytest.fixture
def bpffs(engine: Engine) -> Iterator[str]:
    """A volume that is a BPF file system, as the one of the compose file."""
    engine.docker("volume", "create", "--opt=type=bpf", "--opt=device=bpf", "--opt=o=mode=0700", "test-bpffs")
    yield "test-bpffs"
    engine.docker("volume", "rm", "test-bpffs")
