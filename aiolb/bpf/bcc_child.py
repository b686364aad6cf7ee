"""Runs bcc in a process of its own: a request on standard input, bytecode or an error on standard output, both JSON.

Started by path, not as a part of the package, so that nothing but bcc is imported here and bcc nowhere else.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# Where distributions keep the real bcc, which virtual environments do not see.
SYSTEM_PACKAGES = (
    "/usr/lib/python3/dist-packages",
    f"/usr/lib/python3.{sys.version_info.minor}/site-packages",
    f"/usr/lib64/python3.{sys.version_info.minor}/site-packages",
)


def find_bcc(folders: list[str]) -> tuple[str | None, str | None]:
    """The folder to import the real bcc from, and the path of an unrelated package of that name."""
    unrelated = None
    for folder in folders:
        package = Path(folder) / "bcc"
        if (package / "libbcc.py").is_file():
            return folder, unrelated
        if (package / "__init__.py").is_file() or package.with_suffix(".py").is_file():
            unrelated = str(package)
    return None, unrelated


def import_bcc(folder: str) -> ModuleType:
    """Import bcc from ``folder`` and leave the search path as it was."""
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("bcc")
    finally:
        sys.path.remove(folder)


def compiler_name(bcc: ModuleType) -> str:
    """Bcc's version and the LLVM that it brought into this process: together they decide the bytecode."""
    libraries = {
        Path(line.split()[-1]).name for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line
    }
    llvm = sorted(name for name in libraries if name.startswith(("libLLVM", "libclang")))
    return " ".join(["bcc", str(bcc.__version__), *llvm])


def compile_program(request: dict[str, Any]) -> dict[str, object]:
    """Compile ``request['source']`` with ``request['flags']`` and take ``request['function']`` out of it.

    bcc is looked for in ``request['folders']``; None: where distributions keep it, and on Python's own path. With
    ``request['lines']`` it writes to standard error the text as it rewrote it, and the line of each instruction.
    """
    folder, unrelated = find_bcc(request["folders"] or [*SYSTEM_PACKAGES, *sys.path])
    if folder is None:
        return {"error": "unrelated" if unrelated else "missing", "detail": unrelated}
    try:
        bcc = import_bcc(folder)
    except (ImportError, OSError) as error:
        return {"error": "broken", "detail": f"{folder}: {error}"}
    try:
        debug = bcc.DEBUG_PREPROCESSOR | bcc.DEBUG_SOURCE if request["lines"] else 0
        module = bcc.BPF(text=request["source"], cflags=request["flags"], debug=debug)
        bytecode = module.dump_func(request["function"])
    except Exception as error:  # noqa: BLE001 - bcc raises bare Exception; clang's words are on standard error
        return {"error": "compile", "detail": str(error)}
    return {"bytecode": base64.b64encode(bytecode).decode(), "compiler": compiler_name(bcc)}


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # libbcc writes there too
        json.dump(compile_program(json.load(sys.stdin)), out)
