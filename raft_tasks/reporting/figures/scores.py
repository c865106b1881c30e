"""Panels about scores: the frontier, retention, changes, the paper's ablation, sweeps."""

from collections.abc import Mapping, Sequence

from raft_tasks.reporting.figures.panel import (
    BLUE,
    COLOURS,
    DASHED,
    INK,
    MARKERS,
    Styles,
    error_bars,
    open_panel,
    row_name,
)  # fmt: skip
from raft_tasks.reporting.metrics import DomainMetrics, FrontierPoint, MethodMetrics, PerSeed
from raft_tasks.reporting.paper import AblationRow
from raft_tasks.reporting.study import BASE
from raft_tasks.reporting.sweeps import SweptScore
from raft_tasks.reporting.wording import label

FRONTIER_SIZE = (5.0, 3.9)  # inches


def frontier(points: Sequence[FrontierPoint], per_seed: Mapping[str, Sequence[PerSeed]], styles: Styles) -> str:
    """Domain accuracy against the general score: one mark per model with its intervals, and the Pareto line.

    Args:
        points: as `frontier_points` gives them; a sweep's points are hollow, without intervals, and joined where method
            and `line` agree.
        per_seed: a method's scores under every seed, drawn as small marks; of some methods or none.
    """
    with open_panel("Domain accuracy and general score", legend=True, size=FRONTIER_SIZE) as panel:
        axes = panel.axes
        for method, seeds in per_seed.items():
            if len(seeds) > 1:
                colour, marker = styles[method]
                x, y = ([100 * seed[axis] for seed in seeds] for axis in ("general", "domain_acc"))
                axes.plot(x, y, marker, color=colour, markersize=3.5, alpha=0.55, linestyle="none", zorder=2)
        for method, line in dict.fromkeys((point["method"], point["line"]) for point in points if point["setting"]):
            colour, marker = styles[method]
            x, y = _coordinates([point for point in points if (point["method"], point["line"]) == (method, line)])
            axes.plot(x, y, marker, color=colour, markerfacecolor="white", markersize=5, linestyle=":", linewidth=1)
        for point in (point for point in points if not point["setting"]):
            colour, marker = styles[point["method"]]
            general, domain = point["general"], point["domain_acc"]
            axes.errorbar(
                100 * general["estimate"], 100 * domain["estimate"], xerr=error_bars(general), yerr=error_bars(domain),
                fmt=marker, color=colour, markersize=10 if point["method"] == BASE else 7, markeredgecolor="white",
                elinewidth=1.4, label=label(point["method"]), zorder=3,
            )  # fmt: skip
        best = sorted((point for point in points if point["best"]), key=lambda point: point["general"]["estimate"])
        x, y = _coordinates(best)
        axes.step(x, y, where="pre", color=INK, linewidth=0.9, linestyle=DASHED, zorder=1, label="Pareto line")
        axes.set_xlabel("general score (%)")
        axes.set_ylabel("domain accuracy (%)")
    return panel.svg


def _coordinates(points: Sequence[FrontierPoint]) -> tuple[list[float], list[float]]:
    """(general, domain) in percent."""
    return tuple([100 * point[axis]["estimate"] for point in points] for axis in ("general", "domain_acc"))  # type: ignore[return-value]


def retention(
    methods: Mapping[str, MethodMetrics], styles: Styles, paper_retention: Mapping[str, Sequence[float]]
) -> str:
    """Forgetting: general score after training in percent of the base's, as bars; the paper's as marks.

    Args:
        paper_retention: by method, in percent: [MS-Bench, IFEval].
    """
    rows = [(name, row["retention"]["general"]) for name, row in methods.items() if name != BASE]
    with open_panel("Retention of the general score", legend=True, names=True) as panel:
        axes = panel.axes
        axes.axvline(100, color=INK, linewidth=1)
        for position, (name, share) in enumerate(rows):
            if share is not None:
                colour = styles[name][0]
                axes.barh(position, 100 * share["estimate"], 0.62, color=colour, alpha=0.35)
                axes.errorbar(
                    100 * share["estimate"], position, xerr=error_bars(share), color=colour, elinewidth=2, fmt="none"
                )
            marks = zip(paper_retention.get(name, []), (("D", "MS-Bench"), ("s", "IFEval")), strict=False)
            for value, (marker, benchmark) in marks:
                axes.plot(
                    value, position, marker, color="white", markeredgecolor=INK, markersize=5, linestyle="none",
                    label=f"paper: {benchmark}",
                )  # fmt: skip
        panel.name_rows([row_name(name) for name, _ in rows], 0.4, 0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("percent of the base's score")
    return panel.svg


def changes(domain: DomainMetrics, reference: str, styles: Styles, measure: str, title: str) -> str:
    """Each method's paired difference to the reference with its interval, and a line at no difference."""
    rows = [(name, row["against_reference"][measure]) for name, row in domain["methods"].items() if name != reference]
    with open_panel(f"{title}: change against {label(reference)}", names=True) as panel:
        panel.axes.axvline(0, color=INK, linewidth=1)
        for position, (name, change) in enumerate(rows):
            colour, marker = styles[name]
            panel.axes.errorbar(
                100 * change["estimate"], position, xerr=error_bars(change), fmt=marker, color=colour, markersize=7,
                elinewidth=2,
            )  # fmt: skip
        panel.name_rows([row_name(name) for name, _ in rows])
        panel.axes.set_xlabel("points")
    return panel.svg


def ablation(rows: Sequence[AblationRow], measure: str, steps: Sequence[str], title: str) -> str:
    """One measure of the paper along SFT -> fused SFT -> RAFT: ours with intervals, the paper's domains in grey."""
    with open_panel(title, legend=True) as panel:
        for row, line in zip((row for row in rows if row.paper), ("-", "--", ":"), strict=False):
            scores = row.cells[measure]
            panel.axes.plot(range(len(scores)), scores, color="#8a93a0", linestyle=line, label=f"paper: {row.domain}")
        for i, row in enumerate(row for row in rows if not row.paper):
            scores = [(position, score) for position, score in enumerate(row.cells[measure]) if score]
            style = COLOURS[(4 + i) % len(COLOURS)], MARKERS[i % len(MARKERS)]
            panel.axes.plot(
                [position for position, _ in scores], [100 * score["estimate"] for _, score in scores],
                color=style[0], label=row.domain,
            )  # fmt: skip
            for position, score in scores:
                panel.mark(position, score, style)
        panel.name_columns([label(step) for step in steps])
    return panel.svg


def sweep(scores: Sequence[SweptScore], title: str) -> str:
    """Domain accuracy and general score, with intervals, at every value of one setting of one method."""
    values = sorted({score.value for score in scores}, key=_as_number)
    with open_panel(title, legend=True) as panel:
        for measure, name, style in (
            ("domain_acc", "domain accuracy", (BLUE, "o")),
            ("general", "general score", (COLOURS[0], "s")),
        ):
            points = [(values.index(score.value), score) for score in scores if score.measure == measure]
            points.sort(key=lambda point: point[0])
            panel.axes.plot(
                [position for position, _ in points], [100 * score.estimate for _, score in points], color=style[0],
                linewidth=1.2, label=name if points else None,
            )  # fmt: skip
            for position, score in points:
                panel.mark(position, {"estimate": score.estimate, "low": score.low, "high": score.high}, style)
        panel.name_columns(values)
        panel.axes.set_xlim(-0.4, len(values) - 0.6)
    return panel.svg


def _as_number(value: str) -> tuple[bool, float, str]:
    """Numbers by size, words after them."""
    try:
        return (False, float(value), "")
    except ValueError:
        return (True, 0.0, value)
