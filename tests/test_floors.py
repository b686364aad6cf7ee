"""The floors hold: every file imports lower floors only, inside functions too."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "aiolb"

FLOORS = {
    "aiolb.errors": 0,
    "aiolb.bpf.abi": 0,
    "aiolb.bpf.syscall": 0,
    "aiolb.bpf.hashing": 1,
    "aiolb.bpf.keys": 1,
    "aiolb.bpf.slots": 1,
    "aiolb.bpf.packing": 1,
    "aiolb.bpf.shortening": 2,
    "aiolb.bpf.searching": 3,
    "aiolb.bpf.planning": 4,
    "aiolb.bpf.rebalancing": 5,
    "aiolb.address": 1,
    "aiolb.capabilities": 1,
    "aiolb.diagnosis": 1,
    "aiolb.stats": 1,
    "aiolb.sampling": 1,
    "aiolb.pacing": 1,
    "aiolb.stamp": 1,
    "aiolb.histogram": 1,
    "aiolb.sketch": 2,
    "aiolb.log_file": 1,
    "aiolb.logs": 2,
    "aiolb.loops": 1,
    "aiolb.held_signals": 0,
    "aiolb.signals": 1,
    "aiolb.waiting": 1,
    "aiolb.restarts": 1,
    "aiolb.recycling": 1,
    "aiolb.bpf.spec": 1,
    "aiolb.bpf.classic": 2,
    "aiolb.bpf.key_file": 2,
    "aiolb.bpf.compiler": 3,
    "aiolb.channel": 1,
    "aiolb.reports": 1,
    "aiolb.orphan": 1,
    "aiolb.config": 3,
    "aiolb.assignment": 4,
    "aiolb.tally": 2,
    "aiolb.worker_process": 5,
    "aiolb.remarks": 4,
    "aiolb.member_report": 9,
    "aiolb.places": 10,
    "aiolb.store": 11,
    "aiolb.balancing": 10,
    "aiolb.reload": 10,
    "aiolb.operations": 2,
    "aiolb.supervised": 11,
    "aiolb.supervisor": 12,
    "aiolb.worker": 12,
    "aiolb.group_view": 7,
    "aiolb.place": 8,
    "aiolb.bound": 3,
    "aiolb.socket_diag": 2,
    "aiolb.descriptors": 1,
    "aiolb.sockets": 2,
    "aiolb.systemd": 2,
    "aiolb.privileges": 2,
    "aiolb.verification": 2,
    "aiolb.bpf.bcc_child": 0,
    "aiolb.bpf.program": 2,
    "aiolb.bpf.group_name": 2,
    "aiolb.bpf.location": 1,
    "aiolb.bpf.maps": 1,
    "aiolb.bpf.rules": 2,
    "aiolb.bpf.guard": 3,
    "aiolb.bpf.ownership": 1,
    "aiolb.bpf.deletion": 5,
    "aiolb.bpf.shared_reports": 1,
    "aiolb.bpf.ring": 0,
    "aiolb.bpf.events": 2,
    "aiolb.bpf.statistics": 1,
    "aiolb.bpf.pins": 3,
    "aiolb.bpf.unpinned": 3,
    "aiolb.bpf.cautions": 4,
    "aiolb.bpf.liveness": 1,
    "aiolb.bpf.discovery": 4,
    "aiolb.bpf.objects": 4,
    "aiolb.bpf.probe": 4,
    "aiolb.bpf.state": 5,
    "aiolb.bpf.group": 6,
    "aiolb.bpf.table": 4,
    "aiolb.bpf.changes": 5,
    "aiolb.bpf.balance": 6,
    "aiolb.bpf.told_sources": 3,
    "aiolb.bpf.snapshot": 6,
    "aiolb.bpf.slot_sources": 7,
    "aiolb.alarm": 1,
    "aiolb.frames": 0,
    "aiolb.capture": 1,
    "aiolb.replay_config": 3,
    "aiolb.replay": 6,
    "aiolb.round_trips": 3,
    "aiolb.echo": 6,
    "aiolb.send.refusals": 0,
    "aiolb.send.captured": 4,
    "aiolb.send.timed": 5,
    "aiolb.bpf.preparation": 7,
    "aiolb.send.gso": 1,
    "aiolb.send.turns": 1,
    "aiolb.send.contract": 1,
    "aiolb.send.statistics": 1,
    "aiolb.send.config": 2,
    "aiolb.send.plain": 2,
    "aiolb.send._fast": 2,
    "aiolb.send.sources": 3,
    "aiolb.send.choose": 3,
    "aiolb.send.bursts": 4,
    "aiolb.publisher": 5,
    "aiolb.receive.contract": 0,
    "aiolb.receive._linux": 1,
    "aiolb.receive.door": 1,
    "aiolb.receive.step": 2,
    "aiolb.receive._fast": 2,
    "aiolb.receive._fast_replies": 2,
    "aiolb.receive._fast_pending": 3,
    "aiolb.receive._fast_step": 4,
    "aiolb.bpf.steering": 7,
    "aiolb.occupants": 6,
    "aiolb.port_check": 7,
    "aiolb.kernel_checks": 5,
    "aiolb.compiled_parts": 6,
    "aiolb.doctor": 9,
    "aiolb.bpf.balancers": 8,
    "aiolb.bpf.members": 9,
    "aiolb.receive.senders": 3,
    "aiolb.receive.plain": 4,
    "aiolb.receive.choose": 5,
    "aiolb.lane": 3,
    "aiolb.lanes": 4,
    "aiolb.handler_times": 2,
    "aiolb.reporter": 4,
    "aiolb.protocol": 5,
    "aiolb.transport": 5,
    "aiolb.listening": 3,
    "aiolb.connections": 4,
    "aiolb.acceptor": 5,
    "aiolb.lifecycle": 0,
    "aiolb.binding": 4,
    "aiolb.listener": 8,
    "aiolb.observed": 7,
    "aiolb.metrics_table": 8,
    "aiolb.metrics": 9,
    "aiolb.metrics_http": 2,
    "aiolb.metrics_server": 10,
    "aiolb.datagram_listener": 9,
    "aiolb.stream_listener": 9,
    "aiolb.listeners": 10,
    "aiolb.server": 11,
    "aiolb.base_collector": 12,
    "aiolb.collector": 13,
    "aiolb.stream": 13,
    "aiolb.builtin": 14,
    "aiolb.builtin_streams": 15,
    "aiolb.application": 16,
    "aiolb.testing.outcomes": 1,
    "aiolb.testing.life": 12,
    "aiolb.testing.watched": 14,
    "aiolb.testing.fake_listener": 8,
    "aiolb.testing.fake_stream_listener": 15,
    "aiolb.testing.fake_base": 15,
    "aiolb.testing.fake_streams": 16,
    "aiolb.testing.fake": 17,
    "aiolb.testing.running_base": 15,
    "aiolb.testing.running_streams": 16,
    "aiolb.testing.running": 17,
    "aiolb.testing.plugin": 18,
    "aiolb.cli": 19,
    "aiolb.__main__": 20,
}


def name_of(path: Path) -> str:
    """The module that a file is."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int:
    """The floor of a module; all of the command line is one."""
    return FLOORS["aiolb.cli" if module.startswith("aiolb.cli.") else module]


