"""Numbers are short and not wrong, and tables are as wide as they may be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from aiolb.cli import units
from aiolb.cli.table import Column, fitting, lines


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.25, "0.2"),
        (3.0, "3"),
        (9.94, "9.9"),
        (9.96, "10"),
        (42.4, "42"),
        (9999, "9999"),
        (9999.6, "10.0k"),
        (12_345, "12.3k"),
        (999_499, "999k"),
        (999_500, "1.00M"),
        (4_560_000, "4.56M"),
        (2**64, "18.4E"),
    ],
)
def test_counts(number, text):
    """Four digits as they are, then three and a unit."""
    assert units.count(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(None, "-"), (0, "0B"), (999, "999B"), (1024, "1.00KiB"), (41943040, "40.0MiB")]
)
def test_sizes(number, text):
    """Bytes in powers of 1,024."""
    assert units.size(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (512, "512ns"), (1024, "1.02µs"), (4096, "4.1µs"), (1 << 20, "1.05ms"), (1 << 33, "8.59s")],
)
def test_times(number, text):
    """Nanoseconds in the unit that makes them short."""
    assert units.time(number) == text
    assert units.below(number) == (f"<{text}" if number else "-")


def test_percentages():
    """One digit behind the point."""
    assert (units.percent(None), units.percent(1 / 3), units.percent(1)) == ("-", "33.3%", "100.0%")


def test_fullness():
    """Nothing behind the point."""
    assert (units.fullness(None), units.fullness(1 / 3), units.fullness(1)) == ("-", "33%", "100%")


def test_moments():
    """Of today the time, of other days the date too; nothing for never."""
    now = datetime.now(UTC).astimezone().replace(hour=12, minute=0, second=0, microsecond=0)
    assert units.moment(0, now) == "-"
    assert units.moment(int(now.timestamp() * 1e9), now) == "12:00:00"
    before = now - timedelta(days=2)
    assert units.moment(int(before.timestamp() * 1e9), now) == f"{before:%F} 12:00"


def test_users():
    """A name where there is one."""
    assert (units.user(0), units.user(4_000_000_001)) == ("root", "4000000001")


COLUMNS = [Column("A", ["1", "22"], 0), Column("NAME", ["x", "y"], 2, left=True), Column("C", ["333", "4"], 1)]


@pytest.mark.parametrize(
    ("width", "titles"), [(None, "A NAME C"), (13, "A NAME C"), (12, "A C"), (7, "A C"), (6, "A"), (1, "A")]
)
def test_columns_give_way(width, titles):
    """Those of the highest rank first; one is always left."""
    assert [column.title for column in fitting(COLUMNS, width)] == titles.split()


def test_lines():
    """Titles and cells stand under each other, and no line ends in blanks."""
    assert [line.plain for line in lines(COLUMNS[:2], ["", "red"])] == [" A  NAME", " 1  x", "22  y"]
