"""The images: small, without a compiler, healthy when they are, and clear about what they miss."""

from __future__ import annotations

import pytest
from engine import ROOT, Engine

MOST = 120
"""MB (10**6 bytes, as docker prints them) that the image may have beyond its base."""
ALONE = ["run", "--rm", "--network=none", "--cap-drop=ALL"]
TOOLS = ["*-gcc*", "gcc*", "clang*", "libLLVM*", "libclang*", "libbcc*", "cc1", "pip", "pip3", "setuptools", "*.pyx.c"]


def size(engine: Engine, image: str) -> float:
    """Of an image, in MB."""
    return int(engine.docker("image", "inspect", "--format={{.Size}}", image)) / 1e6


def test_image_is_small(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """The image has little beyond its base."""
    own = size(engine, "aiolb") - size(engine, "aiolb-base")
    with capsys.disabled():
        print(f"\naiolb: {own:.1f} MB over a base of {size(engine, 'aiolb-base'):.1f} MB")
    assert 0 < own < MOST


def test_image_has_no_compiler(engine: Engine) -> None:
    """Neither a compiler nor LLVM nor what installed the package is left."""
    names = [word for name in TOOLS for word in ("-o", "-name", name)][1:]
    # Scripts for debuggers, and the package that holds no more than the compiler's licence, have its name too.
    folders = ["/proc", "/usr/share", "/var/lib/dpkg"]
    skip = [word for folder in folders for word in ("-path", folder, "-prune", "-o")]
    # Root without this may not look everywhere, and find would fail.
    look = [*ALONE, "--cap-add=DAC_READ_SEARCH", "--entrypoint=find"]
    find = engine.docker(*look, "aiolb", "/", *skip, "(", *names, ")", "-print")
    assert find.split() == []


def test_compiled_parts_are_there(engine: Engine) -> None:
    """The image receives and sends with the compiled parts."""
    said = engine.ask(*ALONE, "aiolb", "doctor").stdout
    assert "compiled: receiving, steps of handlers, replies" in said


def test_doctor_is_content(engine: Engine, bpffs: str) -> None:
    """With CAP_BPF and a BPF file system there is no problem; Docker's own seccomp filter lets bpf(2) through."""
    done = engine.ask(*ALONE, "--cap-add=BPF", f"--volume={bpffs}:/sys/fs/bpf", "aiolb", "doctor")
    assert done.returncode == 0, done.stdout
    assert "a filter lets bpf(2) through" in done.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["aiolb"], ("the kernel does not let this user load BPF programs", "docker run --cap-add BPF")),
        (["--cap-add=BPF", "aiolb", "--user=aiolb"], ("may not run anything as aiolb", "CAP_SETUID and CAP_SETGID")),
    ],
    ids=["BPF", "SETUID"],
)
def test_missing_capability_is_told(engine: Engine, bpffs: str, options: list[str], told: tuple[str, str]) -> None:
    """Without a capability the start fails, and says which one is missing."""
    own, serve = options[: options.index("aiolb")], options[options.index("aiolb") + 1 :]
    mount = f"--volume={bpffs}:/sys/fs/bpf"
    done = engine.ask(*ALONE, *own, mount, "aiolb", "serve", "discard", "--balancer=ebpf", *serve)
    assert done.returncode == 3
    lines = done.stderr.splitlines()[-2:]
    assert all(part in line for part, line in zip(told, lines, strict=True)), lines


def test_missing_bpffs_is_told(engine: Engine) -> None:
    """Without a BPF file system a single collector does not start, and says how to give it one."""
    done = engine.ask(*ALONE, "--cap-add=BPF", "aiolb", "serve", "discard", "--balancer=ebpf")
    assert done.returncode == 3
    error, told = done.stderr.splitlines()[-2:]
    assert "no BPF file system is mounted at /sys/fs/bpf" in error
    assert "docker run -v /sys/fs/bpf:/sys/fs/bpf" in told


def test_builder_reproduces_the_bytecode(engine: Engine, tmp_path) -> None:
    """What Debian's bcc compiles is, byte for byte, what is checked in."""
    said = engine.docker(*ALONE, "--cap-add=DAC_OVERRIDE", f"--volume={tmp_path}:/out", "aiolb-builder")
    names = ["balancer.bin", "migrating.bin"]
    assert [line.split(":")[0] for line in said.splitlines()] == names
    assert all(line.endswith("the same as is checked in") for line in said.splitlines())
    for name in names:
        assert (tmp_path / name).read_bytes() == (ROOT / "aiolb/bpf" / name).read_bytes()


def test_builder_finds_a_difference(engine: Engine, tmp_path) -> None:
    """Bytecode that was compiled from something else is found."""
    source = tmp_path / "balancer.c"
    source.write_text((ROOT / "aiolb/bpf/balancer.c").read_text() + "\n/* another source */\n")
    done = engine.ask(*ALONE, f"--volume={source}:/src/aiolb/bpf/balancer.c:ro", "aiolb-builder")
    assert done.returncode == 1
    assert done.stdout.count("not what is checked in") == 2
