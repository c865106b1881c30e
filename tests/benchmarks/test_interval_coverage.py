"""A short, seeded run of the simulation behind docs/studies/coverage.md."""

import dataclasses

import numpy as np
import pytest


@pytest.fixture
def simulation(script):
    return script("interval_coverage")


@pytest.mark.parametrize("name", ["three seeds, differing", "one seed, uneven clusters"])
def test_intervals_hold_what_they_promise(simulation, name):
    (design,) = [one for one in simulation.DESIGNS if one.name == name]
    found = simulation.coverage(design, 250, seed=3)
    for measure in ("score", "against base", "against SFT", "retention"):
        share, studies = found[measure]
        assert studies == 250
        assert 0.915 <= share <= 0.985, measure  # 95 % give or take 2.5 of the simulation's standard errors


def test_a_wrong_interval_would_be_found(simulation, monkeypatch):
    # seeds that differ, but are taken for more items of one seed
    (design,) = [one for one in simulation.DESIGNS if one.name == "three seeds, far apart"]
    difference = simulation.difference

    def blind(tasks, others, settings):
        merged = [
            [dataclasses.replace(task, values=task.values.mean(axis=0, keepdims=True), seeds=(None,)) for task in side]
            for side in (tasks, others)
        ]
        return difference(*merged, settings)

    monkeypatch.setattr(simulation, "difference", blind)
    assert simulation.coverage(design, 100, seed=3)["against SFT"][0] < 0.6


def test_the_truth_is_what_large_studies_find(simulation):
    design = dataclasses.replace(simulation.DESIGNS[6], seeds=60, sources=6000, per_source=1)
    study = simulation.draw(design, np.random.default_rng(1))
    for outcomes, true in zip(study, simulation.truth(design), strict=True):
        assert outcomes.values.mean() == pytest.approx(true, abs=0.03)
