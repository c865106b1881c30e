"""A panel of the report: one matplotlib plot as inline SVG, with a colour and marker per method.

A method has the same colour (Okabe and Ito's palette, readable for the colour-blind) and marker in every panel.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raft_tasks.reporting.metrics import Interval
from raft_tasks.reporting.study import BASE
from raft_tasks.reporting.wording import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Styles = dict[str, tuple[str, str]]  # method -> colour, marker

STYLE_SHEET = Path(__file__).parent / "report.mplstyle"
INK = "#1b2330"
FAINT = "#c9ced6"
GREY = "#b9c0ca"
BLUE = "#0072B2"
COLOURS = ("#D55E00", "#E69F00", "#CC79A7", "#009E73", BLUE, "#56B4E9", "#7A5195")
MARKERS = "os^DvPX"
BASE_STYLE = ("#444b57", "*")
DASHED = (0, (4, 3))
SIZE = (4.6, 3.3)  # inches; scaled to a phone's width the smallest text stays above 7 points
LEGEND_CHARACTERS = 18  # of a name where the legend has three columns
LINE_HEIGHT = 0.2  # inches
NAME_WIDTH = 11  # characters of a line of a method's name left of the axis


def styles_of(methods: Sequence[str]) -> Styles:
    """Colour and marker of the base and of every method, in their order: the first seven have colours of their own."""
    return {BASE: BASE_STYLE} | {
        name: (COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)])
        for i, name in enumerate(dict.fromkeys(methods))
    }


@dataclass
class Panel:
    """An open plot; `svg` is set when the panel is closed."""

    axes: Axes
    svg: str = ""

    def mark(self, position: float, value: Interval, style: tuple[str, str]) -> None:
        """A vertical interval in percent at `position` of the x axis."""
        self.axes.errorbar(
            position, 100 * value["estimate"], yerr=error_bars(value), color=style[0], fmt=style[1], markersize=6,
            elinewidth=1.4,
        )  # fmt: skip

    def name_rows(self, names: Sequence[str], lower: float = 0.5, upper: float = 0.5) -> None:
        """One row per name, from the top; `lower` and `upper` are the margins in rows."""
        self.axes.set_yticks(range(len(names)), names)
        self.axes.set_ylim(len(names) - lower, -upper)
        self.axes.grid(axis="y", visible=False)

    def name_columns(self, names: Sequence[str]) -> None:
        """One column per name, for values in percent."""
        self.axes.set_xticks(range(len(names)), names)
        self.axes.set_ylim(0, 103)
        self.axes.set_ylabel("percent")
        self.axes.grid(axis="x", visible=False)


@contextmanager
def open_panel(
    title: str, legend: bool = False, names: bool = False, size: tuple[float, float] = SIZE
) -> Iterator[Panel]:
    """One plot in the report's style, turned into SVG at the end.

    Args:
        legend: draw one below the plot.
        names: leave room for method names left of the axis.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(fname=STYLE_SHEET):
        figure = Figure(figsize=size, facecolor="none")
        # the same frame for every panel, so that all are scaled alike and stand in line
        left = 0.21 if names else 0.14
        axes = figure.add_axes((left, 0.3 if legend else 0.16, 0.97 - left, 0.6 if legend else 0.74), facecolor="none")
        axes.set_title(title)
        panel = Panel(axes)
        yield panel
        if legend:
            _legend_below(axes)
        _make_room(axes, names)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    panel.svg = _inline(out.getvalue(), title)


def error_bars(value: Interval) -> list[list[float]] | None:
    """An interval as matplotlib's distances below and above the estimate, in percent; None without an interval."""
    if value["low"] is None or value["high"] is None:
        return None
    return [
        [max(0.0, 100 * (value["estimate"] - value["low"]))],
        [max(0.0, 100 * (value["high"] - value["estimate"]))],
    ]


def row_name(method: str) -> str:
    """A method's name, wrapped to fit left of a panel's axis."""
    return "\n".join(textwrap.wrap(label(method), NAME_WIDTH))


def _legend_below(axes: Axes) -> None:
    """Below the plot, where it hides nothing; one entry per name."""
    from matplotlib.container import ErrorbarContainer

    handles, labels = axes.get_legend_handles_labels()
    handles = [handle[0] if isinstance(handle, ErrorbarContainer) else handle for handle in handles]
    entries = dict(zip(labels, handles, strict=True))
    if entries:
        axes.legend(
            entries.values(), entries, loc="upper center", bbox_to_anchor=(0.46, -0.19), frameon=False,
            ncols=_columns(list(entries)), columnspacing=1.2, handletextpad=0.5,
        )  # fmt: skip


def _columns(names: Sequence[str]) -> int:
    """Three of the legend's, two where a name is long."""
    return min(3 if max(map(len, names)) <= LEGEND_CHARACTERS else 2, len(names))


def _make_room(axes: Axes, names: bool) -> None:
    """Make the figure higher where more than six rows, or more than two lines of legend, need it."""
    figure, legend = axes.get_figure(root=True), axes.get_legend()
    if figure is None:
        raise ValueError("got axes without a figure")
    width, height = figure.get_size_inches()
    box = axes.get_position()
    entries = [text.get_text() for text in legend.get_texts()] if legend else []
    lines = -(-len(entries) // _columns(entries)) if entries else 0
    below = LINE_HEIGHT * max(0, lines - 2)
    above = 2 * LINE_HEIGHT * max(0, len(axes.get_yticks()) - 6) if names else 0.0
    total, plot = height + below + above, box.height * height + above
    figure.set_size_inches(width, total)
    axes.set_position((box.x0, (box.y0 * height + below) / total, box.width, plot / total))
    if legend:
        legend.set_bbox_to_anchor((0.46, -0.19 * box.height * height / plot), transform=axes.transAxes)


def prefix_ids(svg: str, prefix: str) -> str:
    """The figure with `prefix` before its ids, so that several like it fit on a page."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    return re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", svg)


def _inline(document: str, title: str) -> str:
    """The <svg> element alone: labelled for screen readers, with ids of its own, as wide as the page lets it.

    Leaves out half of what matplotlib writes: unused ids, fonts (the page's are used), rotations by zero, decimals.
    scour would save 17 % more, at 0.2 s a panel; its last release is of 2020.
    """
    svg = re.sub(r"<metadata>.*?</metadata>", "", document[document.index("<svg") :].strip(), flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r' font-family: [^;]*;| transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    return prefix_ids(svg, re.sub(r"\W+", "-", title.lower()).strip("-"))
