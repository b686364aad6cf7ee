"""Compiles balancer.c with bcc, in a short-lived child process: bcc and LLVM never enter a collector."""

from __future__ import annotations

import base64
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from aiolb.bpf.key_file import JoinedSource, KeyFile
from aiolb.bpf.spec import BYTECODE, FOLDER, MIGRATING, ProgramSpec, source_digest
from aiolb.errors import CompileError, CompileStoppedError
from aiolb.held_signals import held

_CALL = 0x85

TIMEOUT = 60
"""Seconds that a compilation may take; measured 0.5."""
POLL = 0.05
"""Seconds between two looks whether a signal came meanwhile."""

BCC_FOLDERS: list[str] | None = None
"""Where to look for bcc; None: where distributions keep it, and on Python's own path."""

_INSTALL = "apt-get install python3-bpfcc (Debian, Ubuntu) or dnf install python3-bcc (Fedora)"


def compile_balancer(*, debug: bool = False, migrates: bool = False, key_file: KeyFile | None = None) -> ProgramSpec:
    """Compile the balancer; with ``debug`` every decision is written to the kernel's trace file.

    With ``migrates`` it is the program for TCP that also moves the waiting connections of a closed listener, and with
    ``key_file`` its function makes the key.

    Needs the distribution's bcc, no kernel headers and no privilege. Raises CompileError; CompileStoppedError, at once
    and when it has ended, where SIGINT or SIGTERM came.
    """
    defined = {"AIOLB_DEBUG": debug, "AIOLB_MIGRATE": migrates, "AIOLB_KEY_FILE": key_file is not None}
    flags = [
        f"-I{FOLDER}",
        "-Werror=undefined-internal",
        "-Werror=uninitialized",
        *(f"-D{name}" for name, wanted in defined.items() if wanted),
    ]
    balancer = (FOLDER / "balancer.c").read_text()
    joined = balancer if key_file is None else JoinedSource(balancer, key_file)
    request = {"source": str(joined), "flags": flags, "function": "balancer", "folders": BCC_FOLDERS}
    with held() as came:
        answer, output = _ask_bcc({**request, "lines": key_file is not None}, came)
    if "error" in answer:
        raise _error(answer["error"], answer["detail"], output, joined)
    bytecode = base64.b64decode(answer["bytecode"])
    if key_file is not None and _calls_functions(bytecode):
        raise CompileError(
            f"{key_file.name} calls a function that cannot be inlined",
            hint="a function of a key file cannot call itself",
        )
    return ProgramSpec(
        bytecode,
        "aiolb_debug" if debug else "aiolb_compiled",
        source_digest(),
        answer["compiler"],
        migrates,
        joined.places(output) if isinstance(joined, JoinedSource) else None,
    )


def _calls_functions(bytecode: bytes) -> bool:
    """Whether a call is one of another function (BPF_PSEUDO_CALL), which bcc leaves behind, and not of the kernel."""
    return any(code == _CALL and registers >> 4 == 1 for code, registers in struct.iter_unpack("=BB6x", bytecode))


def _communicate(child: subprocess.Popen[str], request: str, came: Sequence[signal.Signals]) -> tuple[str, str]:
    """What the child writes to both ends, once it has ended. Raises CompileError."""
    deadline = time.monotonic() + TIMEOUT
    wanted: str | None = request
    while time.monotonic() < deadline:
        try:
            return child.communicate(wanted, timeout=POLL)
        except subprocess.TimeoutExpired:
            wanted = None  # it has been taken
        if came:
            raise CompileStoppedError(f"{came[0].name} came while bcc compiled the balancer")
    raise CompileError(f"bcc was not done after {TIMEOUT:g} s")


def _ask_bcc(request: dict[str, object], came: Sequence[signal.Signals]) -> tuple[dict[str, str], str]:
    """Bcc's answer, and what it and clang wrote to standard error."""
    # bcc takes this for a kernel's source tree; include/ holds the few headers that it asks for.
    environment = {**os.environ, "BCC_KERNEL_SOURCE": str(FOLDER)}
    try:
        child = subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, "-I", str(Path(__file__).with_name("bcc_child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            process_group=0,  # Ctrl-C is for us, who end it: it would say of it what nobody wants to read
        )
    except OSError as error:  # say, a virtual environment of another user's Python
        raise CompileError(f"{sys.executable} cannot be started: {error.strerror}") from error
    try:
        out, errors = _communicate(child, json.dumps(request), came)
    except BaseException:
        child.kill()
        child.communicate()
        raise
    try:
        answer: dict[str, str] = json.loads(out)
    except ValueError:
        lines = [line for line in errors.splitlines() if "error:" in line]  # of LLVM, say, which then exits
        said = lines[-1] if lines else errors.strip()[-500:]
        raise CompileError(f"bcc ended with status {child.returncode}{': ' if said else ''}{said}") from None
    return answer, errors


def _error(kind: str, detail: str, output: str, source: str | JoinedSource) -> CompileError:
    if kind == "missing":
        return CompileError("bcc is not installed", hint=_INSTALL)
    if kind == "unrelated":
        return CompileError(
            f"{detail} is an unrelated package that has the name bcc on PyPI, not the BPF Compiler Collection",
            hint=f"{sys.executable} -m pip uninstall bcc, then {_INSTALL}",
        )
    if kind == "broken":
        return CompileError(f"bcc cannot be imported: {detail}", hint=_INSTALL)
    if isinstance(source, JoinedSource) and (said := source.error(output)):
        return CompileError(said, hint=f"the functions that it may use are in {FOLDER / 'key.h'}")
    errors = [line for line in output.splitlines() if "error:" in line]
    return CompileError(f"the balancer does not compile: {errors[0] if errors else detail}")


def main() -> None:
    """Rebuild the bytecode from the C source (``make bytecode``)."""
    for name, path in BYTECODE.items():
        path.write_bytes(compile_balancer(migrates=name == MIGRATING).to_bytes())


if __name__ == "__main__":
    main()
