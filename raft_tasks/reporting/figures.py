"""The report's figures: matplotlib to inline SVG, one panel each, so that a page can set them in columns or a row.

A method has the same colour (Okabe and Ito's, told apart by colour-blind readers too) and the same marker everywhere.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raft_tasks.config import Config
from raft_tasks.reporting.study import BASE, DomainStudy
from raft_tasks.reporting.sweeps import SweptScore
from raft_tasks.reporting.tables import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

INK = "#1b2330"
FAINT = "#c9ced6"
REJECTED = "#b9c0ca"
COLOURS = ("#D55E00", "#E69F00", "#CC79A7", "#009E73", "#0072B2", "#56B4E9", "#7A5195")
MARKERS = "os^DvPX"
BASE_STYLE = ("#444b57", "*")
WIDE = (5.0, 3.9)  # of the first figure, in inches
SIZE = (4.6, 3.3)  # of the others; scaled to a phone's width the smallest text stays above 7 points
LEGEND_COLUMNS = 3
LINE = 0.2  # inches of a line of text
NAME_CHARACTERS = 11  # of a line of a name on the left
FARTHEST = 50  # times the marked level: what is beyond is off the chart, so that the rest can be read
SMOOTHED = 5  # steps of the centred moving average in the curves


def styles(config: Config) -> dict[str, tuple[str, str]]:
    """Colour and marker of the base and of every method, by its place in params.yaml's table.

    Of two methods of the run whose places give one colour, the later one takes a colour that no other needs.
    """
    found = {
        name: (COLOURS[place % len(COLOURS)], MARKERS[(place + place // len(COLOURS)) % len(MARKERS)])
        for place, name in enumerate(config.methods)
    }
    free = [colour for colour in COLOURS if colour not in {found[name][0] for name in config.run.methods}]
    seen: set[str] = set()
    for name in config.run.methods:
        colour, marker = found[name]
        if colour in seen and free:
            found[name] = (free.pop(), marker)
        seen.add(found[name][0])
    return {BASE: BASE_STYLE} | found


def styles_of(names: list[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of the base and of any models, in turn."""
    return {BASE: BASE_STYLE} | {
        name: (COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]) for place, name in enumerate(names)
    }


def frontier(points: list[dict[str, Any]], seeds: dict[str, Any], style: dict[str, tuple[str, str]]) -> str:
    """Domain accuracy against the general average: a mark per model, with its intervals, and the Pareto line.

    Args:
        points: as `frontier_points` gives them; those of a sweep are hollow, without intervals, joined where method and
            `line` agree.
        seeds: {method: its scores under every seed}, drawn as small marks; of some methods or none.
    """
    with _panel("Domain accuracy and general score", legend=True, size=WIDE) as (axes, svg):
        for method, each in seeds.items():
            if len(each) > 1:
                colour, marker = style[method]
                x, y = ([100 * seed[name] for seed in each] for name in ("general", "domain_acc"))
                axes.plot(x, y, marker, color=colour, markersize=3.5, alpha=0.55, linestyle="none", zorder=2)
        for method, line in dict.fromkeys((point["method"], point["line"]) for point in points if point["setting"]):
            colour, marker = style[method]
            x, y = _places([point for point in points if (point["method"], point["line"]) == (method, line)])
            axes.plot(x, y, marker, color=colour, markerfacecolor="white", markersize=5, linestyle=":", linewidth=1)
        for point in (point for point in points if not point["setting"]):
            colour, marker = style[point["method"]]
            across, up = point["general"], point["domain_acc"]
            axes.errorbar(
                100 * across["estimate"],
                100 * up["estimate"],
                xerr=_bars(across),
                yerr=_bars(up),
                fmt=marker,
                color=colour,
                markersize=10 if point["method"] == BASE else 7,
                markeredgecolor="white",
                elinewidth=1.4,
                label=label(point["method"]),
                zorder=3,
            )
        best = sorted((point for point in points if point["best"]), key=lambda point: point["general"]["estimate"])
        x, y = _places(best)
        axes.step(x, y, where="pre", color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1, label="Pareto line")
        axes.set_xlabel("general score (%)")
        axes.set_ylabel("domain accuracy (%)")
        _outside_legend(axes)
    return svg[0]


