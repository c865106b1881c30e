import json
from dataclasses import replace

import numpy as np
import pytest
from synthetic_artifacts import ITEMS, LEVELS, TASKS, collected, synthetic_config, write_artifacts

from raft_tasks.artifacts import read_rows, write_rows
from raft_tasks.errors import InputError
from raft_tasks.evaluation.degradation import holm
from raft_tasks.reporting.flips import find_flips
from raft_tasks.reporting.measures import measure, measures_of
from raft_tasks.reporting.terminal import print_table
from raft_tasks.reporting.wording import label, measure_name, percent, points
from raft_tasks.schemas import ItemResult, Judged


def measured(root, config, levels=LEVELS):
    write_artifacts(root, config, levels)
    return measure(collected(root, config))


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("artifacts"), synthetic_config())


def test_is_json_and_whole(metrics):
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    domain = metrics["domains"]["archive"]
    assert list(domain["methods"]) == ["base", "sft", "sdft", "fused_sft", "on_policy", "raft", "fused_sft_anchored"]
    assert list(domain["measures"]) == ["domain_acc", "domain_complete", "general", *TASKS]
    assert (metrics["reference"], metrics["candidate"]) == ("sft", "raft")
    assert metrics["same_target_without_teacher"] == ["fused_sft"]
    assert metrics["anchored"] == "fused_sft_anchored"


def test_numbers_are_those_of_the_items(tmp_path):
    config = synthetic_config(seeds=[4, 5], methods=["sft", "raft"])
    found = measured(tmp_path, config)["domains"]["archive"]["methods"]
    right = {}
    for method in ("base", "sft-4", "sft-5", "raft-4", "raft-5"):
        items = read_rows(tmp_path / "archive" / "benchmarks" / method / "items.jsonl", ItemResult)
        right[method] = {
            task: np.mean([item.metrics["acc"] for item in items if item.task == task]) for task in ("domain", *TASKS)
        }
    sft = (right["sft-4"]["domain"] + right["sft-5"]["domain"]) / 2
    raft = (right["raft-4"]["domain"] + right["raft-5"]["domain"]) / 2
    assert found["sft"]["scores"]["domain_acc"]["estimate"] == pytest.approx(sft)
    assert found["raft"]["against_reference"]["domain_acc"]["estimate"] == pytest.approx(raft - sft)
    assert found["sft"]["candidate_against_it"]["domain_acc"]["estimate"] == pytest.approx(raft - sft)
    general = {method: np.mean([shares[task] for task in TASKS]) for method, shares in right.items()}
    assert found["base"]["scores"]["general"]["estimate"] == pytest.approx(general["base"])
    kept = (general["raft-4"] + general["raft-5"]) / 2 / general["base"]
    assert found["raft"]["retention"]["general"]["estimate"] == pytest.approx(kept)
    assert [seed["seed"] for seed in found["raft"]["per_seed"]] == [4, 5]
    assert found["raft"]["per_seed"][1]["general"] == pytest.approx(general["raft-5"])
    assert found["raft"]["scores"]["domain_acc"]["n_seeds"] == 2
    assert found["raft"]["scores"]["domain_acc"]["n_sources"] == 40
    assert found["base"]["scores"]["domain_acc"]["over"] == "items"


def test_verdicts_follow_the_levels(metrics):
    methods = metrics["domains"]["archive"]["methods"]
    change = methods["raft"]["against_reference"]
    assert change["general"]["verdict"] == "higher"
    assert methods["on_policy"]["against_reference"]["domain_acc"]["verdict"] == "lower"
    assert methods["fused_sft"]["candidate_against_it"]["domain_acc"]["verdict"] == "no clear difference"
    assert "against_reference" not in methods["sft"]


