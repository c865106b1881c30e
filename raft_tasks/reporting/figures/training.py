"""Panels about training: loss curves and how far the weights moved."""

import numpy as np
from numpy.typing import NDArray

from raft_tasks.reporting.figures.panel import DASHED, INK, Styles, open_panel, row_name
from raft_tasks.reporting.metrics import DomainMetrics
from raft_tasks.reporting.study import BASE, DomainStudy
from raft_tasks.reporting.wording import label

Floats = NDArray[np.float64]

AXIS_RANGE = 50  # a logarithmic axis ends at this multiple, and fraction, of its marked level
PATHS_SIZE = (5.0, 3.9)  # inches
LINEAR_KL = 0.01  # nats per token; the axis is linear below it and logarithmic above
SMOOTHING_STEPS = 5  # of the centred moving average


def curves(domain: DomainStudy, styles: Styles, column: str, title: str, level: float | None = None) -> str:
    """A column of steps.csv over the optimiser steps: the mean over seeds, smoothed, within the seeds' range.

    Args:
        level: a value to mark with a line; the axis is then logarithmic around it.
    """
    with open_panel(title, legend=True) as panel:
        axes = panel.axes
        for method, runs in domain.runs.items():
            columns = [run.steps.get(column, []) for run in runs]
            length = min(map(len, columns))
            values = np.array([row[:length] for row in columns], dtype=np.float64)  # [S, steps]; None becomes NaN
            if np.isnan(values).all():
                continue
            smooth = np.stack([_smoothed(row) for row in values])
            steps = np.arange(1, length + 1)
            colour = styles[method][0]
            axes.fill_between(steps, smooth.min(axis=0), smooth.max(axis=0), color=colour, alpha=0.18, linewidth=0)
            axes.plot(steps, smooth.mean(axis=0), color=colour, linewidth=1.6, label=label(method))
        if level is None:
            axes.set_ylim(bottom=0)
        else:
            from matplotlib.ticker import LogLocator, NullFormatter

            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.set_ylim(min(max(low, level / AXIS_RANGE), level / 2), max(min(high, level * AXIS_RANGE), level * 2))
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.axhline(level, color=INK, linewidth=0.9, linestyle=DASHED)
        axes.set_xlabel("optimiser step")
    return panel.svg


def has_column(domain: DomainStudy, column: str) -> bool:
    """Whether any run has values in this column of steps.csv."""
    return any(
        value is not None for runs in domain.runs.values() for run in runs for value in run.steps.get(column, [])
    )


def paths(domain: DomainStudy, styles: Styles) -> str:
    """Every training's way through domain and forgetting: its curve.csv, a mark per measurement, from the base on.

    Right and up is better. The large mark is the checkpoint that is the model.
    """
    with open_panel("Paths of the trainings", legend=True, size=PATHS_SIZE) as panel:
        axes = panel.axes
        curves = [(method, run) for method, runs in domain.runs.items() for run in runs if run.curve]
        accuracy = all("domain_accuracy" in run.curve for _, run in curves)
        for method, run in curves:
            colour, marker = styles[method]
            columns = [values for name, values in run.curve.items() if name.startswith("kl_")]
            forgotten = np.array(columns, dtype=np.float64).max(axis=0)  # [points]
            learned = np.array(run.curve["domain_accuracy" if accuracy else "domain_loss"], dtype=np.float64)
            learned = 100 * learned if accuracy else learned
            axes.plot(forgotten, learned, ".-", color=colour, linewidth=1.1, markersize=4, alpha=0.7)
            kept = run.curve["step"].index(run.summary["curve"]["step"])
            axes.plot(
                forgotten[kept], learned[kept], marker, color=colour, markersize=7, markeredgecolor="white",
                linestyle="none", label=label(method), zorder=3,
            )  # fmt: skip
        axes.set_xscale("symlog", linthresh=LINEAR_KL)
        axes.invert_xaxis()
        axes.set_xlabel("KL to the base on held-out anchors (nats per token)")
        axes.set_ylabel("domain accuracy (%), validation" if accuracy else "loss of the references, validation")
        if not accuracy:
            axes.invert_yaxis()
    return panel.svg


def distances(domain: DomainMetrics, styles: Styles) -> str:
    """Relative l2 distance of the weights to the base: the mean as a bar, every seed as a mark."""
    rows = [(name, row["training"]) for name, row in domain["methods"].items() if "training" in row]
    with open_panel("How far the weights moved", names=True) as panel:
        for position, (name, training) in enumerate(rows):
            colour, marker = styles[name]
            panel.axes.barh(position, training["relative_l2"], 0.62, color=colour, alpha=0.35)
            seeds = training["relative_l2_per_seed"]
            panel.axes.plot(seeds, [position] * len(seeds), marker, color=colour, markersize=5, linestyle="none")
        panel.name_rows([row_name(name) for name, _ in rows], 0.4, 0.6)
        panel.axes.locator_params(axis="x", nbins=5)
        panel.axes.set_xlabel("relative l2 distance to the base")
    return panel.svg


def distances_by(domain: DomainMetrics, styles: Styles, group: str, title: str) -> str:
    """Relative l2 distance to the base of each "layers" or "matrices" of the weights; the mean over seeds."""
    rows = [(name, row["analysis"]["distance"][group]) for name, row in domain["methods"].items() if name != BASE]
    with open_panel(title, legend=True) as panel:
        members = list(rows[0][1])
        for name, moved in rows:
            colour, marker = styles[name]
            panel.axes.plot(
                range(len(members)), list(moved.values()), f"{marker}-", color=colour, markersize=4, label=label(name)
            )
        step = -(-len(members) // 12)
        panel.axes.set_xticks(range(0, len(members), step), [member[:12] for member in members[::step]])
        if max(map(len, members)) > 3:
            panel.axes.tick_params(axis="x", rotation=20, labelsize=8)
        panel.axes.set_ylim(bottom=0)
        panel.axes.grid(axis="x", visible=False)
    return panel.svg


def _smoothed(values: Floats) -> Floats:
    """Centred moving average over the finite values; the window shrinks at both ends and over gaps (NaN)."""
    window = np.ones(min(SMOOTHING_STEPS, len(values)))
    finite = np.isfinite(values)
    sums = np.convolve(np.where(finite, values, 0.0), window, "same")
    counts = np.convolve(finite.astype(np.float64), window, "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
