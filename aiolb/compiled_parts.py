"""Whether the compiled parts are there, and how to get them."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from aiolb.diagnosis import Diagnosis, Level
from aiolb.receive import choose

_PACKAGE = Path(__file__).parent


def receiver() -> Diagnosis:
    """Whether what receives, runs handlers and replies is compiled."""
    try:
        choose.compiled()
    except ImportError as error:
        return _plain("receiver", error, "aiolb.receive")
    return Diagnosis("receiver", Level.OK, "compiled: receiving, steps of handlers, replies")


def sender() -> Diagnosis:
    """Whether what sends is compiled."""
    try:
        importlib.import_module("aiolb.send._fast")
    except ImportError as error:
        return _plain("sender", error, "aiolb.send")
    return Diagnosis("sender", Level.OK, "compiled")


def _plain(check: str, error: ImportError, package: str) -> Diagnosis:
    found = f"in plain Python, which is slower: {_why(error, package)}"
    if os.environ.get(choose.REQUIRE_FAST) == "1":
        return Diagnosis(check, Level.PROBLEM, f"{found}; {choose.REQUIRE_FAST}=1 forbids that", _how_to_build())
    return Diagnosis(check, Level.WARNING, found, _how_to_build())


def _why(error: ImportError, package: str) -> str:
    if not isinstance(error, ModuleNotFoundError):
        return str(error)
    folder = _PACKAGE / package.rpartition(".")[2]
    built = {path.name.partition(".")[2] for path in folder.glob("_fast*.so")}
    if built and not any(f".{suffix}" in EXTENSION_SUFFIXES for suffix in built):
        return f"built for another Python ({', '.join(sorted(built))})"
    return f"not built ({error})"


def _how_to_build() -> str:
    """The command that compiles them: in a checkout from its own files, else from the package's source."""
    compiler = "as root: apt-get install gcc libc6-dev python3-dev, then"
    pip = f"{sys.executable} -m pip install --force-reinstall --no-deps"
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file():
        return f"{compiler}: {pip} --editable {checkout}"
    return f"{compiler}: {pip} --no-binary aiolb aiolb"
