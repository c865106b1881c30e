"""How the step's time and memory grow with batch, length, vocabulary and K: a table, the exponents, a plot.

    python benchmarks/growth.py            # a small Llama on the CPU, about 8 minutes; writes growth.png

One axis is doubled at a time, the others stay. An exponent of 1 is growth in proportion; below 1, a part of the cost
does not grow (AdamW, the model's weights); above 1, attention. A cliff would show as a jump between neighbours: the
largest ratio of neighbouring points is printed beside the exponent. Every point is a child process.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import torch
from measuring import machine, table
from workload import Lengths, llama, make_model, make_pairs, settings, train_ours

DEFAULT = {"batch": 8, "length": 32, "vocabulary": 32_768, "k": 128}
AXES = {
    "batch": [4, 8, 16, 32],
    "length": [16, 32, 64, 128],  # tokens of the answer and of the rollout; the question has half as many
    "vocabulary": [16_384, 32_768, 65_536, 131_072],
    "k": [64, 128, 256, 512],
}


def point(values: dict[str, int], sizes: argparse.Namespace) -> dict[str, float]:
    """Seconds and peak MB of one step, in this process."""
    lengths = Lengths(values["length"] // 2, values["length"], values["length"])
    config = settings(values["k"], lengths, values["batch"], precision="float32")
    with tempfile.TemporaryDirectory() as work:
        architecture = llama(values["vocabulary"], sizes.hidden, sizes.layers)
        folder = make_model(architecture, Path(work) / "model", torch.float32, "cpu")
        done = train_ours(
            folder, "float32", config, make_pairs((sizes.steps + 1) * values["batch"], lengths), Path(work)
        )
    return {"seconds": statistics.median(step["seconds"] for step in done.steps), "MB": done.peak}


def exponent(xs: list[int], ys: list[float]) -> float:
    """Slope of log y over log x, least squares."""
    x, y = [math.log(value) for value in xs], [math.log(value) for value in ys]
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / sum((a - mean_x) ** 2 for a in x)


def steepest(xs: list[int], ys: list[float]) -> float:
    """The largest growth between neighbours, as an exponent."""
    points = pairwise(zip(xs, ys, strict=True))
    return max(math.log(after[1] / before[1]) / math.log(after[0] / before[0]) for before, after in points)


def plot(results: dict[str, list[dict[str, float]]], axes: dict[str, list[int]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, len(axes), figsize=(3 * len(axes), 5), sharey="row", squeeze=False)
    for column, (axis, xs) in enumerate(axes.items()):
        for row, what in enumerate(("seconds", "MB")):
            panel, ys = panels[row][column], [one[what] for one in results[axis]]
            panel.loglog(xs, ys, marker="o", base=2)
            panel.loglog(xs, [ys[0] * x / xs[0] for x in xs], linestyle=":", color="grey", base=2)
            panel.set_title(f"{axis}: exponent {exponent(xs, ys):.2f}", fontsize=9)
            if column == 0:
                panel.set_ylabel(f"{what} per step" if what == "seconds" else "peak MB")
        panels[1][column].set_xlabel(axis)
    figure.suptitle("One RAFT step; dotted: growth in proportion", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="measured, after one to warm up")
    parser.add_argument("--axis", choices=AXES, nargs="+", default=list(AXES))
    parser.add_argument("--points", type=int, default=4, help="of each axis, the first ones")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("growth.png"))
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    sizes = parser.parse_args(arguments)
    torch.set_num_threads(sizes.threads)
    if sizes.point:
        print(json.dumps(point(sizes.point, sizes)))
        return
    print(
        f"Llama, H {sizes.hidden}, {sizes.layers} layers, float32, {sizes.threads} thread(s), median of {sizes.steps} "
        f"steps; where not varied: {DEFAULT}; {machine('cpu')}\n"
    )
    given = sys.argv[1:] if arguments is None else arguments
    axes = {axis: AXES[axis][: sizes.points] for axis in sizes.axis}
    results: dict[str, list[dict[str, float]]] = {axis: [] for axis in axes}
    for axis, xs in axes.items():
        for x in xs:
            command = [sys.executable, __file__, *given, "--point", json.dumps(DEFAULT | {axis: x})]
            child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results[axis].append(json.loads(child.stdout.splitlines()[-1]))
        rows = [
            (what, *(f"{one[what]:.3g}" if what == "seconds" else f"{one[what]:,.0f}" for one in results[axis]),
             *(f"{of(xs, [one[what] for one in results[axis]]):.2f}" for of in (exponent, steepest)))
            for what in ("seconds", "MB")
        ]  # fmt: skip
        print(table([axis, *map("{:,}".format, xs), "exponent", "steepest"], rows) + "\n", flush=True)
    plot(results, axes, sizes.output)
    print(f"plotted to {sizes.output}")


if __name__ == "__main__":
    main()
