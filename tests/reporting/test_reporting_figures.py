import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from synthetic_artifacts import collected, synthetic_config, write_artifacts

from raft_tasks.reporting import figures
from raft_tasks.reporting.tables import measure


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root, config = tmp_path_factory.mktemp("artifacts"), synthetic_config()
    write_artifacts(root, config)
    study = collected(root, config)
    domain, found, style = study.domains["archive"], measure(study)["domains"]["archive"], figures.styles(config)

    seeds = {method: row["per_seed"] for method, row in found["methods"].items()}

    def draw():
        return {
            "frontier": figures.frontier(found["frontier"], seeds, style),
            "changes": figures.changes(found, "sft", style, "general", "General score"),
            "l_sft": figures.curves(domain, style, "l_sft", "L_SFT"),
            "lambda": figures.curves(domain, style, "lambda", "lambda", 1.0),
            "similarities": figures.similarities(found["refinement"]),
            "distances": figures.distances(found, style),
        }

    return draw(), draw(), style, domain


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
    figure, _, style, _ = drawn
    colour = style["raft"][0].lower()
    for name in ("frontier", "changes", "l_sft", "lambda", "distances"):
        assert colour in figure[name]
    colours = [colour for colour, _ in style.values()]
    assert len(set(style.values())) == len(style)
    assert len(set(colours[:8])) == len(colours[:8])


def test_methods_without_a_teacher_have_no_lambda(drawn):
    figure, _, style, domain = drawn
    assert style["sft"][0].lower() not in figure["lambda"]
    assert figures.has_column(domain, "l_kl")
    assert not figures.has_column(domain, "no_such_column")


def test_smoothing_keeps_a_constant_a_short_run_and_gaps():
    assert figures._smoothed(np.full(9, 2.0)) == pytest.approx([2.0] * 9)
    assert figures._smoothed(np.ones(2)) == pytest.approx([1.0, 1.0])
    assert figures._smoothed(np.array([0, 0, 0, 5.0, 0, 0, 0])) == pytest.approx([0, 5 / 4, 1, 1, 1, 5 / 4, 0])
    assert figures._smoothed(np.array([np.nan, 3.0, 3.0])) == pytest.approx([3.0, 3.0, 3.0])
    assert np.isnan(figures._smoothed(np.full(3, np.nan))).all()
