"""What commands print reads as it is."""

from __future__ import annotations

from io import StringIO

from click.testing import CliRunner

from aiolb.cli.main import main
from aiolb.cli.texts import plain_console


def test_addresses_are_no_markup():
    """An address in brackets, or with a part that is the name of an emoji, is printed whole."""
    out = StringIO()
    plain_console(file=out, width=100).print("[fe80::1%lo]:9000 and 2001:db8:ab:1::, [/bold]")
    assert out.getvalue() == "[fe80::1%lo]:9000 and 2001:db8:ab:1::, [/bold]\n"


def test_an_option_that_is_missing():
    """It is told as every other mistake is: in one line, with a hint; exit status 2."""
    result = CliRunner().invoke(main, ["move", "7"], prog_name="aiolb")
    assert (result.exit_code, result.stderr.splitlines()) == (
        2,
        ["aiolb: error: Missing option '--to'", "  hint: see: aiolb move --help"],
    )
