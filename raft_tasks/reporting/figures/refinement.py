"""Panels about data refinement: similarities, answer lengths, judges."""

import numpy as np

from raft_tasks.reporting.figures.panel import BLUE, DASHED, FAINT, GREY, INK, open_panel
from raft_tasks.reporting.metrics import Refinement


def similarities(refinement: Refinement) -> str:
    """Histogram of the similarity of rewrites to their references, with the filter's threshold."""
    edges, counts, tau = np.array(refinement["similarity_edges"]), refinement["similarity_counts"], refinement["tau"]
    with open_panel("Similarity of rewrite and reference") as panel:
        axes = panel.axes
        passes = edges[:-1] >= tau - 1e-9
        axes.bar(edges[:-1], counts, np.diff(edges) * 0.92, align="edge", color=np.where(passes, BLUE, GREY).tolist())
        axes.set_ylim(0, 1.15 * max(1, *counts))  # room for the threshold's name
        axes.axvline(tau, color=INK, linewidth=1.4, linestyle=DASHED)
        axes.annotate(
            f"threshold {tau:g}", (tau, 1), (-5, -4), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="right", va="top",
        )  # fmt: skip
        axes.set_xlabel("cosine similarity")
        axes.set_ylabel("training rows")
        axes.grid(axis="x", visible=False)
    return panel.svg


def lengths(refinement: Refinement) -> str:
    """Words per answer, of the references and of the training targets."""
    edges, counts = np.array(refinement["lengths"]["edges"]), refinement["lengths"]["counts"]
    with open_panel("Words per answer", legend=True) as panel:
        panel.axes.stairs(counts["reference"], edges, fill=True, color=GREY, label="reference")
        panel.axes.stairs(counts["target"], edges, color=BLUE, linewidth=1.8, label="target")
        panel.axes.set_ylim(0, 1.1 * max(1, *counts["reference"], *counts["target"]))
        panel.axes.set_xlabel("words")
        panel.axes.set_ylabel("training rows")
        panel.axes.grid(axis="x", visible=False)
    return panel.svg


def judges(refinement: Refinement) -> str:
    """Every judge's mean score, of the rewrites and of the candidates that were selected."""
    rows = {name: judge for name, judge in refinement["judges"].items() if judge["chosen"] is not None}
    with open_panel("Mean score by judge", legend=True, names=True) as panel:
        for position, judge in enumerate(rows.values()):
            ends = np.array([judge["rewrites"], judge["chosen"]], dtype=np.float64)
            panel.axes.plot(ends, [position] * 2, color=FAINT, linewidth=4, zorder=1)
        rewrites = np.array([judge["rewrites"] for judge in rows.values()], dtype=np.float64)
        chosen = np.array([judge["chosen"] for judge in rows.values()], dtype=np.float64)
        panel.axes.scatter(rewrites, range(len(rows)), color="white", edgecolor=INK, label="rewrites", zorder=2)
        panel.axes.scatter(chosen, range(len(rows)), color=BLUE, label="selected answers", zorder=3)
        panel.name_rows(list(rows))
        panel.axes.set_xlim(-0.03, 1.03)
        panel.axes.set_xlabel("mean score")
    return panel.svg
