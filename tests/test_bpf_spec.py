"""The bytecode that the package brings is that of the source beside it."""

from __future__ import annotations

import shutil
import struct
from dataclasses import replace

import pytest

from aiolb.bpf import abi, compiler, spec


def out_of_date(name="aiolb_balancer", compiled=None):
    """Why a file of bytecode is not what the source gives; None when it is."""
    shipped = spec.shipped(name)
    if shipped.source_digest != spec.source_digest():
        return f"{name} is of another source: make bytecode"
    if compiled is None or compiled.compiler != shipped.compiler:
        return None
    return None if compiled.instructions == shipped.instructions else "the same compiler gives other bytecode"


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the source, in the place of the package's."""
    for name in spec.SOURCES:
        shutil.copy(spec.FOLDER / name, tmp_path)
    shutil.copytree(spec.FOLDER / "include", tmp_path / "include")
    monkeypatch.setattr(spec, "FOLDER", tmp_path)
    monkeypatch.setattr(compiler, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", spec.BYTECODE)
def test_the_bytecode_is_that_of_the_source(name):
    """The bytecode records the digest of the source beside it."""
    assert out_of_date(name) is None


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", spec.BYTECODE)
def test_the_bytecode_is_what_the_compiler_makes(name):
    """Where the compiler is the one that made the bytecode, it makes the same bytes again."""
    assert out_of_date(name, compiler.compile_balancer(migrates=name == spec.MIGRATING)) is None


@pytest.mark.parametrize("name", spec.SOURCES)
def test_a_changed_source_is_noticed(copied, name):
    """One more byte in any of the source files is enough."""
    with (copied / name).open("a") as file:
        file.write("\n")
    assert out_of_date() == "aiolb_balancer is of another source: make bytecode"


def test_changed_bytecode_is_noticed(compiled):
    """Bytecode that the recorded source and compiler do not make is noticed, where that compiler is at hand."""
    same_compiler = replace(compiled, compiler=spec.shipped().compiler)
    changed = replace(same_compiler, instructions=compiled.instructions + bytes(8))
    assert out_of_date(compiled=changed) == "the same compiler gives other bytecode"
    assert out_of_date(compiled=replace(changed, compiler="another one")) is None


@pytest.mark.usefixtures("compiled")
def test_a_changed_source_is_other_bytecode(copied):
    """The compiler reads the header too: another constant there is another program."""
    header = copied / "balancer.h"
    header.write_text(header.read_text().replace("#define SLOT_COUNT 16384", "#define SLOT_COUNT 8192"))
    assert compiler.compile_balancer().instructions != spec.shipped().instructions


@pytest.mark.parametrize("name", spec.BYTECODE)
def test_the_file_format(name):
    """The file is a line that names layout, source and compiler, and the instructions."""
    shipped = spec.shipped(name)
    content = spec.BYTECODE[name].read_bytes()
    assert shipped.to_bytes() == content
    line = content.partition(b"\n")[0].decode()
    assert line == (
        f"aiolb-balancer layout={abi.LAYOUT_VERSION} source={spec.source_digest()} compiler={shipped.compiler}"
    )
    assert len(shipped.instructions) % 8 == 0


def test_the_digest_tells_programs_apart():
    """Another instruction is another digest; where it comes from does not matter."""
    shipped = spec.shipped()
    again = spec.ProgramSpec(shipped.instructions, "another_name", "another source", "another compiler")
    other = spec.ProgramSpec(shipped.instructions + bytes(8), shipped.name, shipped.source_digest, shipped.compiler)
    assert shipped.digest == again.digest != other.digest


def test_maps_are_placeholders():
    """The bytecode refers to every map of the program by its placeholder, and to nothing else."""
    loads = [
        immediate
        for opcode, registers, _, immediate in struct.iter_unpack("=BBhi", spec.shipped().instructions)
        if opcode == 0x18 and registers >> 4
    ]
    assert set(loads) == {map_spec.placeholder for map_spec in abi.MAPS if map_spec.placeholder}
