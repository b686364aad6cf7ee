"""A worker that hangs does not outlive its supervisor for ever."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

import pytest

CODE = """
import socket, sys, time
from aiolb.orphan import end_after_supervisor
end_after_supervisor(int(sys.argv[1]), seconds=float(sys.argv[2]))
def hangs():
    print("waiting", flush=True)
    time.sleep(3600)
hangs()
"""


@pytest.mark.usefixtures("nothing_left")
def test_a_hanging_worker_ends():
    """It is killed, and standard error tells where it hung."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-c", CODE, str(theirs.fileno()), "0"]
        worker = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=[theirs.fileno()]
        )
    with worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "waiting\n"
        assert worker.poll() is None
        ours.close()
        _, said = worker.communicate(timeout=10)
    assert worker.returncode == -signal.SIGKILL
    assert "in hangs" in said
