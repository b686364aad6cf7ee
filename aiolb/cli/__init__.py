"""The command line: click commands, one file each; the only place that prints and exits."""

from aiolb.cli.main import main as main
