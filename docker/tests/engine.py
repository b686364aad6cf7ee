"""A Docker engine of Debian's packages that runs from a folder: nothing is installed, and nothing stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
RELEASE = "trixie"
"""Bookworm's Docker 20.10 knows no CAP_BPF (github.com/moby/moby/issues/42601)."""
PACKAGES = ["docker.io", "docker-cli", "docker-compose", "containerd", "tini"]
START_TIMEOUT = 60.0
"""Seconds until a daemon that does not answer has failed to start."""
STOP_TIMEOUT = 60.0
OUTSIDE = [Path("/run/docker"), Path("/run/containerd")]
"""Folders of the machine that the programs write to, whatever they are told. Left there with containerd's mode, they
would keep a daemon that is installed later from starting containers (github.com/containerd/containerd/issues/10502)."""


CONTROL_GROUPS = Path("/sys/fs/cgroup")


class EngineError(Exception):
    """What a command of the engine said when it failed."""


@contextmanager
def _there(folders: list[Path]) -> Iterator[None]:
    """Have these folders; those that were not there before go at the end."""
    made = [folder for folder in folders if not folder.exists()]
    for folder in made:
        folder.mkdir()
    try:
        yield
    finally:
        for folder in made:
            with suppress(OSError):  # somebody else uses it by now
                folder.rmdir()


class Engine:
    """Docker's programs, and a folder for all that they write; ``running`` is the daemon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._programs = folder / "programs"
        self.environment = {
            **os.environ,
            "PATH": f"{self._programs}/usr/sbin:{self._programs}/usr/bin:{os.environ['PATH']}",
            "DOCKER_HOST": f"unix://{folder}/docker.sock",
            "DOCKER_CONFIG": str(folder / "client"),
            # Debian has no buildx, without which the client knows no other builder.
            "DOCKER_BUILDKIT": "0",
        }

    def fetch(self) -> None:
        """Download and unpack the packages."""
        lists, packages = self.folder / "apt", self.folder / "packages"
        for made in (lists / "lists/partial", lists / "cache/archives/partial", packages, self.folder / "client"):
            made.mkdir(parents=True)
        (lists / "sources").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {RELEASE} main\n")
        own = {
            "Dir::Etc::sourcelist": lists / "sources",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": lists / "lists",
            "Dir::Cache": lists / "cache",
        }
        common = ["apt-get", "-qq", "-oAPT::Sandbox::User=root", "-oAcquire::Retries=3"]
        apt = [*common, *(f"-o{name}={value}" for name, value in own.items())]
        subprocess.run([*apt, "update"], check=True)
        subprocess.run([*apt, "download", *PACKAGES], check=True, cwd=packages)
        # The only one that needs the C library of its release: take this machine's.
        subprocess.run([*common, "download", "runc"], check=True, cwd=packages)
        for package in packages.iterdir():
            subprocess.run(["dpkg", "-x", str(package), str(self._programs)], check=True)  # noqa: S607 - Debian's own
        shutil.rmtree(packages)
        plugins = self._programs / "usr/libexec/docker/cli-plugins"
        (self.folder / "client/cli-plugins").symlink_to(plugins)

    @contextmanager
    def running(self, *, network: bool) -> Iterator[None]:
        """Run the daemon: in this machine's network, to build, or else in one of its own.

        Its mounts are its own in any case, and end with it; it ends with the thread that started it.
        """
        command = ["setpriv", "--pdeathsig=TERM", "unshare", "--mount", *([] if network else ["--net"]), "sh", "-ec"]
        hide = " ".join(f"mount -t tmpfs hidden {path};" for path in OUTSIDE)
        script = f'ip link set lo up; {hide} exec dockerd "$@"'
        options = {
            "data-root": self.folder / "data",
            "exec-root": self.folder / "exec",
            "pidfile": self.folder / "docker.pid",
            "host": self.environment["DOCKER_HOST"],
            "config-file": self.folder / "daemon.json",
            "cgroup-parent": f"/{self.folder.name}",
            "bridge": "none",
            "iptables": "false",
            "ip6tables": "false",
            "ip-forward": "false",
            "ip-masq": "false",
            "userland-proxy": "false",
        }
        (self.folder / "daemon.json").write_text("{}")
        arguments = [f"--{name}={value}" for name, value in options.items()]
        with _there(OUTSIDE), (self.folder / "dockerd.log").open("ab") as log:
            daemon = subprocess.Popen(
                [*command, script, "dockerd", *arguments], env=self.environment, stdout=log, stderr=log
            )
            try:
                self._wait(daemon)
                yield
            finally:
                daemon.terminate()
                try:
                    daemon.wait(STOP_TIMEOUT)
                finally:
                    daemon.kill()
                    daemon.wait()
                    self._remove_control_groups()

    def _remove_control_groups(self) -> None:
        """Docker removes those of its containers, and leaves their parent, one for each hierarchy."""
        for found in (*CONTROL_GROUPS.glob(self.folder.name), *CONTROL_GROUPS.glob(f"*/{self.folder.name}")):
            found.rmdir()

    def _wait(self, daemon: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while self.ask("version").returncode != 0:
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise EngineError(f"dockerd did not start:\n{(self.folder / 'dockerd.log').read_text()[-3000:]}")
            time.sleep(0.1)

    def ask(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run ``docker``, whatever its status is."""
        return subprocess.run(
            ["docker", *arguments],  # noqa: S607 - found by the engine's own PATH
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def docker(self, *arguments: str, **environment: str) -> str:
        """Run ``docker``; its output. Raises EngineError with all that it said."""
        done = self.ask(*arguments, **environment)
        if done.returncode != 0:
            raise EngineError(f"docker {' '.join(arguments)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def load(self, tar: Path, name: str, *changes: str) -> None:
        """Make an image of a file system in a tar file."""
        self.docker("import", *(f"--change={change}" for change in changes), str(tar), name)
