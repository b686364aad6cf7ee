"""A worker that starts at once: speaks the channel, answers datagrams, notes what it does, and fails as it is told to.

Its application is a file: the first line is the version, the others are words that say what goes wrong:
``exit`` (before it is prepared), ``stuck`` (never prepared), ``exit-receive`` (ordered to receive), ``deaf`` (orders to
end are not obeyed), ``linger`` (a child process of its own lives on, with the channel open). The file with ``.journal``
at the end of its name gets a line for each step: ``PID INDEX STEP``; the one with ``.slots`` for each change of slots.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path


class ScriptedWorker:
    """One member's worker; ``run()`` does everything."""

    def __init__(self, channel: int, assignment: dict) -> None:
        self.channel = socket.socket(fileno=channel)
        self.lines = self.channel.makefile("rb")
        self.index, self.beat = assignment["index"], assignment["beat"]
        self.count = assignment["count"]
        self.script = Path(assignment["app"])
        self.version, *self.words = self.script.read_text().split()
        self.sockets = [socket.socket(fileno=number) for _, number in assignment["sockets"]]
        self.handled: list[str] = []

    def note(self, step: str, suffix: str = ".journal") -> None:
        """Add a line to the journal."""
        with self.script.with_suffix(suffix).open("a") as journal:
            journal.write(f"{os.getpid()} {self.index} {step}\n")

    def tell(self, name: str, **content: object) -> None:
        """Send a message to the supervisor."""
        with suppress(OSError):
            self.channel.sendall(json.dumps({"name": name, **content}).encode() + b"\n")

    def run(self) -> None:
        """Live as the script says."""
        self.note("started")
        if "linger" in self.words and os.fork() == 0:
            signal.pause()
        if "exit" in self.words:
            sys.exit(3)
        while "stuck" in self.words:
            signal.pause()
        self.note("prepared")
        self.tell("prepared")
        receiving = False
        while True:
            watched = [self.channel, *(self.sockets if receiving else [])]
            readable, _, _ = select.select(watched, [], [], self.beat)
            if self.channel in readable:
                receiving = self.obey(self.order()) or receiving
            if receiving:
                self.read()
            self.tell("beat", received=len(self.handled), handled=len(self.handled), errors=0, abandoned=0)

    def order(self) -> dict:
        """The next order; ``gone`` when the supervisor has died."""
        try:
            return json.loads(self.lines.readline() or b'{"name": "gone"}')
        except ConnectionResetError:  # it had not read all that we told it
            return {"name": "gone"}

    def obey(self, order: dict) -> bool:
        """Do what the supervisor says; whether to receive from now on."""
        name = order["name"]
        # Slots are looked at every now and then: when a worker is told of them is not to be relied on.
        self.note(" ".join(map(str, order.values())), ".slots" if name == "slots" else ".journal")
        if name == "receive":
            if "exit-receive" in self.words:
                sys.exit(4)
            self.tell("receiving")
            return True
        if name in ("hand_over", "drain", "give_up", "gone") and "deaf" not in self.words:
            if name == "drain":
                self.read()
            self.tell("released")
            numbers = {"received": len(self.handled), "handled": len(self.handled), "errors": 0, "abandoned": 0}
            report = {"index": self.index, "pid": os.getpid(), **numbers, "kernel_drops": 0, "collector": self.handled}
            self.tell("ended", report=report)
            self.note("ended")
            sys.exit(0)
        return False

    def read(self) -> None:
        """Handle all that is in the queues."""
        for sock in self.sockets:
            with suppress(BlockingIOError):
                while True:
                    self.handle(sock, *sock.recvfrom(1024))

    def handle(self, sock: socket.socket, datagram: bytes, addr: tuple) -> None:
        """Answer as the application of the tests does."""
        if datagram == b"kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if datagram == b"hang":
            time.sleep(3600)
        self.handled.append(datagram.decode())
        sock.sendto(f"{self.version} {self.index} {os.getpid()} {os.getuid()}".encode(), addr)


if __name__ == "__main__":
    ScriptedWorker(int(sys.argv[1]), json.loads(sys.argv[2])).run()
