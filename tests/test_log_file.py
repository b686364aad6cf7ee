"""A log file: nothing in it is torn or lost, whoever writes to it, and whoever moves it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from deadline import DEADLINE

from aiolb.errors import ConfigurationError
from aiolb.log_file import LogFile

pytestmark = pytest.mark.usefixtures("nothing_left")

WRITER = """
import json, sys
from pathlib import Path
from aiolb.log_file import LogFile
file, name = LogFile(Path(sys.argv[1])), sys.argv[2]
print("open", flush=True)
sys.stdin.readline()
for number in range(200):
    file.write(json.dumps([name, number, name * (number * 431 % 80_000)]) + "\\n")
file.close()
"""


@pytest.fixture
def path(tmp_path):
    """Where the log file is."""
    return tmp_path / "aiolb.log"


@pytest.fixture
def file(path):
    """An open log file."""
    made = LogFile(path)
    yield made
    made.close()


def test_appends(path):
    """What was in the file before stays there."""
    path.write_text("before\n")
    file = LogFile(path)
    file.write("after ä\n")
    file.close()
    assert path.read_text() == "before\nafter ä\n"


def test_made_as_the_umask_says(path):
    """A new file may be read by those whom the umask lets."""
    before = os.umask(0o027)
    try:
        LogFile(path).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_reopen(file, path):
    """After it was moved, the file of that name is made anew; the descriptor keeps its number and is not inherited."""
    number = file.fileno()
    file.write("old\n")
    path.rename(f"{path}.1")
    file.write("old too\n")
    file.reopen()
    file.write("new\n")
    assert (Path(f"{path}.1").read_text(), path.read_text()) == ("old\nold too\n", "new\n")
    assert file.fileno() == number
    assert not os.get_inheritable(number)


def test_reopen_what_was_not_moved(file, path):
    """Reopening where nothing has happened loses nothing."""
    file.write("one\n")
    file.reopen()
    file.write("two\n")
    assert path.read_text() == "one\ntwo\n"


def test_reopen_in_another_working_directory(tmp_path, monkeypatch):
    """A relative name means the same file whatever becomes of the working directory."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    file = LogFile(Path("here.log"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    file.reopen()
    file.write("x\n")
    file.close()
    assert (tmp_path / "here.log").read_text() == "x\n"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_reopen_fails(file, path):
    """When there is no such folder any more, the old file goes on."""
    folder = path.parent / "moved"
    folder.mkdir()
    file.path = folder / "gone" / path.name
    with pytest.raises(FileNotFoundError):
        file.reopen()
    file.write("still here\n")
    assert path.read_text() == "still here\n"


@pytest.mark.parametrize(
    ("name", "reason"), [("missing/aiolb.log", "No such file or directory"), (".", "Is a directory")]
)
def test_cannot_be_opened(tmp_path, name, reason):
    """A file that cannot be opened is a mistake in the configuration, told with its name."""
    path = tmp_path / name
    with pytest.raises(ConfigurationError) as caught:
        LogFile(path)
    assert str(caught.value) == f"the log file {path} cannot be opened: {reason}"
    assert caught.value.hint.startswith("--log-file FILE")


def test_a_pipe_that_nobody_reads(path):
    """A named pipe without a reader is an error, and nothing that one waits for."""
    os.mkfifo(path)
    with pytest.raises(ConfigurationError, match="No such device or address"):
        LogFile(path)


def test_a_pipe(path):
    """More than a pipe holds arrives whole: writing waits for the reader."""
    os.mkfifo(path)
    got = []
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    file = LogFile(path)

    def read():
        while data := os.read(reader, 65536):
            got.append(data)
        os.close(reader)

    thread = threading.Thread(target=read)
    thread.start()
    file.write("x" * 1_000_000)
    file.close()
    thread.join(DEADLINE)
    assert sum(map(len, got)) == 1_000_000


def test_a_full_disk():
    """What cannot be written is the caller's to know."""
    file = LogFile(Path("/dev/full"))
    with pytest.raises(OSError, match="No space left"):
        file.write("x\n")
    assert not file.isatty()
    file.close()


def test_closed(file):
    """After it was closed nothing is written, above all not to whatever has the number now."""
    file.close()
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.write("x\n")


def test_what_is_no_text(file, path):
    """A name that is no UTF-8 is written with escapes."""
    file.write(os.fsdecode(b"caf\xe9") + "\n")
    assert path.read_text() == "caf\\udce9\n"


def test_several_processes(path):
    """Lines of up to 80,000 bytes that four processes write at the same time are whole, and each one's in order."""
    command = [sys.executable, "-c", WRITER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([*command, name], **pipes) for name in "abcd"]
    try:
        for writer in writers:
            assert writer.stdout.readline() == "open\n"
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
        for writer in writers:
            assert writer.wait(DEADLINE) == 0
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for name in "abcd":
        own = [(number, text) for writer, number, text in lines if writer == name]
        assert own == [(number, name * (number * 431 % 80_000)) for number in range(200)]


def test_reopened_while_threads_write(file, path):
    """However often the file is moved and opened again, each line is in one of them, whole, and once."""
    done = threading.Event()
    counts = {}

    def write(name):
        number = 0
        while not done.is_set():
            file.write(f"{name} {number}\n")
            number += 1
        counts[name] = number

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    try:
        for turn in range(100):
            path.rename(f"{path}.{turn}")
            file.reopen()
    finally:
        done.set()
        for thread in threads:
            thread.join(DEADLINE)
    texts = [Path(f"{path}.{turn}").read_text() for turn in range(100)] + [path.read_text()]
    lines = [line.split() for text in texts for line in text.splitlines()]
    for name in "ab":
        assert sorted(int(number) for writer, number in lines if writer == name) == list(range(counts[name]))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_for_another_user(path):
    """What root makes is for the user that its workers run as, also after it was moved."""
    file = LogFile(path, owner=(65534, 65533))
    path.rename(f"{path}.1")
    file.reopen()
    file.write("x\n")
    file.close()
    for made in (path, Path(f"{path}.1")):
        assert (made.stat().st_uid, made.stat().st_gid) == (65534, 65533)
    assert path.read_text() == "x\n"


@pytest.mark.parametrize("linked", [False, True])
def test_what_is_there_keeps_its_owner(path, linked):
    """A file that was there before, or that a link leads to, is given to nobody."""
    there = path.with_name("there") if linked else path
    there.touch()
    if linked:
        path.symlink_to(there)
    LogFile(path, owner=(65534, 65533)).close()
    assert (there.stat().st_uid, there.stat().st_gid) == (os.getuid(), os.getgid())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to lose")
def test_who_may_not_give_files_away(path, needs):
    """Without the right to give it away the file is made all the same."""
    code = f"from pathlib import Path; from aiolb.log_file import LogFile; LogFile(Path({str(path)!r}), owner=(9, 9))"
    prefix = [needs("setpriv", "util-linux"), "--bounding-set=-all", "--inh-caps=-all"]
    subprocess.run([*prefix, sys.executable, "-c", code], check=True, timeout=DEADLINE)
    assert path.stat().st_uid == 0