def test_all_domains_together_are_their_average(tmp_path):
    config = synthetic_config(seeds=[0, 1], methods=["sft", "raft"], domains=["archive", "statute"])
    write_artifacts(tmp_path, config)
    path = tmp_path / "statute" / "benchmarks" / "raft-1" / "items.jsonl"
    wrong = {"acc": 0.0, "complete": 0.0, "other": 1.0}
    write_rows(path, [row.model_copy(update={"metrics": wrong}) for row in read_rows(path, ItemResult)])
    found = measure(collected(tmp_path, config))
    parts = [domain["methods"] for domain in found["domains"].values()]
    overall = found["overall"]["methods"]
    for key in ("domain_acc", "general", "pocket_recall"):
        means = [own["raft"]["scores"][key]["estimate"] for own in parts]
        assert means[0] > means[1]
        assert overall["raft"]["scores"][key]["estimate"] == pytest.approx(np.mean(means))
        changes = [own["raft"]["against_reference"][key]["estimate"] for own in parts]
        assert overall["raft"]["against_reference"][key]["estimate"] == pytest.approx(np.mean(changes))
    # the general items are the same ones in both domains, the domains' own are not
    assert overall["raft"]["scores"]["general"]["n_items"] == parts[0]["raft"]["scores"]["general"]["n_items"]
    assert overall["raft"]["scores"]["domain_acc"]["n_items"] == 2 * parts[0]["raft"]["scores"]["domain_acc"]["n_items"]


def test_one_domain_is_all_domains(metrics):
    for method, row in metrics["overall"]["methods"].items():
        assert row["scores"] == metrics["domains"]["archive"]["methods"][method]["scores"]


def test_flipped_items_are_counted_and_tested(tmp_path):
    config = synthetic_config(seeds=[0, 1], methods=["sft", "raft"])
    write_artifacts(tmp_path, config)
    folder = tmp_path / "archive" / "benchmarks"
    right, wrong = {"acc": 1.0, "other": 0.5}, {"acc": 0.0, "other": 0.5}
    for name, lost in (("base", 0), ("sft-0", 8), ("sft-1", 6), ("raft-0", 1), ("raft-1", 1)):
        rows = read_rows(folder / name / "items.jsonl", ItemResult)
        write_rows(
            folder / name / "items.jsonl",
            [
                row.model_copy(update={"metrics": wrong if int(row.id) < lost else right})
                if row.task == "pocket_recall"
                else row
                for row in rows
            ],
        )
    methods = measure(collected(tmp_path, config))["domains"]["archive"]["methods"]
    tested = methods["sft"]["degradation"]
    recall = tested["pocket_recall"]
    assert (recall["asked"], recall["right_before"], recall["lost"], recall["won"]) == (ITEMS, ITEMS, 7.0, 0.0)
    assert sorted(recall["lost_items"].values()) == [1, 1, 2, 2, 2, 2, 2, 2]
    assert recall["won_items"] == {}
    assert recall["p_per_seed"] == pytest.approx([2 / 2**8, 2 / 2**6])
    assert recall["p"] == pytest.approx(2 / 2**8)  # eight items, and no way but all of them lost is as far
    assert 0 < recall["detectable_drop"] < 0.3
    assert list(tested) == ["domain", *TASKS]
    assert [one["p_holm"] for one in tested.values()] == pytest.approx(holm([one["p"] for one in tested.values()]))
    assert "flips_against_reference" not in methods["sft"]
    better = methods["raft"]["flips_against_reference"]
    assert list(better) == ["domain", *TASKS]
    recall = better["pocket_recall"]
    assert (recall["lost"], recall["won"]) == (0.0, 6.0)
    assert recall["p"] == pytest.approx(2 / 2**7)
    assert recall["p_holm"] > recall["p"]


def test_the_recovered_fraction_of_the_references_loss(metrics):
    methods = metrics["domains"]["archive"]["methods"]
    base, sft, raft = (methods[name]["scores"]["general"]["estimate"] for name in ("base", "sft", "raft"))
    assert methods["raft"]["recovered_fraction"]["general"]["estimate"] == pytest.approx((raft - sft) / (base - sft))
    assert "recovered_fraction" not in methods["sft"]


