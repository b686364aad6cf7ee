"""For development: restart when a Python file of the application changes."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import structlog

from aiolb.errors import ConfigurationError, StartError

FILES_TOLD = 5
"""Changed files that a log line names; another branch may change hundreds at once."""

_NOT_THE_USERS = {"site-packages", "node_modules"}
_HINT = "give the application a folder of its own; sysctl fs.inotify shows how much may be watched"

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def restarting(app: str, restart: Callable[[], None]) -> AsyncIterator[None]:
    """Call ``restart`` in the running loop after each change of the application's files inside the block.

    Whatever changes once the block is entered is seen. Raises ConfigurationError when there is nothing to watch, or
    nothing to watch it with, and StartError when it cannot be watched. A watch that breaks later is logged.
    """
    stop = asyncio.Event()
    watching = asyncio.create_task(_restart(changes(folders(app), stop), restart))
    try:
        await asyncio.sleep(0)  # its first step begins to watch
        if watching.done():
            _raise(watching, app)
        watching.add_done_callback(_tell)
        yield
    finally:
        stop.set()
        await asyncio.wait([watching])


async def _restart(batches: AsyncGenerator[list[Path], None], restart: Callable[[], None]) -> None:
    async with aclosing(batches):
        async for files in batches:
            _log.info("reloading", changed=len(files), files=[str(path) for path in files[:FILES_TOLD]])
            restart()


def _raise(watching: asyncio.Task[None], app: str) -> None:
    try:
        watching.result()
    except (OSError, RuntimeError) as error:
        raise StartError(f"the files of {app} cannot be watched: {error}", hint=_HINT) from error


def _tell(watching: asyncio.Task[None]) -> None:
    if not watching.cancelled() and (error := watching.exception()):
        _log.error("reload_ended", reason=str(error), hint=f"changes are seen no more: start again; {_HINT}")


async def changes(watched: Sequence[Path], stop: asyncio.Event) -> AsyncGenerator[list[Path], None]:
    """The Python files in these folders, at any depth, that were made, changed or deleted; ends when ``stop`` is set.

    What changes together comes together. Left out are hidden files and folders, and packages that were installed
    there. Its first step begins to watch, and raises ConfigurationError without watchfiles, OSError and RuntimeError
    when the system refuses.
    """
    try:
        from watchfiles import awatch
    except ImportError:
        raise ConfigurationError("--reload needs the package watchfiles", hint="pip install watchfiles") from None

    def counts(_change: object, path: str) -> bool:
        return any(is_source(Path(path), folder) for folder in watched)

    # With ignore_permission_denied it would leave out, in silence, all that it comes to after a folder that is denied.
    batches = awatch(*watched, watch_filter=counts, stop_event=stop, ignore_permission_denied=False)
    async with aclosing(batches):
        async for batch in batches:
            yield sorted({Path(path) for _, path in batch})


def is_source(path: Path, folder: Path) -> bool:
    """Whether the path is a Python file that somebody edits in the folder; pure.

    >>> is_source(Path("/app/views/a.py"), Path("/app")), is_source(Path("/app/.venv/a.py"), Path("/app"))
    (True, False)
    """
    if path.suffix != ".py" or not path.is_relative_to(folder):
        return False
    # Emacs has a link `.#app.py` beside a file that is being edited.
    return not any(part.startswith(".") or part in _NOT_THE_USERS for part in path.relative_to(folder).parts)


def folders(app: str) -> list[Path]:
    """The folders with the code of ``FILE.py:Class`` or ``package.module:Class``; nothing of it is imported.

    Raises ConfigurationError when there are none.
    """
    place = app.rpartition(":")[0]
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise ConfigurationError(f"there is no file {place}")
        return [Path(place).resolve().parent]
    if not place or place.startswith("."):
        raise ConfigurationError(
            f"{app!r} has no files that could change", hint="--reload is for FILE.py:Class and package.module:Class"
        )
    return _package_folders(place.partition(".")[0])


def _package_folders(name: str) -> list[Path]:
    spec = _find(name)
    if spec is not None and spec.submodule_search_locations:
        return [Path(folder).resolve() for folder in spec.submodule_search_locations]
    if spec is not None and spec.has_location and spec.origin is not None:
        return [Path(spec.origin).resolve().parent]
    raise ConfigurationError(f"there is no module {name!r} with files that could change")


def _find(name: str) -> ModuleSpec | None:
    # As the workers do: in the working directory, in sys.path, then by what editable installations add.
    try:
        return PathFinder.find_spec(name, [str(Path.cwd()), *sys.path]) or importlib.util.find_spec(name)
    except ValueError:  # a module that was not imported, such as __main__
        return None
