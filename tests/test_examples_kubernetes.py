"""The Kubernetes manifests: valid, and what a container of theirs does when it is stopped, displaced or fails."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from deadline import DEADLINE
from documents import ROOT

FOLDER = ROOT / "examples" / "kubernetes"
MANIFESTS = sorted(FOLDER.glob("*.yaml"))


def objects(path: Path) -> list[dict]:
    """What a file declares."""
    return list(yaml.safe_load_all(path.read_text()))


def templates() -> list[dict]:
    """The pods of all files."""
    found = [
        item["spec"]["template"]["spec"] for path in MANIFESTS for item in objects(path) if item["kind"] != "Service"
    ]
    assert len(found) == 2
    return found


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifest_is_valid(path: Path) -> None:
    """Kubernetes's own schema knows every field, and its values."""
    for item in objects(path):
        kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)


def test_schema_is_strict() -> None:
    """A misspelt field would be found."""
    (item,) = objects(FOLDER / "daemonset.yaml")
    item["spec"]["template"]["spec"]["hostNetwrok"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="hostNetwrok"):
        kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)


def test_pods_have_what_a_supervisor_needs() -> None:
    """Exactly the capabilities of which `make docker-test` shows that they suffice, and a BPF file system."""
    for pod in templates():
        (container,) = pod["containers"]
        security = container["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"], "add": ["BPF", "SETUID", "SETGID", "KILL"]}
        assert (security["runAsUser"], security["allowPrivilegeEscalation"]) == (0, False)
        assert {"name": "bpffs", "mountPath": "/sys/fs/bpf"} in container["volumeMounts"]
        assert {"name": "bpffs", "hostPath": {"path": "/sys/fs/bpf", "type": "Directory"}} in pod["volumes"]


def test_only_the_new_pod_makes_it_ready() -> None:
    """The DaemonSet's probe asks for members that joined after the pod's start: the old pod's are in the same group."""
    (daemonset,) = objects(FOLDER / "daemonset.yaml")
    (container,) = daemonset["spec"]["template"]["spec"]["containers"]
    probe = container["readinessProbe"]["exec"]["command"]
    (script,) = container["args"]
    assert script.splitlines()[0] == f"touch {probe[probe.index('--newer') + 1]}"


def test_sources_keep_their_addresses() -> None:
    """No datagram comes through a translation of its source; two versions fit on a node."""
    (daemonset,) = objects(FOLDER / "daemonset.yaml")
    pod = daemonset["spec"]["template"]["spec"]
    assert pod["hostNetwork"] is True
    assert "ports" not in pod["containers"][0]
    service, _ = objects(FOLDER / "deployment.yaml")
    assert service["spec"]["externalTrafficPolicy"] == "Local"


@pytest.fixture
def container(tmp_path):
    """Start the command of the DaemonSet's container, with a collector that is this script."""
    (daemonset,) = objects(FOLDER / "daemonset.yaml")
    (spec,) = daemonset["spec"]["template"]["spec"]["containers"]
    started = []

    def start(script: str) -> subprocess.Popen[str]:
        stand_in = tmp_path / "aiolb"
        stand_in.write_text(f"#!/bin/sh\n{script}\n")
        stand_in.chmod(0o755)
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        # A group of its own: what the script leaves running ends with it, as it does with a container.
        started.append(
            subprocess.Popen(
                [*spec["command"], *(text.replace("/tmp/", f"{tmp_path}/") for text in spec["args"])],  # noqa: S108 - the pod's own
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        with process, suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


SERVES = 'trap "echo drained; exit 0" TERM; echo "$1"; sleep 60 & wait'


def test_container_that_is_stopped_drains(container) -> None:
    """SIGTERM reaches the collectors, and the container ends when they have."""
    process = container(SERVES)
    assert process.stdout.readline() == "serve\n"
    process.terminate()
    assert process.stdout.readline() == "drained\n"
    assert process.wait(DEADLINE) == 0


def _runs_sleep(children: Path) -> bool:
    with suppress(FileNotFoundError):
        return [Path(f"/proc/{pid}/comm").read_text() for pid in children.read_text().split()] == ["sleep\n"]
    return False


def test_container_that_is_displaced_waits(container, wait_until) -> None:
    """When the next version has taken over, the container does not end, which would start it again, until told to."""
    process = container("echo displaced")
    assert process.stdout.readline() == "displaced\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: _runs_sleep(children), "it sleeps")
    assert process.poll() is None
    process.terminate()
    assert process.wait(DEADLINE) == 0


def test_container_that_fails_ends(container) -> None:
    """The status of collectors that failed is the container's, and it is started again."""
    assert container("exit 3").wait(DEADLINE) == 3
