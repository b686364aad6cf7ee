"""Key files: read, known by their text, compiled by bcc, and their mistakes told with their lines."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from aiolb.bpf import compiler, spec
from aiolb.bpf.key_file import JoinedSource, KeyFile
from aiolb.errors import CompileError, ConfigurationError

EXAMPLES = sorted((Path(__file__).parent.parent / "examples/keys").glob("*.c"))
HEAD = "int key_of(const struct packet *packet, struct key *key)\n"
SHORT = HEAD + "{\n\treturn set_key(key, payload_length(packet), source_port(packet));\n}\n"


def test_reads(tmp_path, needs):
    """The key is known by the beginning of what sha256sum prints, and its name is the path that was given."""
    path = tmp_path / "k.c"
    path.write_bytes("/* é */\r\n".encode())
    printed = subprocess.run([needs("sha256sum", "coreutils"), path], capture_output=True, text=True, check=True)
    key_file = KeyFile.read(path)
    assert str(key_file.key) == f"file {printed.stdout[:16]}"
    assert key_file.name == str(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Path.exists, "cannot be read: No such file or directory"),
        (Path.mkdir, "cannot be read: Is a directory"),
        (lambda path: path.write_bytes(b"\xff"), "is no text in UTF-8"),
    ],
)
def test_cannot_be_read(tmp_path, make, reason):
    """What cannot be read is refused as a setting that cannot work."""
    make(tmp_path / "k.c")
    with pytest.raises(ConfigurationError, match=rf"^the key file {tmp_path}/k\.c {reason}"):
        KeyFile.read(tmp_path / "k.c")


def test_it_has_its_place_in_the_balancer():
    """The text stands in the balancer's own, once."""
    joined = str(JoinedSource((spec.FOLDER / "balancer.c").read_text(), KeyFile("k.c", "/* here */")))
    assert joined.count("/* here */") == 1
    assert "AIOLB_KEY_FILE\n/* here */" not in joined
    assert "#include AIOLB_KEY_FILE" not in joined


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_compiles(path):
    """Each example compiles, and instructions are known by its lines."""
    lines = len(path.read_text().splitlines())
    places = compiler.compile_balancer(key_file=KeyFile.read(path)).places
    found = {int(place.removeprefix(f"{path}:")) for place in places.values()}
    assert found
    assert found <= set(range(lines + 1))


def test_other_texts_are_other_programs(compiled):
    """A key file makes another program, the same one every time, and debug yet another."""
    once, again = (compiler.compile_balancer(key_file=KeyFile("k.c", SHORT)) for _ in range(2))
    debug = compiler.compile_balancer(key_file=KeyFile("k.c", SHORT), debug=True)
    assert once == again
    assert len({compiled.digest, once.digest, debug.digest}) == 3
    assert compiled.places is None


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "{\n\treturn nothing;\n}\n", "k.c:3:9: use of undeclared identifier 'nothing'"),
        (
            "static u64 one(void)\n{\n\treturn 1;\n}\n" + HEAD + "{\n\treturn a;\n\tb;\n}",
            "k.c:7:9: use of undeclared identifier 'a' (the first of 2 errors)",
        ),
        ('#include "other.h"\n', "k.c:1:10: 'other.h' file not found"),
        ("", "k.c defines no function int key_of(const struct packet *packet, struct key *key)"),
        (HEAD + "{", "behind the end of k.c: function definition is not allowed here; is a brace or a comment in it"),
        ("void key_of(void) {}", "k.c:1:6: conflicting types for 'key_of'"),
        ("#error too old", "k.c:1:2: too old"),
        (
            HEAD + "{\n\tu64 id;\n\n\treturn set_key(key, id, 0);\n}",
            "k.c:5:22: variable 'id' is uninitialized when used",
        ),
        (
            HEAD + "{\n\tu64 id;\n\tif (packet->bytes > 4)\n\t\tid = 1;\n\treturn set_key(key, id, 0);\n}",
            "k.c:4:6: variable 'id' is used uninitialized whenever 'if' condition is false",
        ),
    ],
)
def test_a_mistake_has_its_line(text, message):
    """What clang refuses is told by the key file's own line and column, and with the header that has the functions."""
    with pytest.raises(CompileError) as caught:
        compiler.compile_balancer(key_file=KeyFile("k.c", text))
    assert str(caught.value).startswith(message)
    assert caught.value.hint == f"the functions that it may use are in {spec.FOLDER / 'key.h'}"


@pytest.mark.usefixtures("compiled")
def test_a_function_that_calls_itself():
    """What cannot be inlined is refused before the verifier has to."""
    text = (
        "static int f(int n) { return n ? f(n - 1) * 3 + n : 0; }\n"
        + HEAD
        + "{ return set_key(key, f(payload_length(packet)), 1); }"
    )
    with pytest.raises(CompileError, match=r"^k\.c calls a function that cannot be inlined"):
        compiler.compile_balancer(key_file=KeyFile("k.c", text))


@pytest.mark.usefixtures("compiled")
def test_lines_behind_functions():
    """Instructions are found in their lines behind functions, which bcc writes another line before."""
    helper = "static u64 first(const struct packet *packet)\n{\n\treturn source_low(packet);\n}\n\n"
    body = "{\n\tu8 type;\n\n\tif (load_u8(packet, 0, &type))\n\t\treturn -1;\n"
    text = helper + HEAD + body + "\treturn set_key(key, first(packet) * 77, type);\n}\n"
    places = compiler.compile_balancer(key_file=KeyFile("k.c", text)).places
    lines = text.splitlines()
    told = {lines[int(place.removeprefix("k.c:")) - 1].strip() for place in places.values()}
    assert "if (load_u8(packet, 0, &type))" in told
    assert told <= {line.strip() for line in lines if re.search(r"load_u8|set_key|source_low", line)}


def test_without_bcc(monkeypatch):
    """Without bcc the error says which package to install."""
    monkeypatch.setattr(compiler, "BCC_FOLDERS", ["/nonexistent"])
    with pytest.raises(CompileError, match="bcc is not installed"):
        compiler.compile_balancer(key_file=KeyFile("k.c", SHORT))