def modules() -> dict[str, Path]:
    """Every module but the packages that only export names."""
    exports = {"aiolb", "aiolb.bpf", "aiolb.receive", "aiolb.send", "aiolb.testing"}
    paths = [path for suffix in ("pxd", "pyx", "py") for path in sorted(PACKAGE.rglob(f"*.{suffix}"))]
    return {name: path for path in paths if (name := name_of(path)) not in exports}


def python_of(path: Path) -> str:
    """The source; of a Cython file its imports alone, a cimport counting as one."""
    text = path.read_text()
    if path.suffix == ".py":
        return text
    statements = re.findall(r"^ *((?:from +\S+ +)?c?import +(?:\([^)]*\)|.+))$", text, re.MULTILINE)
    return "\n".join(statement.replace("cimport", "import") for statement in statements)


def imports(path: Path) -> set[str]:
    """What a file imports of aiolb, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(python_of(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            # `from aiolb.bpf import abi` imports a module, `from aiolb.bpf.abi import X` a name.
            found |= {
                full if (full := f"{node.module}.{alias.name}") in FLOORS else node.module for alias in node.names
            }
    return {name for name in found if name == "aiolb" or name.startswith("aiolb.")}


@pytest.mark.parametrize(("module", "path"), modules().items(), ids=modules())
def test_imports_lower_floors_only(module: str, path: Path) -> None:
    """A file imports from lower floors only; the files of the command line may use each other."""
    for imported in imports(path):
        if module.startswith("aiolb.cli") and imported.startswith("aiolb.cli"):
            continue
        assert imported in FLOORS or imported.startswith("aiolb.cli."), f"{module} imports {imported}"
        assert floor_of(imported) < floor_of(module), f"{module} imports {imported}, which is no lower floor"


def test_every_floor_has_its_file() -> None:
    """The table names no file that is gone."""
    assert set(FLOORS) - set(modules()) == set()


@pytest.mark.parametrize("module", ["aiolb.protocol", "aiolb.publisher"])
def test_never_imports_bpf(module: str) -> None:
    """The protocol and the publisher know nothing of the kernel program."""
    assert not [name for name in imports(modules()[module]) if name.startswith("aiolb.bpf")]


def test_the_publisher_never_imports_the_server() -> None:
    """The publisher can be used where no collector is."""
    assert "aiolb.server" not in imports(modules()["aiolb.publisher"])


def test_only_main_imports_the_command_line() -> None:
    """Nothing but __main__ imports the command line."""
    users = {name for name, path in modules().items() if any(i.startswith("aiolb.cli") for i in imports(path))}
    assert {name for name in users if not name.startswith("aiolb.cli")} == {"aiolb.__main__"}


def test_only_the_command_line_prints_and_exits() -> None:
    """`print` and `sys.exit` appear in the command line alone."""
    for name, path in modules().items():
        if name.startswith("aiolb.cli") or name == "aiolb.__main__":
            continue
        for node in ast.walk(ast.parse(python_of(path))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in {"print", "exit", "sys.exit", "os._exit"}, f"{name}:{node.lineno} calls {called}"
