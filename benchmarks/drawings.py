"""The results of the benchmarks as plots, readable on white and on black, the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes  # noqa: TC002 - plain imports are simpler than a second block of them
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from results import Spread
from tables import PERCENTILES, costs, over

# Of a middle lightness: each has a contrast of at least 3 to white and to GitHub's black (WCAG 2, 1.4.11).
TEXT, FAINT = "#737d88", "#8c959f"
OURS, C, OTHERS = "#2a7de1", "#b86a1c", "#79838e"
SHADES = (FAINT, C, OURS)

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: smaller, and can be found
    "svg.hashsalt": "aiolb",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 9,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "legend.frameon": False,
    "legend.labelcolor": TEXT,
}
GRID: dict[str, Any] = {"color": FAINT, "alpha": 0.25, "linewidth": 0.6}
WIDTH = 8.6
ECHO_COLORS = {"uvloop callback": OTHERS, "aiolb handle": OURS, "aiolb plain handle": "#8250df"}
ECHO_MARKS = {"uvloop callback": "s", "aiolb handle": "o", "aiolb plain handle": "D"}
GROUP_MARKS = ("o", "s", "D", "^")


def write(name: str, content: dict[str, Any], path: Path) -> None:
    """Draw one plot as SVG; ends in .png draws a picture instead."""
    with mpl.rc_context(STYLE):
        figure = DRAWINGS[name](content)
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else None
        figure.savefig(path, transparent=True, metadata=metadata, dpi=120)
    if path.suffix == ".svg":  # matplotlib leaves blanks at the ends of lines
        path.write_text("".join(f"{line.rstrip()}\n" for line in path.read_text().splitlines()))


def color_of(name: str) -> str:
    """The colour of a receiver or sender."""
    return OURS if name.startswith("aiolb") else C if name.split(maxsplit=1)[0].rstrip(",") == "C" else OTHERS


def receive(content: dict[str, Any]) -> Figure:
    """A panel for trains and one for single datagrams, a dot for each receiver."""
    trains, single = content["backlog"]["16"], content["backlog"]["1"]
    names = sorted(trains, key=lambda name: Spread.of(costs(trains[name])).median, reverse=True)
    figure, panels = rows_figure(len(names), 2)
    for panel, runs, title in zip(panels, (trains, single), ("trains of 16", "single datagrams"), strict=True):
        dots(panel, {name: Spread.of(costs(runs[name])) for name in names})
        panel.set_title(title)
        panel.set_xlabel("CPU µs per datagram, from a full queue (logarithmic)")
    label_rows(panels[0], names)
    return figure


def send(content: dict[str, Any]) -> Figure:
    """A panel for each kind of receiver, a dot for each sender."""
    sinks = content["microseconds"]
    whole = sinks["trains"]
    names = sorted(whole, key=lambda name: Spread.of(whole[name]).median, reverse=True)
    figure, panels = rows_figure(len(names), 2)
    titles = ("to a receiver that takes trains whole", "into a full queue")
    for panel, runs, title in zip(panels, (whole, sinks["full"]), titles, strict=True):
        dots(panel, {sender_name(name): Spread.of(runs[name]) for name in names})
        panel.set_title(title)
        panel.set_xlabel("CPU µs per datagram (logarithmic)")
    label_rows(panels[0], [sender_name(name) for name in names])
    return figure


def sender_name(name: str) -> str:
    """What stands beside the row of a sender."""
    kind, _, sender = name.partition(": ")
    return sender if kind == "no trains" else f"{sender}, {kind}"


def echo(content: dict[str, Any]) -> Figure:
    """A panel for each rate: round trips by percentile."""
    rates = content["rates"]
    figure = padded(3.4)
    panels = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for panel, (rate, servers) in zip(panels, rates.items(), strict=True):
        for name, runs in servers.items():
            found = [Spread.of(run[percentile] for run in runs) for percentile in PERCENTILES]
            color, mark = ECHO_COLORS.get(name, C), ECHO_MARKS.get(name, "^")
            medians = [spread.median for spread in found]
            panel.plot(PERCENTILES, medians, color=color, marker=mark, markersize=4, linewidth=1.4, label=name)
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(FuncFormatter(microseconds))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(axis="y", **GRID)
        panel.set_title(f"{int(rate):,} per second")
    panels[0].set_ylabel("round trip (logarithmic)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def microseconds(value: float, _position: int | None = None) -> str:
    """A time on an axis."""
    return f"{value:g} µs" if value < 1e3 else f"{value / 1e3:g} ms"  # noqa: PLR2004 - the prefix


def steering(content: dict[str, Any]) -> Figure:
    """A bar for each load: what the helpers take, and what the balancer of the first group adds; marks for others."""
    runs = content["nanoseconds_per_packet"]
    loads = list(runs[content["baseline"]])
    groups = [name for name in runs if name.startswith("balancer")]
    load_name, floor = list(runs)[1], content["floor"]
    figure = padded(3.6)
    axes = figure.subplots()
    places = range(len(loads))
    bottom = [0.0] * len(loads)
    for name, color, label in (
        (load_name, SHADES[0], "the helper that loads the source"),
        (floor, SHADES[1], "the helper that selects a socket"),
        (groups[0], SHADES[2], f"hash, slots and counters ({groups[0].partition(', ')[2]})"),
    ):
        tops = [over(content, name, load).median for load in loads]
        heights = [top - low for top, low in zip(tops, bottom, strict=True)]
        axes.bar(places, heights, bottom=bottom, color=color, width=0.5, label=label)
        bottom = tops
    for mark, name in zip(GROUP_MARKS, groups[1:], strict=False):
        tops = [over(content, name, load).median for load in loads]
        label = f"all of it with {name.partition(', ')[2]}"
        beside = [place + 0.34 for place in places]
        axes.plot(beside, tops, mark, color=TEXT, markerfacecolor="none", markersize=5, label=label)
    axes.set_xticks(places, loads)
    axes.set_xlabel("sources (flood: 1,000,000; cold: from Python, with the program out of the caches)")
    axes.set_ylabel("ns per packet over an empty program")
    axes.grid(axis="y", **GRID)
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper")
    return figure


def rows_figure(rows: int, columns: int) -> tuple[Figure, Sequence[Axes]]:
    """A figure with panels side by side that share their rows."""
    figure = padded(0.9 + 0.24 * rows)
    return figure, figure.subplots(1, columns, sharey=True)


def padded(height: float) -> Figure:
    """An empty figure; inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(h_pad=0.08, w_pad=0.08)
    return figure