def test_refinement_adds_up(metrics):
    refined = metrics["domains"]["archive"]["refinement"]
    counts = [refined[f"rows_{name}"] for name in ("in", "rejected", "left_out", "train", "test")]
    assert counts == [208, 2, 6, 120, 80]
    assert counts[0] == sum(counts[1:])
    assert refined["rows_train"] == 120 == sum(refined["similarity_counts"])
    assert refined["rewrites_passed"] == 90
    assert refined["share_passed"] == 0.75
    edges = np.array(refined["similarity_edges"])
    passed = np.array(refined["similarity_counts"])[edges[:-1] >= refined["tau"]].sum()
    assert passed == 90
    assert refined["share_fused_changed"] == pytest.approx(1 / 3)


def test_a_merge_has_the_scores_with_and_without_it(metrics):
    methods = metrics["domains"]["archive"]["methods"]
    assert methods["sdft"]["merge"] == []
    first, *others = methods["raft"]["merge"]
    assert [one["seed"] for one in (first, *others)] == [0, 1, 2]
    assert (first["coefficient"], first["bound_met"], first["relative_l2"]) == (0.6, False, 0.0123)
    assert (first["merged"]["domain"], first["unmerged"]["domain"], first["base"]["general"]) == (0.952, 0.991, 0.871)


def test_training_is_averaged_over_seeds(metrics):
    training = metrics["domains"]["archive"]["methods"]["sdft"]["training"]
    assert training["relative_l2"] == pytest.approx(0.024 + 0.0007)
    assert len(training["relative_l2_per_seed"]) == 3
    assert (training["seconds"], training["steps"]) == (21, 46)


def test_the_analysis_is_averaged_over_seeds(metrics):
    found = metrics["domains"]["archive"]["methods"]["sdft"]["analysis"]
    assert found["kl"]["domain"] == pytest.approx(40 * 0.0247)
    assert found["distance"]["matrices"]["down_proj"] == pytest.approx(3 * 0.0247)
    assert found["style"]["domain_foreign"] is None
    assert found["leak"]["examples"] == ["As the <reference> says."]


def test_a_run_without_general_tasks(tmp_path):
    config = synthetic_config(seeds=[0], methods=["sft"])
    config = config.model_copy(update={"benchmark": config.benchmark.model_copy(update={"tasks": []})})
    found = measured(tmp_path, config)
    assert found["candidate"] is None
    assert list(found["domains"]["archive"]["measures"]) == ["domain_acc", "domain_complete"]
    assert found["domains"]["archive"]["methods"]["sft"]["retention"] == {}


def test_items_that_do_not_pair_are_refused(tmp_path):
    config = synthetic_config(seeds=[0], methods=["sft"])
    write_artifacts(tmp_path, config)
    path = tmp_path / "archive" / "benchmarks" / "sft-0" / "items.jsonl"
    write_rows(path, read_rows(path, ItemResult)[1:])
    with pytest.raises(InputError, match=r"sft \(seed 0\) and the base were not asked the same items of 'domain'"):
        measure(collected(tmp_path, config))


def test_a_task_that_was_not_benchmarked_is_named(tmp_path):
    config = synthetic_config(seeds=[0], methods=["sft"])
    write_artifacts(tmp_path, config)
    more = config.model_copy(update={"benchmark": config.benchmark.model_copy(update={"tasks": ["ifeval"]})})
    with pytest.raises(InputError, match="'ifeval' has no score per item"):
        measure(collected(tmp_path, more))


def test_the_terminal_table_is_narrow_and_says_what_the_numbers_say(metrics, capsys):
    print_table(metrics)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    raft = metrics["domains"]["archive"]["methods"]["raft"]
    assert points(raft["scores"]["domain_acc"]["estimate"]) in shown
    assert points(raft["against_reference"]["general"]["estimate"], signed=True) in shown
    assert "fused SFT" in shown


@pytest.mark.parametrize(
    ("share", "signed", "shown"),
    [(0.5, False, "50.0"), (0.5, True, "+50.0"), (-0.1234, True, "−12.3"), (-0.0001, True, "0.0"), (0.0, True, "0.0")],
)
def test_points(share, signed, shown):
    assert points(share, signed) == shown


def test_percent_without_an_interval():
    assert percent(None) == ("–", "")
    assert percent({"estimate": 0.5, "low": None, "high": None}) == ("50.0", "")


