import pytest

from raft_tasks.reporting.paper import ablation_table, load_paper, main_table, our_measures

PAPER = load_paper()


@pytest.mark.parametrize("backbone", PAPER["table"])
def test_the_printed_changes_follow_from_the_printed_scores(backbone):
    rows = PAPER["table"][backbone]
    assert list(rows) == PAPER["methods"]
    for row in rows.values():
        for score, sft, change in zip(row["scores"], rows["sft"]["scores"], row.get("changes", []), strict=False):
            # the paper rounded its scores after it computed the changes
            assert 100 * (score / sft - 1) == pytest.approx(change, abs=0.55)


def test_the_headline_of_the_paper_follows_from_the_table():
    changes = [rows["raft"]["changes"] for rows in PAPER["table"].values()]
    means = [sum(own) / len(own) for own in zip(*changes, strict=True)]
    assert means == pytest.approx([23.2, 18.2, 10.2], abs=0.05)
    for method, printed in PAPER["retention"].items():
        for place, value in enumerate(printed, start=1):
            kept = [
                100 * rows[method]["scores"][place] / rows["base"]["scores"][place] for rows in PAPER["table"].values()
            ]
            assert sum(kept) / len(kept) == pytest.approx(value, abs=0.2)


def test_the_notes_say_what_the_tables_show():
    """Six of nine averages; the figure's bar "SFT" is the ablation's fused SFT."""
    best = [
        (backbone, i)
        for backbone, rows in PAPER["table"].items()
        for i in range(3)
        if max((row["scores"][i], name) for name, row in rows.items() if name != "base")[1] == "raft"
    ]
    assert len(best) == 6
    assert "six" in PAPER["notes"][0]
    culture = PAPER["ablation"]["Culture"]
    assert culture["fused_sft"][:2] == [pytest.approx(14.7, abs=0.11), 58.5]
    assert culture["sft"][:2] == [13.1, 55.0]


def score(value):
    return {"estimate": value, "low": value - 0.01, "high": value + 0.01}


OVERALL = {
    "measures": ["domain_acc", "general", "pocket_instructions"],
    "methods": {
        "base": {"scores": {"domain_acc": score(0.1), "general": score(0.9), "pocket_instructions": score(0.8)}},
        "raft": {
            "scores": {"domain_acc": score(0.6), "general": score(0.85), "pocket_instructions": score(0.7)},
            "share_of_reference": {"domain_acc": score(1.5), "general": score(1.2), "pocket_instructions": None},
        },
        "raft_lora": {"scores": {"domain_acc": score(0.4), "general": score(0.88), "pocket_instructions": score(0.75)}},
    },
}


def test_ours_stand_in_the_papers_rows_and_columns():
    rows = {row["method"]: row["cells"] for row in main_table(PAPER, OVERALL)}
    assert list(rows) == [*PAPER["methods"], "raft_lora"]
    domain, general, instructions = rows["raft"]
    assert [cell["measure"] for cell in rows["raft"]] == ["D-Acc", "MS-Bench", "IFEval"]
    assert (domain["score"]["estimate"], domain["share"]["estimate"]) == (0.6, 1.5)
    assert domain["paper"] == {"SmolLM3-3B": (17.2, 34.0), "Llama-3.2-3B": (16.5, 9.2), "Phi-4-mini": (21.6, 26.3)}
    assert (general["score"]["estimate"], general["paper"]["Phi-4-mini"]) == (0.85, (43.2, 37.1))
    assert (instructions["score"]["estimate"], instructions["share"]) == (0.7, None)
    assert rows["sft"][0]["score"] is None
    assert rows["sft"][2]["paper"]["Llama-3.2-3B"] == (49.9, None)
    assert rows["raft_lora"][0]["paper"] == {}


def test_the_papers_own_benchmarks_come_first():
    assert our_measures(PAPER, ["domain_acc", "general", "ifeval", "pocket_instructions", "ms_bench"]) == {
        "D-Acc": "domain_acc",
        "MS-Bench": "ms_bench",
        "IFEval": "ifeval",
    }
    assert our_measures(PAPER, ["domain_acc"]) == {"D-Acc": "domain_acc", "MS-Bench": None, "IFEval": None}


def test_the_ablation_goes_from_raw_to_fused_to_raft():
    ours, *printed = ablation_table(PAPER, {"archive": OVERALL}, our_measures(PAPER, OVERALL["measures"]))
    assert [score and score["estimate"] for score in ours.cells["MS-Bench"]] == [None, None, 0.85]
    judged = {**OVERALL, "measures": [*OVERALL["measures"], "domain_judged"]}  # one domain of several
    assert ablation_table(PAPER, {"archive": judged}, our_measures(PAPER, OVERALL["measures"]))[0].cells == ours.cells
    assert [row.domain for row in printed] == ["Law", "Science", "Culture"]
    assert printed[1].cells == {
        "D-Acc": [8.3, 10.0, 13.3],
        "MS-Bench": [62.0, 64.0, 65.0],
        "IFEval": [23.5, 27.2, 32.7],
    }
