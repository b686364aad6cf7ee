"""A supervisor in a container, as the Kubernetes manifests run it: its workers, and the next version of it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import yaml
from engine import ROOT, Engine

(CONTAINER,) = yaml.safe_load((ROOT / "examples/kubernetes/daemonset.yaml").read_text())["spec"]["template"]["spec"][
    "containers"
]
LATER = 1000
"""Datagrams that are sent when the first one has drained."""
SOURCES = 40


@pytest.fixture
def pod(engine: Engine, bpffs: str, tmp_path, wait_until) -> Iterator:
    """Start a container with the DaemonSet's command and rights; it proves what arrives. Returns when it serves."""
    (tmp_path / "reports").mkdir(mode=0o777)
    (tmp_path / "reports").chmod(0o777)
    names = ["holder", "sender"]
    engine.docker(
        "run", "--detach", "--name=holder", "--network=none", "--entrypoint=sleep", "--init", "aiolb", "infinity"
    )
    security = CONTAINER["securityContext"]
    rights = [f"--cap-add={name}" for name in security["capabilities"]["add"]]
    fixed = ["--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only", "--tmpfs=/tmp", *rights]

    def start(name: str) -> str:
        names.append(name)
        (script,) = CONTAINER["args"]
        script = script.replace("serve print", f"serve verify --report /reports/{name}.json")
        command, *rest = CONTAINER["command"]
        volumes = [f"--volume={bpffs}:/sys/fs/bpf", f"--volume={tmp_path}/reports:/reports"]
        run = ["run", "--detach", f"--name={name}", "--network=container:holder", *fixed, *volumes]
        engine.docker(*run, f"--entrypoint={command}", "aiolb", *rest, script)
        wait_until(lambda: '"supervising"' in log(engine, name), f"{name} supervises")
        return name

    yield start
    engine.ask("rm", "--force", *names)  # not each test has a sender


def log(engine: Engine, name: str) -> str:
    """What a container wrote."""
    done = engine.ask("logs", name)
    return done.stdout + done.stderr


def workers(engine: Engine, name: str) -> dict[int, tuple[str, str]]:
    """The user and the effective capabilities of each worker, by its process id in the container."""
    ask = "for each in /proc/[0-9]*; do echo ${each#/proc/} $(tr '\\0' ' ' <$each/cmdline | cut -c1-200) :"
    ask += " $(awk '/^Uid:/ {print $3} /^CapEff:/ {print $2}' $each/status); done"
    found = {}
    for line in engine.docker("exec", name, "sh", "-c", ask).splitlines():
        command, _, status = line.rpartition(":")
        if "aiolb worker " in command:
            uid, capabilities = status.split()
            found[int(command.split()[0])] = uid, capabilities
    return found


def test_workers_have_no_privilege(engine: Engine, pod, wait_until) -> None:
    """Workers run as the image's user without any capability, and one that is killed is replaced."""
    name = pod("only")
    uid = engine.docker("exec", name, "id", "--user", "aiolb").strip()
    before = workers(engine, name)
    assert list(before.values()) == [(uid, "0" * 16)] * 4
    victim = min(before)
    engine.docker("exec", "--user=aiolb", name, "sh", "-c", f"kill -KILL {victim}")
    wait_until(lambda: len(now := workers(engine, name)) == 4 and victim not in now, "another worker")
    engine.docker("stop", "--time=30", name)
    assert engine.docker("inspect", "--format={{.State.ExitCode}}", name).strip() == "0"


def test_next_version_takes_over(engine: Engine, pod, tmp_path, wait_until) -> None:
    """While datagrams come, a second container takes all places; none is lost, and the first waits to be removed."""
    first = pod("first")
    flood = ["flood", "127.0.0.1:10001", "--stamp", "--rate=1000", f"--sources={SOURCES}", "--json"]
    network = "--network=container:holder"
    engine.docker("run", "--detach", "--name=sender", network, "aiolb", *flood)
    probe = CONTAINER["readinessProbe"]["exec"]["command"]
    assert engine.ask("exec", first, *probe).returncode == 0
    second = pod("second")
    wait_until((tmp_path / "reports/first.json").exists, "the first one has drained")
    # Ready is only who holds all places since its own start.
    assert engine.ask("exec", second, *probe).returncode == 0
    engine.docker("exec", second, "touch", probe[-1])
    assert engine.ask("exec", second, *probe).returncode == 1
    engine.docker("stop", "sender")
    sent = json.loads(log(engine, "sender").splitlines()[-1])["sent_datagrams"]
    engine.docker("run", "--rm", network, "aiolb", *flood, f"--count={LATER}")
    assert engine.docker("inspect", "--format={{.State.Running}}", first).strip() == "true"
    for name in (first, second):
        engine.docker("stop", "--time=30", name)
        assert engine.docker("inspect", "--format={{.State.ExitCode}}", name).strip() == "0"
    received = [json.loads((tmp_path / f"reports/{name}.json").read_text())["received"] for name in (first, second)]
    assert sum(received) == sent + LATER, received
    assert received[0] > 0
    assert received[1] >= LATER
