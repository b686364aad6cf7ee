"""``aiolb group``: prepare groups for users without privileges, look at them, take them away."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aiolb.bpf.pins import in_bpffs
from aiolb.cli.groups import GroupType, bpffs_option, opened
from aiolb.errors import ConfigurationError, GroupError, GroupNotFoundError, PrivilegeError

if TYPE_CHECKING:
    from aiolb.bpf.group import Group, MemberStatistics
    from aiolb.bpf.group_name import GroupName

_GROUP = "[tcp:]HOST:PORT"


@click.group()
def group() -> None:
    """Prepare groups, look at them, take them away."""


@group.command()
@click.argument("name", type=GroupType(), metavar=_GROUP)
@click.option(
    "--owner",
    metavar="USER[:GROUP]",
    help="Whose processes may join without privileges; with GROUP its members may look at it too.",
)
@click.option("--count", type=int, help="Members.  [default: what the group has; 1 for a new one]")
@click.option("--key", metavar="KEY", help="source, prefix/24,64, flow or random.  [default: source]")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    metavar="FILE.c",
    help="Compile this C function, which makes the key, into the balancer, as aiolb serve does.",
)
@click.option("--seed", type=int, help="Of the hash, 128 bits.  [default: random]")
@click.option("--strict/--no-strict", default=None, help="Drop what comes while no member is alive.")
@click.option("--compile", is_flag=True, help="Compile the balancer with bcc instead of loading the shipped bytecode.")
@click.option("--debug", is_flag=True, help="Compile it so that every decision appears in the kernel's trace file.")
@bpffs_option
def create(name: GroupName, owner: str | None, **settings: Any) -> None:
    """Prepare a group for a user without privileges.

    Root makes it, and its owner's processes join without any privilege. It stays when its last member has gone, until
    `aiolb group delete`. A group that is there already is prepared as it is; its key and its seed cannot be changed.
    With --key-file, --compile or --debug its balancer is the one that is compiled here: members need no such option.
    """
    from aiolb import privileges
    from aiolb.bpf.preparation import prepare
    from aiolb.bpf.steering import JoinOptions, group_options
    from aiolb.config import ServeConfig

    if not name.address.port:
        raise ConfigurationError(f"{name} has no port", hint=f"e.g. {name.address.with_port(9000)}")
    options = group_options(JoinOptions.of(ServeConfig(protocol=name.protocol, **settings)))
    identity = None if owner is None else privileges.parse(owner, option="--owner")
    prepared = prepare(name.address, options, identity, shared=owner is not None and ":" in owner)
    try:
        user = prepared.owner
        click.echo(f"{name} is prepared for {user}: {_members(prepared.config.count)}, key {prepared.key}")
        if identity is not None:
            click.echo(f"as {user}: {_serve(name, settings['bpffs'])}")
    finally:
        prepared.close()


@group.command()
@click.argument("name", type=GroupType(), metavar=f"[{_GROUP}]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead.")
@bpffs_option
def show(name: GroupName | None, as_json: bool, bpffs: Path) -> None:
    """Show a group and its members.

    Says whose it is, how it steers, and who its members are. Without a name, all groups of this network namespace.
    """
    from aiolb.bpf.discovery import group_names

    names = [name] if name is not None else group_names(bpffs)
    if not names:
        raise GroupNotFoundError("there is no group in this network namespace", hint="start a collector first")
    found = []
    for one in names:
        try:
            with opened(one, bpffs) as it:
                found.append(_facts(it))
        except (PrivilegeError, GroupError) as error:
            if name is not None:
                raise
            found.append({"group": str(one), "error": str(error), "hint": error.hint})
    if as_json:
        click.echo(json.dumps(found))
        return
    for number, facts in enumerate(found):
        if number:
            click.echo()
        _print(facts)


@group.command()
@click.argument("name", type=GroupType(), metavar=f"[{_GROUP}]", required=False)
@click.option("--force", is_flag=True, help="Even while members are alive.")
@click.option("--stale", is_flag=True, help="All groups without a live member, but those that were prepared.")
@bpffs_option
def delete(name: GroupName | None, force: bool, stale: bool, bpffs: Path) -> None:
    """Take a group away.

    Members that are alive go on as they are, but nobody can join them any more, so that takes --force.
    """
    from aiolb.bpf import deletion

    if (name is None) != stale:
        raise ConfigurationError("name one group, or say --stale", hint="aiolb group show lists them")
    if name is None:
        removed, kept = deletion.delete_stale(bpffs)
        for folder in removed:
            click.echo(f"deleted {folder}")
        for folder in kept:
            click.echo(f"kept {folder}, which was prepared; name it to delete it")
        if not (removed or kept):
            click.echo("no group is without a live member")
        return
    alive = deletion.delete(name, bpffs, force=force)
    click.echo(f"deleted {name}" + (f"; {_members(len(alive))} of it still alive" if alive else ""))


def _facts(it: Group) -> dict[str, Any]:
    from aiolb.bpf.ownership import group_name

    statistics, owner = it.statistics(), it.owner
    return {
        "group": str(it.name),
        "protocol": it.name.protocol,
        "address": str(it.address),
        "key": statistics.key,
        "count": statistics.count,
        "alive": sum(member.alive for member in statistics.members),
        "strict": statistics.strict,
        "seed": str(statistics.seed),  # many a reader of JSON would lose half of its 128 bits
        "owner": f"{owner}:{group_name(owner.gid)}",
        "prepared": owner.prepared,
        "members": [_member(member) for member in statistics.members],
    }


def _member(member: MemberStatistics) -> dict[str, Any]:
    from aiolb.bpf.ownership import user_name

    joined = bool(member.joined_ns)
    since = datetime.fromtimestamp(member.joined_ns / 10**9, tz=UTC).astimezone()
    return {
        "index": member.index,
        "alive": member.alive,
        "pid": member.pid if joined else None,
        "uid": member.uid if joined else None,
        "user": user_name(member.uid) if joined else None,
        "since": since.isoformat(timespec="seconds") if joined else None,
        "slots": member.slots,
    }


def _print(facts: dict[str, Any]) -> None:
    click.echo(facts["group"])
    if "error" in facts:
        click.echo(f"  {facts['error']}")
        click.echo(f"  hint: {facts['hint']}")
        return
    told = {
        "protocol": facts["protocol"],
        "key": facts["key"],
        "seed": facts["seed"],
        "strict": "yes" if facts["strict"] else "no",
        "owner": facts["owner"] + (", prepared" if facts["prepared"] else ""),
        "members": f"{facts['count']}, {facts['alive'] or 'none'} alive",
    }
    for what, value in told.items():
        click.echo(f"  {what:8}  {value}")
    click.echo(f"\n  {'index':>5}  {'alive':5}  {'pid':>7}  {'user':12}  {'since':19}  {'slots':>5}")
    for member in facts["members"]:
        alive, since = "yes" if member["alive"] else "no", (member["since"] or "-")[:19].replace("T", " ")
        pid, user = member["pid"] or "-", member["user"] or "-"
        click.echo(f"  {member['index']:5}  {alive:5}  {pid:>7}  {user:12}  {since:19}  {member['slots']:5}")


def _members(count: int) -> str:
    return "1 member" if count == 1 else f"{count} members"


def _serve(name: GroupName, bpffs: Path) -> str:
    """The command that joins a group as its first member."""
    protocol = "" if name.protocol == "udp" else f" --protocol {name.protocol}"
    return f"aiolb serve --bind {name.address}{protocol} --index 0 --balancer ebpf{in_bpffs(bpffs)}"