def dots(axes: Axes, found: dict[str, Spread]) -> None:
    """A dot for each median on a logarithmic axis, with its number and a bar from the lowest to the highest."""
    low, high = min(s.low for s in found.values()), max(s.high for s in found.values())
    left, right = low / 1.6, high * 3.2
    for row, (name, spread) in enumerate(found.items()):
        color = color_of(name)
        axes.plot([left, spread.median], [row, row], color=color, alpha=0.3, linewidth=1)
        axes.plot([spread.low, spread.high], [row, row], color=color, linewidth=3, solid_capstyle="round", alpha=0.6)
        axes.plot([spread.median], [row], "o", color=color, markersize=6)
        text, weight = short(spread.median), "bold" if color == OURS else "normal"
        place: dict[str, Any] = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(text, (spread.high, row), color=color, weight=weight, **place)
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", **GRID)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def short(number: float) -> str:
    """A number with two figures at least."""
    return f"{number:.{3 if number < 0.1 else 2 if number < 10 else 1}f}"  # noqa: PLR2004 - their places


def label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names beside the rows; ours in its colour."""
    axes.set_yticks(range(len(names)), names)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_color(color_of(name))
        label.set_fontweight("bold" if name.startswith("aiolb") else "normal")


DRAWINGS: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "receive": receive,
    "send": send,
    "echo": echo,
    "steering": steering,
}
"""By the benchmark whose results they show."""
