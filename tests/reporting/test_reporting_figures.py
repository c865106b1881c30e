import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from synthetic_artifacts import collected, synthetic_config, write_artifacts

from raft_tasks.config import Curve
from raft_tasks.reporting.figures import refinement, scores, training
from raft_tasks.reporting.figures.panel import styles_of
from raft_tasks.reporting.measures import measure


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root, config = tmp_path_factory.mktemp("artifacts"), synthetic_config()
    write_artifacts(root, config)
    study = collected(root, config)
    domain, metrics, styles = (
        study.domains["archive"],
        measure(study)["domains"]["archive"],
        styles_of(config.run.methods),
    )

    seeds = {method: row["per_seed"] for method, row in metrics["methods"].items()}

    def draw():
        return {
            "frontier": scores.frontier(metrics["frontier"], seeds, styles),
            "changes": scores.changes(metrics, "sft", styles, "general", "General score"),
            "l_sft": training.curves(domain, styles, "l_sft", "L_SFT"),
            "lambda": training.curves(domain, styles, "lambda", "lambda", 1.0),
            "similarities": refinement.similarities(metrics["refinement"]),
            "distances": training.distances(metrics, styles),
        }

    return draw(), draw(), styles, domain


def test_paths_end_at_the_chosen_checkpoint(tmp_path):
    config = synthetic_config(methods=["sft", "fused_sft"], seeds=[0, 1])
    config = config.model_copy(update={"train": config.train.model_copy(update={"curve": Curve()})})
    write_artifacts(tmp_path, config)
    domain, styles = collected(tmp_path, config).domains["archive"], styles_of(config.run.methods)
    assert domain.runs["fused_sft"][1].curve["kl_held_out"] == [0.0, 0.04, 0.08, 0.09]

    def draw(step):
        runs = {
            method: [replace(run, summary=run.summary | {"curve": {"step": step}}) for run in of]
            for method, of in domain.runs.items()
        }
        return training.paths(replace(domain, runs=runs), styles)

    last, earlier = draw(45), draw(20)
    ElementTree.fromstring(last)
    assert "KL to the base on held-out anchors" in last
    assert "domain accuracy (%), validation" in last
    assert last != earlier
    assert len(re.findall("<use ", last)) == len(re.findall("<use ", earlier))


def test_every_figure_is_wellformed_named_and_scales(drawn):
    for svg in drawn[0].values():
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert root.get("viewBox")
        assert root.get("width") is None


def test_figures_do_not_share_ids_and_refer_to_their_own(drawn):
    seen = set()
    for svg in drawn[0].values():
        ids = set(re.findall(r'\bid="([^"]+)"', svg))
        assert not ids & seen
        seen |= ids
        assert set(re.findall(r"(?:url\(|href=\")#([^\")]+)", svg)) <= ids


def test_the_same_numbers_give_the_same_bytes(drawn):
    assert drawn[0] == drawn[1]


def test_a_method_has_one_colour_everywhere(drawn):
    figure, _, styles, _ = drawn
    colour = styles["raft"][0].lower()
    for name in ("frontier", "changes", "l_sft", "lambda", "distances"):
        assert colour in figure[name]
    colours = [colour for colour, _ in styles.values()]
    assert len(set(styles.values())) == len(styles)
    assert len(set(colours[:8])) == len(colours[:8])
    many = styles_of([f"method {i}" for i in range(20)])
    assert len(set(many.values())) == 21


def test_methods_without_a_teacher_have_no_lambda(drawn):
    figure, _, styles, domain = drawn
    assert styles["sft"][0].lower() not in figure["lambda"]
    assert training.has_column(domain, "l_kl")
    assert not training.has_column(domain, "no_such_column")


def test_smoothing_keeps_a_constant_a_short_run_and_gaps():
    assert training._smoothed(np.full(9, 2.0)) == pytest.approx([2.0] * 9)
    assert training._smoothed(np.ones(2)) == pytest.approx([1.0, 1.0])
    assert training._smoothed(np.array([0, 0, 0, 5.0, 0, 0, 0])) == pytest.approx([0, 5 / 4, 1, 1, 1, 5 / 4, 0])
    assert training._smoothed(np.array([np.nan, 3.0, 3.0])) == pytest.approx([3.0, 3.0, 3.0])
    assert np.isnan(training._smoothed(np.full(3, np.nan))).all()


def test_a_legend_of_long_names_lies_within_the_figure():
    names = ["sft", "fused_sft", "raft", "fused_sft_anchored", "raft_anchored", "mixsd_refined_anchored"]
    score = {"estimate": 0.5, "low": 0.4, "high": 0.6}
    points = [
        {"method": name, "setting": None, "line": None, "best": False, "domain_acc": score, "general": score}
        for name in names
    ]
    svg = scores.frontier(points, {}, styles_of(names))
    width = float(re.search(r'viewBox="0 0 (\S+)', svg)[1])
    left = float(re.search(r'x="(\S+)" y="\S+">MixSD refined anchored<', svg)[1])
    assert left + 5.2 * len("MixSD refined anchored") < width  # 5.2: of a character of 10 pixels, at least