def _places(points: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """(general, domain) in percent."""
    return [100 * one["general"]["estimate"] for one in points], [100 * one["domain_acc"]["estimate"] for one in points]


def kept(overall: dict[str, Any], style: dict[str, tuple[str, str]], printed: dict[str, list[float]]) -> str:
    """Forgetting: what every method kept of the base's general score, as bars, with the paper's two measures as marks.

    Args:
        printed: the paper's retention by method, in percent: [MS-Bench, IFEval].
    """
    rows = [(name, found["retention"]["general"]) for name, found in overall["methods"].items() if name != BASE]
    with _panel("What is left of the general score", legend=True, names=True) as (axes, svg):
        axes.axvline(100, color=INK, linewidth=1)
        marks = (("D", "paper: MS-Bench"), ("s", "paper: IFEval"))
        for place, (name, share) in enumerate(rows):
            if share is not None:
                colour = style[name][0]
                axes.barh(place, 100 * share["estimate"], 0.62, color=colour, alpha=0.35)
                axes.errorbar(100 * share["estimate"], place, xerr=_bars(share), color=colour, elinewidth=2, fmt="none")
            for value, (marker, said) in zip(printed.get(name, []), marks, strict=False):
                axes.plot(
                    value, place, marker, color="white", markeredgecolor=INK, markersize=5, linestyle="none", label=said
                )
        axes.set_yticks(range(len(rows)), [_short(name) for name, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("percent of the base's score")
        axes.grid(axis="y", visible=False)
        _outside_legend(axes)
    return svg[0]


def ablation(rows: list[dict[str, Any]], measure: str, steps: list[str], title: str) -> str:
    """One measure of the paper along raw SFT -> fused SFT -> RAFT: ours with intervals, the paper's domains in grey."""
    with _panel(title, legend=True) as (axes, svg):
        places = list(range(len(steps)))
        for row, line in zip((row for row in rows if row["whose"] == "paper"), ("-", "--", ":"), strict=False):
            axes.plot(places, row["cells"][measure], color="#8a93a0", linestyle=line, label=f"paper: {row['domain']}")
        for number, row in enumerate(row for row in rows if row["whose"] == "ours"):
            there = [(place, own) for place, own in zip(places, row["cells"][measure], strict=True) if own]
            colour = COLOURS[(4 + number) % len(COLOURS)]
            x, y = [place for place, _ in there], [100 * own["estimate"] for _, own in there]
            axes.plot(x, y, MARKERS[number % len(MARKERS)] + "-", color=colour, label=row["domain"], markersize=6)
            for place, own in there:
                axes.errorbar(place, 100 * own["estimate"], yerr=_bars(own), color=colour, fmt="none")
        axes.set_xticks(places, [label(step) for step in steps])
        axes.set_ylim(0, 103)
        axes.set_ylabel("percent")
        axes.grid(axis="x", visible=False)
        _outside_legend(axes)
    return svg[0]


def sweep(scores: list[SweptScore], title: str) -> str:
    """Domain accuracy and general score, with intervals, at every value of one setting of one method."""
    values = sorted({score.value for score in scores}, key=_as_number)
    with _panel(title, legend=True) as (axes, svg):
        for measure, name, colour, marker in (
            ("domain_acc", "domain accuracy", COLOURS[4], "o"),
            ("general", "general score", COLOURS[0], "s"),
        ):
            own = sorted((one for one in scores if one.measure == measure), key=lambda one: _as_number(one.value))
            if not own:
                continue
            x = [values.index(one.value) for one in own]
            axes.plot(x, [100 * one.estimate for one in own], "-", color=colour, linewidth=1.2)
            for place, one in zip(x, own, strict=True):
                bars = _bars({"estimate": one.estimate, "low": one.low, "high": one.high})
                axes.errorbar(
                    place, 100 * one.estimate, yerr=bars, fmt=marker, color=colour, markersize=6, elinewidth=1.4,
                    label=name if place == x[0] else None,
                )  # fmt: skip
        axes.set_xticks(range(len(values)), values)
        axes.set_xlim(-0.4, len(values) - 0.6)
        axes.set_ylim(0, 103)
        axes.set_ylabel("percent")
        axes.grid(axis="x", visible=False)
        _outside_legend(axes)
    return svg[0]


def _short(method: str) -> str:
    """A method's name as it fits on the left of a panel."""
    return "\n".join(textwrap.wrap(label(method), NAME_CHARACTERS))


def _as_number(value: str) -> tuple[bool, float, str]:
    """Numbers by size, words after them."""
    try:
        return (False, float(value), "")
    except ValueError:
        return (True, 0.0, value)


def changes(domain: dict[str, Any], reference: str, style: dict[str, tuple[str, str]], measure: str, title: str) -> str:
    """Each method's paired difference to the reference with its interval, and the line of no difference."""
    rows = [
        (name, found["against_reference"][measure]) for name, found in domain["methods"].items() if name != reference
    ]
    with _panel(f"{title}: change against {label(reference)}", names=True) as (axes, svg):
        axes.axvline(0, color=INK, linewidth=1)
        for place, (name, change) in enumerate(rows):
            colour, marker = style[name]
            axes.errorbar(
                100 * change["estimate"],
                place,
                xerr=_bars(change),
                fmt=marker,
                color=colour,
                markersize=7,
                elinewidth=2,
            )
        axes.set_yticks(range(len(rows)), [_short(name) for name, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("points")
        axes.grid(axis="y", visible=False)
    return svg[0]


def curves(
    domain: DomainStudy, style: dict[str, tuple[str, str]], column: str, title: str, level: float | None = None
) -> str:
    """A column of steps.csv over the optimiser steps: the mean over seeds, smoothed, within the seeds' range.

    Args:
        level: a value to mark with a line; the axis is then logarithmic around it.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    with _panel(title, legend=True) as (axes, svg):
        for method, runs in domain.runs.items():
            columns = [run.steps.get(column, []) for run in runs]
            length = min(map(len, columns))
            values = np.array([row[:length] for row in columns], dtype=np.float64)  # [S, steps]; None becomes NaN
            if np.isnan(values).all():
                continue
            smooth = np.stack([_smoothed(row) for row in values])
            steps = np.arange(1, length + 1)
            colour = style[method][0]
            axes.fill_between(steps, smooth.min(axis=0), smooth.max(axis=0), color=colour, alpha=0.18, linewidth=0)
            axes.plot(steps, smooth.mean(axis=0), color=colour, linewidth=1.6, label=label(method))
        if level is not None:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.set_ylim(min(max(low, level / FARTHEST), level / 2), max(min(high, level * FARTHEST), level * 2))
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("optimiser step")
        _outside_legend(axes)
    return svg[0]


def has_column(domain: DomainStudy, column: str) -> bool:
    """Whether any run has values in this column of steps.csv."""
    return any(
        value is not None for runs in domain.runs.values() for run in runs for value in run.steps.get(column, [])
    )


def similarities(refinement: dict[str, Any]) -> str:
    """Histogram of the similarity of rewrites to their references, with the filter's threshold."""
    edges = np.array(refinement["similarity_edges"])
    counts = refinement["similarity_counts"]
    with _panel("Similarity of rewrite and reference") as (axes, svg):
        kept = edges[:-1] >= refinement["tau"] - 1e-9
        axes.bar(edges[:-1], counts, np.diff(edges) * 0.92, align="edge", color=np.where(kept, "#0072B2", REJECTED))
        axes.set_ylim(0, 1.15 * max(1, *counts))  # room for the threshold's name
        axes.axvline(refinement["tau"], color=INK, linewidth=1.4, linestyle=(0, (4, 3)))
        axes.annotate(
            f"threshold {refinement['tau']:g}", (refinement["tau"], 1), (-5, -4), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="right", va="top",
        )  # fmt: skip
        axes.set_xlabel("cosine similarity")
        axes.set_ylabel("training rows")
        axes.grid(axis="x", visible=False)
    return svg[0]


def lengths(refinement: dict[str, Any]) -> str:
    """How many words the reference answers have, and the learned ones."""
    edges, counts = np.array(refinement["lengths"]["edges"]), refinement["lengths"]["counts"]
    with _panel("Words of the answers", legend=True) as (axes, svg):
        axes.stairs(counts["reference"], edges, fill=True, color=REJECTED, label="reference")
        axes.stairs(counts["learned"], edges, color="#0072B2", linewidth=1.8, label="learned")
        axes.set_ylim(0, 1.1 * max(1, *counts["reference"], *counts["learned"]))
        axes.set_xlabel("words")
        axes.set_ylabel("training rows")
        axes.grid(axis="x", visible=False)
        _outside_legend(axes)
    return svg[0]


def judges(refinement: dict[str, Any]) -> str:
    """Every judge's mean score: of the rewrites as they came, and of the answers that were chosen."""
    rows = [(name, own) for name, own in refinement["judges"].items() if own["chosen"] is not None]
    with _panel("What the judges say", legend=True, names=True) as (axes, svg):
        for place, (_, own) in enumerate(rows):
            axes.plot([own["rewrites"], own["chosen"]], [place, place], color=FAINT, linewidth=4, zorder=1)
        places = list(range(len(rows)))
        axes.scatter([own["rewrites"] for _, own in rows], places, color="white", edgecolor=INK, label="rewrites")
        axes.scatter([own["chosen"] for _, own in rows], places, color="#0072B2", label="chosen answers", zorder=3)
        axes.set_yticks(places, [name for name, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("mean score")
        axes.grid(axis="y", visible=False)
        _outside_legend(axes)
    return svg[0]


def distances(domain: dict[str, Any], style: dict[str, tuple[str, str]]) -> str:
    """Relative l2 distance of the weights to the base: the mean as a bar, every seed as a mark."""
    rows = [(name, found["training"]) for name, found in domain["methods"].items() if "training" in found]
    with _panel("How far the weights moved", names=True) as (axes, svg):
        for place, (name, training) in enumerate(rows):
            colour, marker = style[name]
            axes.barh(place, training["relative_l2"], 0.62, color=colour, alpha=0.35)
            each = training["relative_l2_per_seed"]
            axes.plot(each, [place] * len(each), marker, color=colour, markersize=5, linestyle="none")
        axes.set_yticks(range(len(rows)), [_short(name) for name, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("relative l2 distance to the base")
        axes.grid(axis="y", visible=False)
    return svg[0]


def distances_by(domain: dict[str, Any], style: dict[str, tuple[str, str]], group: str, title: str) -> str:
    """Relative l2 distance to the base of every member of a group of weights, such as "layers"; the mean over seeds."""
    rows = [(name, found["analysis"]["distance"][group]) for name, found in domain["methods"].items() if name != BASE]
    with _panel(title, legend=True) as (axes, svg):
        members = list(rows[0][1])
        for name, moved in rows:
            colour, marker = style[name]
            axes.plot(
                range(len(members)), list(moved.values()), f"{marker}-", color=colour, markersize=4, label=label(name)
            )
        step = -(-len(members) // 12)
        axes.set_xticks(range(0, len(members), step), [member[:12] for member in members[::step]])
        if max(map(len, members)) > 3:
            axes.tick_params(axis="x", rotation=20, labelsize=8)
        axes.set_ylim(bottom=0)
        axes.grid(axis="x", visible=False)
        _outside_legend(axes)
    return svg[0]


def _smoothed(values: Floats) -> Floats:
    """Centred moving average of what is there; the window shrinks at both ends and over gaps (NaN)."""
    window = np.ones(min(SMOOTHED, len(values)))
    there = np.isfinite(values)
    sums = np.convolve(np.where(there, values, 0.0), window, "same")
    counts = np.convolve(there.astype(np.float64), window, "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _bars(estimate: dict[str, Any]) -> list[list[float]] | None:
    """An interval as matplotlib's distances below and above, in percent; none where there is no interval."""
    if estimate["low"] is None:
        return None
    middle = estimate["estimate"]
    return [[max(0.0, 100 * (middle - estimate["low"]))], [max(0.0, 100 * (estimate["high"] - middle))]]


def _outside_legend(axes: Axes) -> None:
    """Below the panel, where it hides nothing."""
    from matplotlib.container import ErrorbarContainer

    handles, labels = axes.get_legend_handles_labels()
    handles = [handle[0] if isinstance(handle, ErrorbarContainer) else handle for handle in handles]
    named = dict(zip(labels, handles, strict=True))  # one entry of each name
    if named:
        axes.legend(
            named.values(), named, loc="upper center", bbox_to_anchor=(0.46, -0.19), frameon=False,
            ncols=min(LEGEND_COLUMNS, len(named)), columnspacing=1.2, handletextpad=0.5,
        )  # fmt: skip


def _make_room(axes: Axes, names: bool) -> None:
    """Heighten the figure for more methods, on the left or in the legend, than its frame is made for."""
    figure, legend = axes.get_figure(root=True), axes.get_legend()
    if figure is None:
        raise ValueError("got axes without a figure")
    width, height = figure.get_size_inches()
    place = axes.get_position()
    entries = -(-len(legend.get_texts()) // LEGEND_COLUMNS) if legend else 0
    below = LINE * max(0, entries - 2)
    above = 2 * LINE * max(0, len(axes.get_yticks()) - 6) if names else 0.0
    total, own = height + below + above, place.height * height + above
    figure.set_size_inches(width, total)
    axes.set_position((place.x0, (place.y0 * height + below) / total, place.width, own / total))
    if legend:
        legend.set_bbox_to_anchor((0.46, -0.19 * place.height * height / own), transform=axes.transAxes)


@contextmanager
def _panel(
    title: str, legend: bool = False, names: bool = False, size: tuple[float, float] = SIZE
) -> Iterator[tuple[Axes, list[str]]]:
    """One panel in the report's style; on leaving, its SVG is the list's only element.

    Args:
        legend: leave room for one below.
        names: leave room for the methods' names on the left.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",  # text stays text: small, selectable, in the reader's own font
        "svg.hashsalt": "raft",  # equal figures have equal ids
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": "#e6e9ee",
        "grid.linewidth": 0.8,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.labelcolor": INK,
    }
    svg: list[str] = []
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, facecolor="white")
        # the same frame for every panel, so that all are scaled alike and stand in line
        left = 0.21 if names else 0.14
        axes = figure.add_axes((left, 0.3 if legend else 0.16, 0.97 - left, 0.6 if legend else 0.74))
        axes.set_title(title)
        yield axes, svg
        _make_room(axes, names)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg.append(_inline(out.getvalue(), title))


def within(svg: str, prefix: str) -> str:
    """The figure with `prefix` before its ids, so that a page can hold others like it."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    return re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", svg)


def _inline(document: str, title: str) -> str:
    """The <svg> element alone: named for readers that do not see it, ids of its own, width left to the page.

    Half of what matplotlib writes is left out: ids that nothing refers to, fonts (the page's are meant), and decimals.
    """
    svg = re.sub(r"<metadata>.*?</metadata>", "", document[document.index("<svg") :].strip(), flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r" font-family: [^;]*;", "", svg)
    svg = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    return within(svg, re.sub(r"\W+", "-", title.lower()).strip("-"))
