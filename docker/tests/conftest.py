"""An engine, the images built from this checkout, and the proof that nothing of them stays on the machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from engine import CONTROL_GROUPS, MIRROR, OUTSIDE, ROOT, Engine

AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
DEADLINE = 60.0
"""Seconds after which something that must happen counts as not happening."""


def pytest_configure() -> None:
    """Clean up after SIGTERM too, and after SIGINT where a script runs this in the background: there it is ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


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
    # As Docker's own images of Debian do: nobody needs what is written safe from a power cut.
    quick = "--dpkgopt=force-unsafe-io"
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=python3,ca-certificates", trust, quick]
    subprocess.run([*command, "bookworm", str(tar), MIRROR], check=True)


def _base(engine: Engine) -> Path:
    """The base image as a tar file: the one that AIOLB_DOCKER_BASE names, or a new one."""
    if given := os.environ.get("AIOLB_DOCKER_BASE"):
        return Path(given)
    made = engine.folder / "base.tar"
    _make_base(made)
    return made


def _build(engine: Engine, base: Path) -> None:
    """Build the two images as a user does, but for the base."""
    engine.load(base, "aiolb-base", f"ENV PIP_CERT={AUTHORITIES}")
    files = {"aiolb": "docker/Dockerfile", "aiolb-builder": "docker/builder/Dockerfile"}

    def build(name: str) -> None:
        options = ["--network=host", "--build-arg=BASE=aiolb-base", f"--file={ROOT / files[name]}", f"--tag={name}"]
        engine.docker("build", *options, str(ROOT))

    with ThreadPoolExecutor() as pool:
        list(pool.map(build, files))


def _traces(folder: Path) -> list[str]:
    """What is left that has the folder's name: mounts, control groups, and processes, those in containers too."""
    found = [str(path) for path in CONTROL_GROUPS.glob(f"*/{folder.name}")]
    for process in Path("/proc").glob("[0-9]*"):
        for file in ("cmdline", "cgroup", "mountinfo"):
            with suppress(OSError):  # it has ended
                if folder.name.encode() in (text := (process / file).read_bytes()):
                    found.append(f"process {process.name}, {file}: {text.decode(errors='replace')}")
    return found


def _machine() -> dict[str, object]:
    """What an engine changes on a machine if it is let."""
    links = {path.name for path in Path("/sys/class/net").iterdir()}
    forwarding = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    folders = [*OUTSIDE, Path("/etc/docker"), Path("/var/lib/docker"), Path("/var/lib/containerd")]
    written = {str(path): path.exists() and sorted(map(str, path.rglob("*"))) for path in folders}
    return {"links": links, "forwarding": forwarding, **written}


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A running engine that has the images ``aiolb-base``, ``aiolb`` and ``aiolb-builder``.

    Its daemon has a network of its own. At the end all of it is gone.
    """
    if os.geteuid() != 0:
        pytest.fail("needs root", pytrace=False)
    before = _machine()
    # Short: a socket's path has 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="aiolb-docker-"))
    try:
        made = Engine(folder)
        with ThreadPoolExecutor() as pool:
            base = pool.submit(_base, made)
            made.fetch()
        with made.running(network=True):
            _build(made, base.result())
        with made.running(network=False):
            yield made
            left = made.docker("ps", "--all", "--quiet").split()
            if left:
                made.docker("rm", "--force", *left)
        assert not left, f"containers left: {left}"
    finally:
        shutil.rmtree(folder)
    assert _traces(folder) == []
    assert _machine() == before


@pytest.fixture
def bpffs(engine: Engine) -> Iterator[str]:
    """A volume that is a BPF file system, as the one of the compose file."""
    engine.docker("volume", "create", "--opt=type=bpf", "--opt=device=bpf", "--opt=o=mode=0700", "test-bpffs")
    yield "test-bpffs"
    engine.docker("volume", "rm", "test-bpffs")
