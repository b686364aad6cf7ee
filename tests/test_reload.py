"""What is watched of an application, and that each change of it restarts; with real files and real events."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from aiolb import reload
from aiolb.errors import ConfigurationError, StartError
from aiolb.reload import changes, folders, is_source, restarting

pytestmark = pytest.mark.usefixtures("nothing_left", "_watches_closed")

BAD = "raise AssertionError('nothing of it is imported')\n"


@pytest.fixture
def _watches_closed(wait_until):
    """The thread of a watch closes its descriptors a moment after the watch has ended."""
    before = descriptors()
    yield
    wait_until(lambda: descriptors() <= before, "the watches are closed")


def descriptors():
    """The descriptors of this process, and what they are."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            found.add((path.name, str(path.readlink())))
    return found


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with a file, a module, a package, and a package without __init__.py; none can be imported."""
    for name in (
        "mine.py",
        "package/__init__.py",
        "package/inner/__init__.py",
        "package/inner/deep.py",
        "bare/inner.py",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(BAD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(path, text="# changed\n"):
    """Put another file in the place of the path in one step, as many editors do: one event."""
    new = path.with_name("new")
    new.write_text(text)
    new.rename(path)
    return path


# What is watched


@pytest.mark.parametrize(
    ("app", "folder"),
    [
        ("mine.py:Mine", "."),
        ("./mine.py:Mine", "."),
        ("package/inner/deep.py:Mine", "package/inner"),
        ("mine:Mine", "."),
        ("package:Mine", "package"),
        ("package.inner.deep:Mine.Inner", "package"),
        ("bare.inner:Mine", "bare"),
    ],
)
def test_folders(project, app, folder):
    """A file means its folder, a module its outermost package."""
    assert folders(app) == [project / folder]


def test_a_linked_file(project):
    """A link means the folder of the file itself, which is where its imports come from."""
    link = project / "package" / "link.py"
    link.symlink_to(project / "mine.py")
    assert folders(f"{link}:Mine") == [project]


def test_a_namespace_of_several_folders(project, monkeypatch):
    """A package without __init__.py may lie in several folders."""
    other = project / "elsewhere" / "bare"
    other.mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [*sys.path, str(other.parent)])
    assert folders("bare.inner:Mine") == [project / "bare", other]


def test_an_editable_installation(project, monkeypatch):
    """What only a finder of its own finds is watched too."""

    class Finder:
        @staticmethod
        def find_spec(name, *_):
            if name != "editable":
                return None
            spec = ModuleSpec(name, None, origin=str(project / "src" / "editable.py"))
            spec.has_location = True
            return spec

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert folders("editable:Mine") == [project / "src"]


@pytest.mark.parametrize(
    ("app", "message"),
    [
        ("print", "'print' has no files that could change"),
        ("nonsense", "'nonsense' has no files that could change"),
        (".mine:Mine", "'.mine:Mine' has no files that could change"),
        ("nowhere.py:Mine", "there is no file nowhere.py"),
        ("package.py:Mine", "there is no file package.py"),
        ("nowhere.inner:Mine", "there is no module 'nowhere' with files that could change"),
        ("sys:Mine", "there is no module 'sys' with files that could change"),
        ("__main__:Mine", "there is no module '__main__' with files that could change"),
    ],
)
@pytest.mark.usefixtures("project")
def test_nothing_to_watch(app, message, monkeypatch):
    """What has no files is told."""
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(ConfigurationError) as caught:
        folders(app)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("/app/a.py", True),
        ("/app/views/deep/a.py", True),
        ("/app/a.pyc", False),
        ("/app/a.py~", False),
        ("/app/py", False),
        ("/app/.#a.py", False),
        ("/app/.venv/lib/a.py", False),
        ("/app/venv/lib/python3.11/site-packages/a.py", False),
        ("/app/node_modules/gyp/a.py", False),
        ("/application/a.py", False),
    ],
)
def test_is_source(path, counts):
    """Python files count, but not those that an editor, git or an installation put there."""
    assert is_source(Path(path), Path("/app")) is counts


def test_a_folder_in_a_hidden_one():
    """Only what is below the folder matters, not where the folder is."""
    folder = Path("/home/.work/site-packages/app")
    assert is_source(folder / "a.py", folder)


# What changes


class Watch:
    """The batches of ``changes``, watching from the moment it is made."""

    def __init__(self, folder):
        self.stop = asyncio.Event()
        self._batches = changes([folder], self.stop)
        self._next = asyncio.ensure_future(anext(self._batches))

    async def next(self):
        """The next batch."""
        batch = await self._next
        self._next = asyncio.ensure_future(anext(self._batches))
        return batch

    async def end(self):
        """Stop it: no batch is left, and it ends."""
        self.stop.set()
        with pytest.raises(StopAsyncIteration):
            await self._next


def watching(run, folder, work):
    """Run ``work(watch)`` on a loop while the folder is watched."""

    async def main():
        watch = Watch(folder)
        await asyncio.sleep(0)
        try:
            return await work(watch)
        finally:
            await watch.end()

    return run(main())


def test_changed_files(run, project):
    """A file that is replaced, one that is written in place, a new one and a deleted one are told."""

    async def work(watch):
        save(project / "mine.py")
        replaced = await watch.next()
        with (project / "package" / "__init__.py").open("a") as file:
            file.write("# more\n")
        written = await watch.next()
        save(project / "package" / "new.py")
        made = await watch.next()
        (project / "package" / "new.py").unlink()
        return [replaced, written, made, await watch.next()]

    package = project / "package"
    assert watching(run, project, work) == [
        [project / "mine.py"],
        [package / "__init__.py"],
        [package / "new.py"],
        [package / "new.py"],
    ]


def test_a_new_folder(run, project):
    """A folder that is made, or moved there, later is watched as well."""
    outside = project.parent / f"{project.name}-outside"
    outside.mkdir()

    async def work(watch):
        (outside / "deep").mkdir()
        (outside / "deep" / "a.py").touch()
        outside.rename(project / "inside")
        save(project / "mine.py")
        while project / "mine.py" not in await watch.next():
            pass
        save(project / "inside" / "deep" / "a.py")
        return await watch.next()

    assert watching(run, project, work) == [project / "inside" / "deep" / "a.py"]


def test_what_is_left_out(run, project):
    """Changes of other files are not told: the first batch is the file that was changed after them."""
    (project / ".git").mkdir()
    (project / "lib" / "site-packages").mkdir(parents=True)

    async def work(watch):
        for name in ("data.json", ".#mine.py", ".git/hook.py", "lib/site-packages/six.py"):
            save(project / name)
        save(project / "mine.py")
        return await watch.next()

    assert watching(run, project, work) == [project / "mine.py"]


def test_changes_come_together(run, project):
    """What changes before anybody looks is one batch, sorted, each file once."""
    names = [f"a{number:03}.py" for number in range(200)]

    async def work(watch):
        for name in reversed(names):
            save(project / name)
            save(project / name)
        return await watch.next()

    assert watching(run, project, work) == [project / name for name in names]


def test_a_folder_that_is_gone(run, project):
    """What cannot be watched is the error of the first step."""

    async def main():
        return await anext(changes([project / "gone"], asyncio.Event()))

    with pytest.raises(FileNotFoundError):
        run(main())


# Restarting


def test_restarting(run, project):
    """Each change inside the block restarts, also one right at its start, and is logged with the files."""

    async def main():
        restarted = asyncio.Queue()
        async with restarting("mine.py:Mine", lambda: restarted.put_nowait("restart")):
            for name in ("mine.py", "package/inner/deep.py"):
                save(project / name)
                await restarted.get()
        save(project / "mine.py")
        return restarted.qsize()

    with capture_logs() as events:
        assert run(main()) == 0
    assert events == [
        {"event": "reloading", "log_level": "info", "changed": 1, "files": [str(project / name)]}
        for name in ("mine.py", "package/inner/deep.py")
    ]


def test_many_files(run, project):
    """A log line names some of many files, and how many there were."""

    async def main():
        restarted = asyncio.Event()
        async with restarting("mine.py:Mine", restarted.set):
            for number in range(50):
                save(project / f"a{number:02}.py")
            await restarted.wait()

    with capture_logs() as events:
        run(main())
    (event,) = events
    assert (event["changed"], event["files"]) == (50, [str(project / f"a{number:02}.py") for number in range(5)])


def test_an_error_inside(run, project):
    """What the block raises ends the watch and is passed on."""

    async def main():
        async with restarting(f"{project}/mine.py:Mine", lambda: None):
            raise StartError("no worker")

    with pytest.raises(StartError, match="no worker"):
        run(main())


def entered(app):
    """Enter the block, and say that it was entered."""

    async def main():
        async with restarting(app, lambda: None):
            pytest.fail("it was entered")

    return main()


@pytest.mark.usefixtures("project")
def test_without_watchfiles(run, monkeypatch):
    """Without the package that it needs, the start fails with the command that installs it."""
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(ConfigurationError, match="--reload needs the package watchfiles") as caught:
        run(entered("mine.py:Mine"))
    assert caught.value.hint == "pip install watchfiles"


def test_nothing_to_restart(run):
    """An application without files is told before anything starts."""
    with pytest.raises(ConfigurationError, match="'print' has no files that could change"):
        run(entered("print"))


def test_what_cannot_be_watched(run, project, monkeypatch):
    """When the system refuses the watch, the start fails with its reason."""
    monkeypatch.setattr(reload, "folders", lambda _app: [project / "gone"])
    with pytest.raises(StartError, match=r"^the files of mine\.py:Mine cannot be watched: No path was found") as caught:
        run(entered("mine.py:Mine"))
    assert caught.value.hint.startswith("give the application a folder of its own")


DENIED = """
import asyncio
from aiolb.errors import StartError
from aiolb.reload import restarting
async def main():
    async with restarting("mine.py:Mine", print):
        print("entered")