def test_labels():
    assert label("fused_sft") == "fused SFT"
    assert label("on_policy") == "on policy"
    assert label("base") == "base"
    assert label("mixsd_anchored") == "MixSD anchored"


def test_where_a_panel_judged_its_verdicts_are_measured(tmp_path):
    config = synthetic_config(seeds=[4], methods=["sft", "raft"])
    config = config.model_copy(update={"run": config.run.model_copy(update={"judged": ["archive"]})})
    write_artifacts(tmp_path, config)
    votes = []
    for model, right in (("base", False), ("sft-4", True), ("raft-4", True)):
        items = read_rows(tmp_path / "archive" / "benchmarks" / model / "items.jsonl", ItemResult)
        judged = [item for item in items if item.task in ("domain", TASKS[0])]
        for item in judged:
            told = None if item.id in (items[0].id, "7") else right  # of these nobody has a verdict
            votes.append(
                Judged(model=model, task=item.task, id=item.id, votes={}, reasons={}, abstained={}, right=told)
            )
    write_rows(tmp_path / "archive" / "judged" / "votes.jsonl", votes)
    found = measure(collected(tmp_path, config))["domains"]["archive"]
    assert list(found["measures"])[2] == "domain_judged"
    assert "domain_acc" in found["measures"]  # the rule's beside it
    scores = {method: row["scores"] for method, row in found["methods"].items()}
    assert [scores[name]["domain_judged"]["estimate"] for name in ("base", "sft", "raft")] == [0, 1, 1]
    assert [scores[name][TASKS[0]]["estimate"] for name in ("base", "sft", "raft")] == [0, 1, 1]
    assert "retention" in found["methods"]["sft"]
    tested = found["methods"]["sft"]["degradation"][TASKS[0]]
    assert (tested["asked"], tested["won"], "7" in tested["won_items"]) == (ITEMS - 1, ITEMS - 1, False)
    listed = find_flips(collected(tmp_path, config).domains["archive"], [(TASKS[0], "judged")])
    assert {one.id for one in listed} == set(tested["won_items"])


def test_domains_that_were_not_judged_alike_have_an_average(tmp_path):
    """In any order: a verdict on a general item counts where every domain has one, else the task's own metric."""
    config = synthetic_config(seeds=[4], methods=["sft"])
    write_artifacts(tmp_path, config)
    study = collected(tmp_path, config)
    plain = study.domains["archive"]

    def judge(items, undecided):
        return [
            item.model_copy(update={"metrics": {"judged": 1.0, **item.metrics}})
            if item.task in ("domain", TASKS[0]) and item.id != undecided
            else item
            for item in items
        ]

    def judged(undecided=None):
        runs = {"sft": [replace(run, items=judge(run.items, undecided)) for run in plain.runs["sft"]]}
        return replace(plain, base=judge(plain.base, undecided), runs=runs)

    def scores(**domains):
        return measure(replace(study, domains=domains))["overall"]["methods"]["sft"]["scores"]

    by_rule = scores(a=plain)[TASKS[0]]["estimate"]
    assert by_rule < 1
    for first, second, estimate, items in [
        (judged(), judged(), 1, ITEMS),
        (judged("7"), judged(), 1, ITEMS - 1),
        (judged(), judged("7"), 1, ITEMS - 1),
        (judged(), plain, by_rule, ITEMS),
        (plain, judged(), by_rule, ITEMS),
    ]:
        found = scores(a=first, b=second)
        assert (found[TASKS[0]]["estimate"], found[TASKS[0]]["n_items"]) == (estimate, items)
        assert ("domain_judged" in found) == (plain not in (first, second))


def test_every_check_but_the_first_is_a_measure():
    metrics = {"judged": 1.0, "acc": 1.0, "complete": 0.0, "token_f1": 0.5, "chapter": 1.0, "heading": 0.0, "code": 0.0}
    item = ItemResult(task="domain", id="a", source="a", metrics=metrics, prompt="q", answer="2932.19")
    names = ["domain_acc", "domain_complete", "domain_heading", "domain_code", "domain_judged"]
    assert list(measures_of([item], [])) == names
    assert measure_name("domain_heading") == "domain, heading"
