"""Finds the collector class that a text names: a built-in one, FILE.py:Class or package.module:Class."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from aiolb.base_collector import BaseCollector, check_class, check_protocol
from aiolb.builtin import BUILTIN
from aiolb.builtin_streams import BUILTIN_STREAMS
from aiolb.errors import ConfigurationError
from aiolb.server import ApplicationError

_FORMS = "FILE.py:Class, package.module:Class, or one of " + ", ".join(BUILTIN)
_BUILTIN: Mapping[str, Mapping[str, type[BaseCollector]]] = {"udp": BUILTIN, "tcp": BUILTIN_STREAMS}


def load(text: str, protocol: str = "udp") -> type[BaseCollector]:
    """Import the collector class that ``text`` names; modules are also looked for in the working directory.

    Raises ConfigurationError when there is no such file, module or class, or when it is no usable collector for the
    protocol; ApplicationError, with the cause, when the module's own code raised.
    """
    builtin = _BUILTIN[protocol]
    if text in builtin:
        return builtin[text]
    if text in BUILTIN:
        raise ConfigurationError(
            f"{text!r} handles datagrams only", hint=f"with --protocol {protocol}: {', '.join(builtin)}"
        )
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise ConfigurationError(f"{text!r} names no collector", hint=f"write it as {_FORMS}")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)  # type: ignore[assignment]
        if found is None:
            raise ConfigurationError(f"{place} has no {name!r}{_suggestion(module)}")
    check_class(found)
    check_protocol(found, protocol)  # type: ignore[arg-type] # a class, as was checked
    return found  # type: ignore[return-value]


def _suggestion(module: ModuleType) -> str:
    classes = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, BaseCollector) and value.__module__ == module.__name__
    ]
    return f"; it has {', '.join(classes)}" if classes else " and no collector at all"


def _load_file(path: Path) -> ModuleType:
    try:
        if not path.is_file():
            raise ConfigurationError(f"there is no file {path}")
        path.open("rb").close()
    except PermissionError as error:
        raise ConfigurationError(f"{path} cannot be read by this user: {error.strerror}") from None
    # What lies beside the file can be imported by it, as if Python had been started with it.
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # noqa: S101 - the name ends with .py
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[path.stem]
        raise ApplicationError(f"{path} failed on import: {type(error).__name__}: {error}") from error
    return module


def _load_module(name: str) -> ModuleType:
    if name.startswith("."):
        raise ConfigurationError(f"{name!r} is relative, and there is nothing that it could be relative to")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The module itself or a package around it; anything else is missing for the user's own code.
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigurationError(f"there is no module {name!r}", hint=f"write it as {_FORMS}") from None
        raise ApplicationError(f"{name} failed on import: {error}") from error
    except (Exception, SystemExit) as error:
        raise ApplicationError(f"{name} failed on import: {type(error).__name__}: {error}") from error