try:
    asyncio.run(main())
except StartError as error:
    print(error)
"""


def test_a_folder_that_may_not_be_read(project, needs):
    """A folder that the user may not read is told: else what comes after it might be left out in silence."""
    denied = project / "denied"
    denied.mkdir(mode=0)
    powerless = [needs("setpriv", "util-linux"), "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    command = [*powerless, sys.executable, "-c", DENIED]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    denied.chmod(0o700)
    message = "the files of mine.py:Mine cannot be watched: Permission denied (os error 13) about "
    assert (done.stdout, done.stderr) == (f'{message}["{denied}"]\n', "")


def test_a_watch_that_breaks(run, project, monkeypatch):
    """A watch that breaks later is logged, and whatever runs in the block goes on."""

    async def broken(_watched, _stop):
        await asyncio.sleep(0)
        yield [project / "mine.py"]
        raise RuntimeError("no space left for watches")

    async def main():
        restarted = asyncio.Event()
        async with restarting("mine.py:Mine", restarted.set):
            await restarted.wait()

    monkeypatch.setattr(reload, "changes", broken)
    with capture_logs() as events:
        run(main())
    assert [(event["event"], event["log_level"]) for event in events] == [
        ("reloading", "info"),
        ("reload_ended", "error"),
    ]
    assert events[1]["reason"] == "no space left for watches"
    assert events[1]["hint"].startswith("changes are seen no more")
