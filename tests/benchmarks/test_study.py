"""The study's bookkeeping, and one of its trainings made very short."""

import json

import pytest
import yaml

STUDY = {
    "set": {},
    "arms": {
        "fused_sft": {"method": "fused_sft"},
        "longer": {"method": "fused_sft", "epochs": 6},
        "heavy": {"method": "fused_sft_anchored", "set": {"methods.fused_sft_anchored.anchors.weight": 3.0}},
    },
    "runs": [
        {
            "worlds": ["easy"],
            "domains": ["archive"],
            "rates": [1e-3],
            "epochs": 4,
            "seeds": [0, 1],
            "arms": ["fused_sft", "longer"],
        },
        {
            "worlds": ["easy"],
            "domains": ["archive"],
            "rates": [1e-3],
            "epochs": 4,
            "seeds": [0],
            "arms": ["fused_sft", "heavy"],
        },
    ],
}


def line(study, cell, outcomes, **more):
    row = {"cell": cell.key, **cell._asdict(), "seconds": 1.0, "outcomes": outcomes, **more}
    row["scores"] = {task: found.count("1") / len(found) for task, found in outcomes.items()}
    return json.dumps(row) + "\n"


def test_cells_come_once_in_order_the_base_first(script):
    keys = [cell.key for cell in script("study").cells_of(STUDY)]
    assert keys == [
        "easy/archive/base",
        "easy/archive/fused_sft/rate=0.001/epochs=4/0",
        "easy/archive/longer/rate=0.001/epochs=6/0",
        "easy/archive/fused_sft/rate=0.001/epochs=4/1",
        "easy/archive/longer/rate=0.001/epochs=6/1",
        "easy/archive/heavy/rate=0.001/epochs=4/0",
    ]


def test_an_arm_changes_its_own_row_alone(script):
    study = script("study")
    config = study.config_of(STUDY, study.cells_of(STUDY)[-1])
    assert config.methods["fused_sft_anchored"].anchors.weight == 3.0
    assert config.methods["raft_anchored"].anchors.weight == 1.0  # YAML makes them share one mapping
    assert (config.train.learning_rate, config.train.epochs) == (1e-3, 4)


def test_every_study_of_the_repository_can_be_run(script):
    study = script("study")
    for path in study.STUDIES.glob("*.yaml"):
        document = yaml.safe_load(path.read_text())
        named = {arm for run in document["runs"] for arm in run["arms"]}
        assert named == document["arms"].keys()
        cells = study.cells_of(document)
        for cell in {cell[:1] + cell[2:5]: cell for cell in cells}.values():  # domain and seed set nothing
            study.config_of(document, cell)
        assert study.results_of(path.stem).keys() <= {cell.key for cell in cells}


def test_two_processes_never_do_the_same_cell(script, tmp_path, monkeypatch):
    study = script("study")
    monkeypatch.setattr(study, "STUDIES", tmp_path)
    monkeypatch.setattr(study, "KEPT_WORK", tmp_path / "work")
    first, second, *_ = study.cells_of(STUDY)
    with study.claimed("s", first) as mine, study.claimed("s", first) as again, study.claimed("s", second) as other:
        assert (mine, again, other) == (True, False, True)
    (tmp_path / "s.jsonl").write_text(line(study, first, {"domain": "01"}))
    with study.claimed("s", first) as done:
        assert not done


@pytest.mark.slow
def test_one_anchored_training_of_the_study(script, tmp_path, monkeypatch):
    study = script("study")
    monkeypatch.setattr(study, "STUDIES", tmp_path)
    monkeypatch.setattr(study, "KEPT_WORK", tmp_path / "work")
    short = {
        "set": {},
        "arms": {
            "short": {
                "method": "fused_sft_anchored",
                "set": {"anchors.generated.count": 40, "fuse.rounds": 1, "rewrite.max_new_tokens": 24},
            }
        },
        "runs": [{**STUDY["runs"][0], "epochs": 1, "seeds": [0], "arms": ["short"]}],
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(short))
    study.run("s")
    base, short_ = study.results_of("s").values()
    assert base["scores"]["skills"] == 1.0
    assert base["scores"]["domain_instructions"] < 0.05
    assert short_["steps"] == 30
    assert short_["final"]["l_anchor"] > 0
    assert short_["cpu_seconds"] > 1
    assert short_["peak_bytes"] > 2**27
    assert {task: len(found) for task, found in short_["outcomes"].items()} == {
        task: len(found) for task, found in base["sources"].items()
    }


def test_tables_say_what_the_outcomes_say(script, tmp_path, monkeypatch, capsys):
    study, tables = script("study"), script("study_tables")
    tasks = ("domain", *tables.GENERAL, "domain_instructions", "skills")
    base, *cells = study.cells_of(STUDY)
    sources = {task: [f"fact-{number}" for number in range(20)] for task in tasks}
    with (tmp_path / "s.jsonl").open("w") as out:
        out.write(line(study, base, dict.fromkeys(tasks, "1" * 20), sources=sources))
        for cell in cells:
            right = 10 if cell.arm == "fused_sft" else 15
            out.write(line(study, cell, dict.fromkeys(tasks, "1" * right + "0" * (20 - right))))
    monkeypatch.setattr(tables, "STUDIES", tmp_path)
    monkeypatch.setattr(study, "STUDIES", tmp_path)
    asked = {"world": "easy", "domains": ["archive"], "rate": 1e-3, "epochs": 4, "arms": [*STUDY["arms"]]}
    asked["against"] = "fused_sft"
    frontier = {"by": "setting", "rates": [1e-3], "epochs": [4], "main": [1e-3, 4]}
    titles = {"All": {}, "Each": {"by": "domain"}, "The frontier": frontier, "Another": {"world": "hard"}}
    made = [{**asked, "title": title, **more} for title, more in titles.items()]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**STUDY, "tables": made}))
    monkeypatch.setattr("sys.argv", ["study_tables.py", "s", str(tmp_path)])
    tables.main()
    out = capsys.readouterr().out
    printed = out.splitlines()
    longer = next(row for row in printed if row.startswith("| longer "))
    assert longer.startswith("| longer | 2 | 75.0 | 75.0 | 75.0 | 75.0 | 75.0 | 75.0 | 75.0 | 75.0 (")
    assert longer.count("+25.0 (") == 2  # paired, on the domain and in general
    assert next(row for row in printed if row.startswith("| heavy ")).split(" | ")[1] == "1"
    assert "| longer | 75.0 / 75.0 |" in printed
    assert "| 4 | 0.001 | 50.0 / 50.0 | 75.0 / 75.0 | 75.0 / 75.0 |" in printed  # none is bold: the base beats them
    assert printed[-1] == "not run yet"
    assert "<svg" in (tmp_path / "s-the-frontier.svg").read_text()


def test_general_items_that_domains_share_are_counted_once(script):
    tables = script("study_tables")
    bases = [{"domain": domain, "sources": {"domain": ["a", "b"], "recall": ["x", "y"]}} for domain in ("one", "two")]
    lines = [{"arm": "sft", "outcomes": {"domain": marks, "recall": marks}} for marks in ("10", "11")]
    own, shared = (tables.outcomes({0: lines, 1: lines}, bases, task) for task in ("domain", "recall"))
    assert own.sources == ("one a", "one b", "two a", "two b")
    assert own.values.tolist() == [[1, 0, 1, 1]] * 2
    assert shared.sources == ("x", "y")
    assert shared.values.tolist() == [[1, 0.5]] * 2
