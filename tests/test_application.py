"""The collector class that a text names: found, or told what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aiolb import builtin, builtin_streams
from aiolb.application import load
from aiolb.errors import ConfigurationError
from aiolb.server import ApplicationError

EXAMPLE = Path(__file__).parent.parent / "examples" / "echo_collector.py"
SOURCE = """
from aiolb import Collector

class Mine(Collector):
    async def handle(self, datagram, addr):
        pass

class Other(Mine):
    class Inner(Mine):
        pass

class Plain:
    pass

number = 3
"""


@pytest.fixture(autouse=True)
def _imports_as_before(monkeypatch):
    """No test sees what another one imported."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a module, and a package with another."""
    (tmp_path / "mine.py").write_text(SOURCE)
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "inner.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "text", ["mine.py:Mine", "./mine.py:Mine", "mine:Mine", "package.inner:Mine", "package/inner.py:Mine"]
)
def test_found(folder, text):
    """A class is found in a file, a module of the working directory, and a package."""
    assert load(text).__name__ == "Mine"
    assert (folder / "mine.py").exists()


def test_absolute_file(folder, monkeypatch):
    """A file is found from another working directory too, and may import what lies beside it."""
    (folder / "beside.py").write_text("from mine import Mine as Imported\n")
    monkeypatch.chdir("/")
    assert load(f"{folder}/beside.py:Imported").__name__ == "Mine"


def test_nested(folder):
    """A class inside of a class is named with a dot."""
    assert load(f"{folder}/mine.py:Other.Inner").__qualname__ == "Other.Inner"


def test_the_example():
    """The example of the repository is a collector that echoes."""
    assert load(f"{EXAMPLE}:Echo").__name__ == "Echo"


@pytest.mark.parametrize(("name", "cls"), builtin.BUILTIN.items())
def test_built_in(name, cls):
    """Ready collectors have names."""
    assert load(name) is cls


@pytest.mark.parametrize(("name", "cls"), builtin_streams.BUILTIN_STREAMS.items())
def test_built_in_for_connections(name, cls):
    """The same names are collectors of connections where those are asked for."""
    assert load(name, "tcp") is cls


def test_built_in_for_datagrams_only():
    """A ready collector that there is for datagrams only is told as such, with those that there are."""
    with pytest.raises(ConfigurationError, match="'verify' handles datagrams only") as caught:
        load("verify", "tcp")
    assert caught.value.hint == "with --protocol tcp: print, echo, discard"


def test_a_collector_for_another_protocol():
    """A collector that does not handle what comes by the protocol is refused."""
    with pytest.raises(ConfigurationError, match="Echo handles datagrams, and the protocol is tcp"):
        load(f"{EXAMPLE}:Echo", "tcp")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' names no collector"),
        ("mine", "'mine' names no collector"),
        ("mine:", "'mine:' names no collector"),
        (":Mine", "':Mine' names no collector"),
        ("nowhere.py:Mine", "there is no file nowhere.py"),
        ("nowhere:Mine", "there is no module 'nowhere'"),
        ("package.nowhere:Mine", "there is no module 'package.nowhere'"),
        ("mine.nowhere:Mine", "there is no module 'mine.nowhere'"),
        (".mine:Mine", "'.mine' is relative"),
        ("mine.py:Nobody", "mine.py has no 'Nobody'; it has Mine, Other"),
        ("mine:Other.Nobody", "mine has no 'Other.Nobody'; it has Mine, Other"),
        ("string:Nobody", "string has no 'Nobody' and no collector at all"),
        ("mine:Plain", "<class 'mine.Plain'> is no subclass of aiolb.Collector"),
        ("mine:number", "3 is no subclass of aiolb.Collector"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_not_found(text, message):
    """What cannot be found, or is no collector, is told without a traceback."""
    with pytest.raises(ConfigurationError) as caught:
        load(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("text", ["broken.py:Mine", "broken:Mine"])
@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("1 / 0", ZeroDivisionError),
        ("import nowhere_at_all", ModuleNotFoundError),
        ("from mine import nobody", ImportError),
        ("def f(:", SyntaxError),
        ("raise SystemExit(5)", SystemExit),
    ],
)
def test_failing_modules(folder, source, kind, text):
    """What a module's own code raises is the cause of the error; the module is forgotten."""
    (folder / "broken.py").write_text(source)
    with pytest.raises(ApplicationError, match=r"^broken(\.py)? failed on import: ") as caught:
        load(text)
    assert isinstance(caught.value.__cause__, kind)
    assert "broken" not in sys.modules
