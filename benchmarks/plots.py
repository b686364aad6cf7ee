"""Shows what the benchmarks found: plots in docs/, and the tables of docs/performance.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import goals
from results import console, read
from tables import TABLES, machine

DOCS = Path(__file__).parent.parent / "docs"
BENCHMARKS = tuple(TABLES)
_MARKED = "<!-- {name}: written by make bench -->\n{content}<!-- end of {name} -->"


@click.command()
@click.option(
    "--docs",
    type=click.Path(file_okay=False, path_type=Path),
    default=DOCS,
    help="Folder of performance.md and of the plots.",
)
@click.option("--plots/--no-plots", default=True, show_default=True, help="Draw, which needs matplotlib.")
def main(*, docs: Path, plots: bool) -> None:
    """Draw every plot and write every table whose benchmark has left its results."""
    contents = {name: content for name in BENCHMARKS if (content := read(name)) is not None}
    if plots:
        draw(contents, docs)
    page = docs / "performance.md"
    page.write_text(filled(page.read_text(), parts(contents)))
    for name in BENCHMARKS:
        console.print(f"{name}: {'shown' if name in contents else 'was not run, and stays as it was'}")


def draw(contents: dict[str, dict[str, Any]], docs: Path) -> None:
    """Draw what can be drawn."""
    import drawings

    for name in drawings.DRAWINGS.keys() & contents.keys():
        drawings.write(name, contents[name], docs / f"{name}.svg")


def parts(contents: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What is written between the markers, by their names."""
    found = {name: TABLES[name](content) for name, content in contents.items()}
    if contents:
        found["machine"] = machine(contents)
    for name in goals.JUDGES.keys() & contents.keys():
        found[f"goals of {name}"] = goals.markdown(name, contents[name])
    return found


def filled(page: str, contents: dict[str, str]) -> str:
    """The page with other contents between its markers. Raises ClickException where a marker is missing."""
    for name, content in contents.items():
        start, end = _MARKED.format(name=name, content="\0").split("\0")
        before, found, rest = page.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise click.ClickException(f"the page has no place for {name!r}")
        page = f"{before}{start}{content}{end}{after}"
    return page


if __name__ == "__main__":
    main()
