"""Compiles balancer.c with bcc, in a short-lived child process: bcc and LLVM never enter a collector."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

from aiolb.bpf.spec import BYTECODE, FOLDER, MIGRATING, ProgramSpec, source_digest
from aiolb.errors import CompileError

TIMEOUT = 60
"""Seconds that a compilation may take; measured 0.5."""

BCC_FOLDERS: list[str] | None = None
"""Where to look for bcc; None: where distributions keep it, and on Python's own path."""

_INSTALL = "apt-get install python3-bpfcc (Debian, Ubuntu) or dnf install python3-bcc (Fedora)"


def compile_balancer(*, debug: bool = False, migrates: bool = False) -> ProgramSpec:
    """Compile the balancer; with ``debug`` every decision is written to the kernel's trace file.

    With ``migrates`` it is the program for TCP that also moves the waiting connections of a closed listener.

    Needs the distribution's bcc, no kernel headers and no privilege. Raises CompileError.
    """
    defined = {"AIOLB_DEBUG": debug, "AIOLB_MIGRATE": migrates}
    flags = [f"-I{FOLDER}", *(f"-D{name}" for name, wanted in defined.items() if wanted)]
    source = (FOLDER / "balancer.c").read_text()
    answer = _ask_bcc({"source": source, "flags": flags, "function": "balancer", "folders": BCC_FOLDERS})
    return ProgramSpec(
        base64.b64decode(answer["bytecode"]),
        "aiolb_debug" if debug else "aiolb_compiled",
        source_digest(),
        answer["compiler"],
        migrates,
    )


def _ask_bcc(request: dict[str, object]) -> dict[str, str]:
    # bcc takes this for a kernel's source tree; include/ holds the few headers that it asks for.
    environment = {**os.environ, "BCC_KERNEL_SOURCE": str(FOLDER)}
    try:
        child = subprocess.run(  # noqa: S603 - our own script
            [sys.executable, "-I", str(Path(__file__).with_name("bcc_child.py"))],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CompileError(f"bcc was not done after {TIMEOUT:g} s") from None
    try:
        answer: dict[str, str] = json.loads(child.stdout)
    except ValueError:
        said = child.stderr.strip()[-500:]
        raise CompileError(f"bcc ended with status {child.returncode}{': ' if said else ''}{said}") from None
    if "error" in answer:
        raise _error(answer["error"], answer["detail"], child.stderr)
    return answer


def _error(kind: str, detail: str, output: str) -> CompileError:
    if kind == "missing":
        return CompileError("bcc is not installed", hint=_INSTALL)
    if kind == "unrelated":
        return CompileError(
            f"{detail} is an unrelated package that has the name bcc on PyPI, not the BPF Compiler Collection",
            hint=f"pip uninstall bcc, then {_INSTALL}",
        )
    if kind == "broken":
        return CompileError(f"bcc cannot be imported: {detail}", hint=_INSTALL)
    errors = [line for line in output.splitlines() if "error:" in line]
    return CompileError(f"the balancer does not compile: {errors[0] if errors else detail}")


def main() -> None:
    """Rebuild the bytecode from the C source (``make bytecode``)."""
    for name, path in BYTECODE.items():
        path.write_bytes(compile_balancer(migrates=name == MIGRATING).to_bytes())


if __name__ == "__main__":
    main()
