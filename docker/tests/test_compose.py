"""The compose file: each publisher's source stays on one collector, nothing is lost, and others take over."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from engine import ROOT, Engine

COLLECTORS = [f"collector-{index}" for index in range(3)]
PUBLISHERS = 9
COUNT = 1000
LINE = re.compile(r"^(\d+\.\d+\.\d+\.\d+):\d+ +64 bytes ", re.MULTILINE)


class Project:
    """The containers of the compose file."""

    def __init__(self, engine: Engine, reports, *files: str) -> None:
        self._engine = engine
        self._files = [f"--file={ROOT / file}" for file in files]
        self._environment = {"REPORTS": str(reports)}

    def compose(self, *arguments: str) -> str:
        """Run ``docker compose``."""
        return self._engine.docker("compose", *self._files, *arguments, **self._environment)

    def logs(self, service: str) -> str:
        """What a service of one container wrote since it was started first."""
        done = self._engine.ask("logs", self.compose("ps", "--all", "--quiet", service).strip())
        return done.stdout + done.stderr

    def start(self, publishers: int) -> None:
        """Start collectors, and publishers when those are ready."""
        self.compose("up", "--detach", "--no-build", *COLLECTORS)
        self._wait_until(lambda: all(" ready " in self.logs(name) for name in COLLECTORS), "collectors are ready")
        self.compose("up", "--detach", "--no-build", f"--scale=publisher={publishers}")

    def addresses(self) -> set[str]:
        """Of the publishers."""
        ids = self.compose("ps", "--all", "--quiet", "publisher").split()
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return set(self._engine.docker("inspect", f"--format={form}", *ids).split())


@pytest.fixture
def project(engine: Engine, tmp_path, wait_until) -> Iterator:
    """Make a project of compose files; all of it is removed at the end."""
    made = []

    def make(*files: str) -> Project:
        reports = tmp_path / "reports"
        reports.mkdir()
        reports.chmod(0o777)
        made.append(Project(engine, reports, *files))
        made[-1]._wait_until = wait_until
        return made[-1]

    yield make
    for each in made:
        each.compose("down", "--volumes", "--timeout=20")


def test_affinity_and_no_loss(engine: Engine, project, tmp_path, wait_until) -> None:
    """Nine containers send; each one's source reaches one collector only, and every datagram arrives once."""
    group = project("docker/compose.yaml", "docker/tests/verify.yaml")
    group.start(PUBLISHERS)
    ids = group.compose("ps", "--all", "--quiet", "publisher").split()
    assert len(ids) == PUBLISHERS
    wait_until(lambda: all("sent_datagrams" in engine.docker("logs", each) for each in ids), "all have sent")
    sent = [json.loads(engine.docker("logs", each).splitlines()[-1]) for each in ids]
    addresses = group.addresses()
    assert len(addresses) == PUBLISHERS
    group.compose("stop", *COLLECTORS)
    collected = [json.loads((tmp_path / "reports" / f"{index}.json").read_text()) for index in range(3)]
    owners: dict[str, list[int]] = {}
    received = 0
    for index, report in enumerate(collected):
        verified = report["collector"]
        received += verified["received"]
        assert (verified["lost"], verified["duplicated"]) == (0, 0)
        for source in verified["per_source"]:
            owners.setdefault(source["address"], []).append(index)
    assert received == sum(each["sent_datagrams"] for each in sent) == PUBLISHERS * COUNT
    assert owners.keys() == addresses
    assert all(len(indexes) == 1 for indexes in owners.values()), owners


def seen(project: Project) -> list[set[str]]:
    """The sources that each collector has printed."""
    return [set(LINE.findall(project.logs(name))) for name in COLLECTORS]


def test_others_take_over(project, wait_until) -> None:
    """The sources of a killed collector go to the others, theirs stay, and all come back when it does."""
    group = project("docker/compose.yaml")
    group.start(PUBLISHERS)
    everyone = group.addresses()
    assert len(everyone) == PUBLISHERS
    wait_until(lambda: set.union(*seen(group)) == everyone, "every publisher is heard")
    before = seen(group)
    assert sum(map(len, before)) == PUBLISHERS, before
    victim = max(range(3), key=lambda index: len(before[index]))
    survivors = [index for index in range(3) if index != victim]
    group.compose("kill", COLLECTORS[victim])
    wait_until(lambda: set.union(*(seen(group)[index] for index in survivors)) == everyone, "the others take over")
    after = seen(group)
    moved = [after[index] - before[index] for index in survivors]
    assert set.union(*moved) == before[victim]
    assert sum(map(len, moved)) == len(before[victim]), "a source went to two"
    # What it prints from now on is what came back.
    old = group.logs(COLLECTORS[victim])
    group.compose("start", COLLECTORS[victim])

    def back() -> set[str]:
        return set(LINE.findall(group.logs(COLLECTORS[victim])[len(old) :]))

    wait_until(lambda: back() == before[victim], "its sources come back")


def test_health(project, wait_until) -> None:
    """Docker finds each collector healthy, and one can be asked whether another lives."""
    group = project("docker/compose.yaml")
    group.start(1)

    def health() -> list[str]:
        return group.compose("ps", "--format={{.Health}}", *COLLECTORS).split()

    wait_until(lambda: health() == ["healthy"] * 3, "all are healthy")
    alive = ["exec", "--no-TTY", "collector-0", "aiolb", "status", "--interval", "0", "--member"]
    group.compose(*alive, "1")
    group.compose("kill", "collector-1")
    done = group._engine.ask("compose", *group._files, *alive, "1", **group._environment)
    assert done.returncode == 1, done.stdout + done.stderr
    group.compose(*alive, "2")
