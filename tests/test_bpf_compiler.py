"""The compiler: bcc in a child process, and what is said when it is missing, another package, or fails."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import sys
import threading
from pathlib import Path

import pytest

from aiolb.bpf import compiler, spec
from aiolb.errors import CompileError, CompileStoppedError

CALL, TRACE_PRINTK = 0x85, 6


@pytest.fixture
def bcc_in(tmp_path, monkeypatch):
    """Let bcc be looked for in a folder with these files only: ``bcc_in({"bcc/__init__.py": ""})``."""

    def put(files):
        for name, content in files.items():
            path = tmp_path / "packages" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        monkeypatch.setattr(compiler, "BCC_FOLDERS", [str(tmp_path / "packages")])
        return tmp_path / "packages"

    return put


def calls(program):
    """The numbers of the helpers that a program calls."""
    return {
        immediate for opcode, _, _, immediate in struct.iter_unpack("=BBhi", program.instructions) if opcode == CALL
    }


def test_compiles(compiled):
    """What bcc makes is named after its compiler and source."""
    assert compiled.name == "aiolb_compiled"
    assert compiled.source_digest == spec.source_digest()
    assert compiled.compiler.startswith("bcc ")


def test_only_debug_traces(compiled, compiled_debug):
    """Only the debug build calls bpf_trace_printk; the others, the shipped one among them, have no call of it."""
    assert TRACE_PRINTK not in calls(spec.shipped()) | calls(compiled)
    assert TRACE_PRINTK in calls(compiled_debug)
    assert compiled_debug.name == "aiolb_debug"
    assert compiled_debug.digest != compiled.digest


@pytest.mark.usefixtures("compiled")
def test_bcc_stays_in_its_own_process():
    """After compiling, neither bcc nor LLVM is in this process."""
    assert not [name for name in sys.modules if name.split(".")[0] == "bcc"]
    maps = Path("/proc/self/maps").read_text()
    assert not [library for library in ("libbcc", "libLLVM", "libclang") if library in maps]


def test_needs_nothing_from_the_environment(compiled, monkeypatch, tmp_path):
    """Whatever the environment says about Python and the kernel's source, what comes along is used."""
    (tmp_path / "bcc.py").write_text("raise SystemExit('imported')")
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert compiler.compile_balancer() == compiled


def test_without_bcc(bcc_in):
    """Without bcc the error says which package to install."""
    bcc_in({})
    with pytest.raises(CompileError, match="bcc is not installed") as caught:
        compiler.compile_balancer()
    assert "apt-get install python3-bpfcc" in caught.value.hint


@pytest.mark.parametrize("name", ["bcc/__init__.py", "bcc.py"])
def test_the_unrelated_package(bcc_in, name):
    """The package that has the name bcc on PyPI is recognised, and not imported."""
    folder = bcc_in({name: "raise SystemExit('imported')"})
    with pytest.raises(CompileError, match=rf"{folder}/bcc is an unrelated package") as caught:
        compiler.compile_balancer()
    assert caught.value.hint.startswith(f"{sys.executable} -m pip uninstall bcc, then apt-get install python3-bpfcc")


def test_the_real_one_behind_the_unrelated_one(compiled, bcc_in, monkeypatch):
    """An unrelated package does not hide the real bcc in a later folder."""
    unrelated = bcc_in({"bcc/__init__.py": "raise SystemExit('imported')"})
    real = "/usr/lib/python3/dist-packages"
    if not Path(real, "bcc/libbcc.py").is_file():
        pytest.skip("this distribution keeps bcc elsewhere")
    monkeypatch.setattr(compiler, "BCC_FOLDERS", [str(unrelated), real])
    assert compiler.compile_balancer() == compiled


def test_a_broken_bcc(bcc_in):
    """A bcc that cannot be imported is named with its folder and reason."""
    folder = bcc_in({"bcc/__init__.py": "raise ImportError('libbcc.so.0: no such file')", "bcc/libbcc.py": ""})
    with pytest.raises(CompileError, match=rf"bcc cannot be imported: {folder}: libbcc\.so\.0: no such file"):
        compiler.compile_balancer()


def test_a_bcc_that_crashes(bcc_in):
    """When the child dies, the error has its status and its last words."""
    bcc_in({"bcc/__init__.py": "import os\nos.write(2, b'out of memory')\nos.abort()", "bcc/libbcc.py": ""})
    with pytest.raises(CompileError, match="bcc ended with status -6: out of memory"):
        compiler.compile_balancer()


def test_a_bcc_that_gives_up(bcc_in):
    """Of all that LLVM writes before it exits, the error is told, and not the lines of the source around it."""
    said = "int source;\\n" + "\\n" * 600 + "error: main.c:9:6: stack limit exceeded\\n\\nRunning from here\\n"
    bcc_in({"bcc/__init__.py": f"import os\nos.write(2, b'{said}')\nos._exit(1)", "bcc/libbcc.py": ""})
    with pytest.raises(CompileError, match=r"^bcc ended with status 1: error: main\.c:9:6: stack limit exceeded$"):
        compiler.compile_balancer()


def test_a_bcc_that_hangs(bcc_in, monkeypatch):
    """A compiler that does not end is ended."""
    bcc_in({"bcc/__init__.py": "import signal\nsignal.pause()", "bcc/libbcc.py": ""})
    monkeypatch.setattr(compiler, "TIMEOUT", 0.2)
    with pytest.raises(CompileError, match=r"bcc was not done after 0\.2 s"):
        compiler.compile_balancer()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_compiles(bcc_in, tmp_path, number, nothing_left):  # noqa: ARG001 - it looks before and after
    """A signal that ends the process ends the compilation at once, and its handler is called once."""
    path = tmp_path / "compiling"
    os.mkfifo(path)
    bcc_in({"bcc/__init__.py": f"import signal\nopen({str(path)!r}, 'w').close()\nsignal.pause()", "bcc/libbcc.py": ""})

    def strike():
        path.open().close()  # returns when the child opens it
        os.kill(os.getpid(), number)

    came = []
    before = signal.signal(number, lambda number, _: came.append(number))
    thread = threading.Thread(target=strike)
    thread.start()
    try:
        with pytest.raises(CompileStoppedError, match=f"^{number.name} came while bcc compiled the balancer$"):
            compiler.compile_balancer()
        assert signal.getsignal(number) is not before
    finally:
        thread.join()
        signal.signal(number, before)
    assert came == [number]


def test_a_python_that_cannot_be_started(monkeypatch, tmp_path):
    """An interpreter that this user may not run, as in a virtual environment of root's Python, is told."""
    (tmp_path / "python").touch(mode=0o644)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(CompileError, match=f"^{tmp_path}/python cannot be started: Permission denied"):
        compiler.compile_balancer()


@pytest.mark.usefixtures("compiled")
def test_a_broken_source(tmp_path, monkeypatch):
    """What clang does not take is an error with its line."""
    source = tmp_path / "source"
    shutil.copytree(spec.FOLDER, source)
    lines = (source / "balancer.c").read_text().splitlines()
    number = lines.index("int balancer(struct sk_reuseport_md *ctx)") + 3
    lines.insert(number - 1, "\tthis is no C;")
    (source / "balancer.c").write_text("\n".join(lines))
    monkeypatch.setattr(compiler, "FOLDER", source)
    with pytest.raises(CompileError, match=rf"^the balancer does not compile: .*:{number}:\d+: error: "):
        compiler.compile_balancer()
