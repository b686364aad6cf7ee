"""The package is whole: the wheel and the sdist hold every file, and an installed wheel works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "aiolb"
MANUAL = sorted((ROOT / "man").glob("*.1"))
NOT_SOURCES = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "dist", "site", "*.egg-info", "*.so", "_fast*.c"
)
# What pip does in an isolated environment, here with the setuptools that is installed: nothing is downloaded.
BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # the backend writes sys.argv itself
build_meta.build_wheel(folder)
build_meta.build_sdist(folder)
"""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built from a copy of the checkout."""
    checkout, folder = tmp_path_factory.mktemp("build") / "checkout", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, checkout, ignore=NOT_SOURCES)
    done = subprocess.run(
        [sys.executable, "-P", "-c", BUILD, str(folder)],
        cwd=checkout,
        env={**os.environ, "CFLAGS": "-O0"},  # half the time, and nothing here asks how fast the wheel is
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    """The wheel."""
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel was installed into."""
    folder = tmp_path_factory.mktemp("installed")
    command = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run([sys.executable, *command], check=True)
    return folder


def sources() -> set[str]:
    """Every file of the package that users need, relative to the checkout."""
    suffixes = {".py", ".c", ".h", ".bin", ".typed", ".pyi", ".pyx", ".pxd", ".0"}
    paths = {path for path in PACKAGE.rglob("*") if path.suffix in suffixes}
    generated = {path.with_suffix(".c") for path in paths if path.suffix == ".pyx"}
    return {str(path.relative_to(ROOT)) for path in paths - generated}


def test_sources_are_found() -> None:
    """What the next tests look for is there."""
    assert {
        "aiolb/py.typed",
        "aiolb/bpf/balancer.bin",
        "aiolb/bpf/balancer.c",
        "aiolb/bpf/balancer.h",
        "aiolb/bpf/LICENSE.GPL-2.0",
        "aiolb/bpf/include/linux/kconfig.h",
        "aiolb/bpf/include/uapi/linux/bpf.h",
    } < sources()


def test_wheel_holds_the_package(wheel: Path) -> None:
    """The wheel has every file of the package, the compiled parts where there is a compiler, and the licences."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    metadata = {name for name in names if ".dist-info/" in name}
    manual = {name for name in names if ".data/data/share/man/man1/" in name}
    assert {Path(name).name for name in manual} == {path.name for path in MANUAL}
    compiled = {name for name in names if name.endswith(".so")}
    assert names - metadata - manual - compiled == sources()
    assert len(compiled) in {0, len([name for name in sources() if name.endswith(".pyx")])}
    assert compiled or os.environ.get("AIOLB_REQUIRE_FAST") != "1"
    licences = {name.partition("/licenses/")[2] for name in metadata if "/licenses/" in name}
    assert licences == {"LICENSE", "aiolb/bpf/LICENSE.GPL-2.0"}


def test_wheel_metadata(wheel: Path) -> None:
    """The wheel says what it is, what it needs, and which command it brings."""
    with zipfile.ZipFile(wheel) as archive:
        read = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if "dist-info/" in name}
    metadata = HeaderParser().parsestr(read["METADATA"])
    assert metadata["Name"] == "aiolb"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    needed = {re.match(r"[\w-]+", item)[0] for item in metadata.get_all("Requires-Dist") if "extra ==" not in item}
    assert needed == {"click", "rich", "structlog", "uvloop"}
    assert "aiolb = aiolb.cli:main" in read["entry_points.txt"]


def test_sdist_builds_the_same_package(built: Path) -> None:
    """The sdist has what building takes: the package, its settings, and what these name."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    manual = {str(path.relative_to(ROOT)) for path in MANUAL}
    assert sources() | manual | {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_version_is_in_one_place(wheel: Path) -> None:
    """The version is that of pyproject.toml, and no other file repeats it."""
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert wheel.name.split("-")[1] == version
    alone = re.compile(rf"(?<![\d.]){re.escape(version)}(?![\d.])")
    assert [path for path in PACKAGE.rglob("*.py") if alone.search(path.read_text())] == []


def test_installed_wheel_runs_the_demo(installed: Path, tmp_path: Path) -> None:
    """Away from the checkout the installed package starts members, and loses nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "aiolb", "demo", "--balancer", "classic", "--seconds", "0.5", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["sent"], found["received"], found["lost"], found["split_sources"]) == (1000, 1000, 0, 0)


def test_installed_wheel_is_what_runs(installed: Path, tmp_path: Path) -> None:
    """The test above does not run the checkout by mistake, and the bytecode can be read there."""
    code = "import aiolb; from aiolb.bpf import spec; print(aiolb.__file__, len(spec.shipped().instructions) > 0)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(installed / "aiolb" / "__init__.py"), "True"]


def test_wheels_that_are_published() -> None:
    """The wheels that cibuildwheel would build are for three versions of Python on two architectures."""
    found = []
    for architecture in ("x86_64", "aarch64"):
        command = ["-m", "cibuildwheel", "--platform", "linux", "--archs", architecture, "--print-build-identifiers"]
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True)
        found += done.stdout.split()
    expected = [f"cp{minor}-manylinux_{arch}" for arch in ("x86_64", "aarch64") for minor in (311, 312, 313)]
    assert sorted(found) == sorted(expected)
