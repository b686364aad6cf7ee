"""``aiolb --version``: the version, the kernel, and which balancer this package brings."""

from __future__ import annotations

import platform

import click


def version_text() -> str:
    """What ``--version`` prints. The digest is that of the bytecode: a group says which one it runs."""
    from importlib.metadata import version

    from aiolb.bpf import spec
    from aiolb.bpf.abi import LAYOUT_VERSION

    return (
        f"aiolb {version('aiolb')}\n"
        f"{platform.system()} {platform.release()}, {platform.python_implementation()} {platform.python_version()}\n"
        f"balancer {spec.shipped().digest:016x}, layout {LAYOUT_VERSION}, {_parts()}"
    )


def _parts() -> str:
    """Whether the parts that can be compiled are, each for itself."""
    from importlib import import_module

    found = []
    for name, module in (("receiver", "aiolb.receive._fast"), ("sender", "aiolb.send._fast")):
        try:
            import_module(module)
        except ImportError:
            found.append(f"{name} in Python")
        else:
            found.append(f"{name} compiled")
    return ", ".join(found)


def _show(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(version_text())
        ctx.exit()


version_option = click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show,
    help="Show the version, the kernel and the balancer's build, and exit.",
)
