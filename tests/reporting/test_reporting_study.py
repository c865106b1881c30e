import pytest
from synthetic_artifacts import ITEMS, collected, synthetic_config, write_artifacts


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root, config = tmp_path_factory.mktemp("artifacts"), synthetic_config()
    write_artifacts(root, config)
    return root, config


def test_collects_every_run_and_remembers_every_file(finished):
    root, config = finished
    study = collected(root, config)
    domain = study.domains["archive"]
    assert set(domain.runs) == set(config.run.methods)
    assert [run.seed for run in domain.runs["raft"]] == config.run.seeds
    assert len(domain.base) == len(domain.test) + 4 * ITEMS
    assert domain.runs["sft"][0].steps["l_kl"] == [None] * 45
    assert domain.runs["raft"][0].steps["step"][-1] == 45.0
    assert len(domain.rejects) == 2
    # every file that was written is named with the stage that makes it
    assert {file.path for file in study.files} == {path for path in root.rglob("*") if path.is_file()}
    stages = {file.path.relative_to(root).as_posix(): file.stage for file in study.files}
    assert stages["archive/benchmarks/raft-2/items.jsonl"] == "benchmark@archive-raft-2"
    assert stages["archive/benchmarks/base/items.jsonl"] == "benchmark_base@archive"
    assert stages["archive/runs/sft-0/steps.csv"] == "distill@archive-sft-0"


def test_a_missing_run_names_the_stage_that_makes_it(finished):
    root, config = finished
    more = config.model_copy(update={"run": config.run.model_copy(update={"seeds": [0, 1, 2, 3]})})
    with pytest.raises(FileNotFoundError, match="dvc repro distill@archive-sft-3"):
        collected(root, more)


def test_a_broken_curve_names_its_file(tmp_path):
    config = synthetic_config(seeds=[0], methods=["sft"])
    write_artifacts(tmp_path, config)
    (tmp_path / "archive" / "runs" / "sft-0" / "steps.csv").write_text("step,loss\n1,two\n")
    with pytest.raises(ValueError, match=r"steps\.csv: got a cell that is not a number"):
        collected(tmp_path, config)
