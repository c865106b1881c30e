"""Every benchmark at toy size: it runs, what it compares is equal, and what it computes about the figures is right."""

import json
import random
import re
import shutil
from argparse import Namespace

import pytest
import torch

from raft_tasks.training.logits import Head, reads_few

SMALL = ["--question", "6", "--answer", "5", "--rollout", "4", "--steps", "1"]


def test_loss_is_trls_own_and_the_report_has_every_form(script, capsys):
    loss = script("loss")
    sizes = ["--vocabulary", "3000", "--hidden", "32", "--top-k", "8", "--positions", "50", "--repeats", "1"]
    loss.main([*sizes, "--threads", "1", "--memory", "40"])
    printed = capsys.readouterr().out
    for form in ("TRL SDFT", "TRL SDFT, student's support", "ours", "full logits", "TRL SFT"):
        assert printed.count(f"| {form} |") in (3, 6)  # two heads and the memory; `ours` in both branches
    values = [float(line.split(" is ")[1].split(" from ")[0]) for line in printed.splitlines() if "gradients" in line]
    assert len(values) == 4
    assert max(values) < 1e-5


def test_the_form_that_few_rows_take_is_the_one_that_is_compared(script):
    loss = script("loss")
    sizes = Namespace(vocabulary=3_000, hidden=32, top_k=8, dtype="float32", device="cpu")
    inputs = loss.Inputs(sizes, 50, trainable=True)
    assert reads_few(inputs.hidden, Head(inputs.weight), torch.zeros(50, 8))
    far = loss.apart(inputs, loss.chunked, loss.trl)
    assert far["value"] < 1e-6
    assert far["gradients"] < 1e-4  # the gradient of two close models is a small difference: float32 leaves this much
    moved = loss.apart(inputs, lambda inputs: 1.01 * loss.chunked(inputs), loss.trl)
    assert moved["gradients"] > 5e-3


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL's and transformers', about each other
def test_step_does_the_same_work_on_both_sides(script, capsys):
    step = script("step")
    shape = ["--vocabulary", "2000", "--hidden", "64", "--layers", "1", "--top-k", "16", "--batch", "2"]
    step.main([*shape, *SMALL, "--repeats", "1", "--threads", "1"])
    printed = capsys.readouterr().out
    for phase in ("rollout", "teacher", "student", "optimiser", "whole step", "samples per second"):
        assert f"| {phase} |" in printed
    assert "| tokens of a rollout | 4.00 | 4.00 | 1.00 |" in printed
    assert "| seconds | TRL | ours | floor | TRL / ours | ours / floor |" in printed
    assert float(re.search(r"ours / SFT ([\d.]+)", printed)[1]) > 1


def test_gpu_step_runs_on_a_cpu_at_toy_size(script, tmp_path):
    gpu_step = script("gpu_step")
    sizes = ["--batch", "2", "--micro-batch", "1", "--top-k", "16", *SMALL]
    device = ["--device", "cpu", "--shape", "tiny", "--mode", "full", "lora", "--sampler", "generate", "vllm"]
    gpu_step.main([*device, *sizes, "--output", str(tmp_path)])
    result = json.loads((tmp_path / "gpu_step.json").read_text())
    assert [run["mode"] for run in result["runs"]] == ["full", "lora"]
    for run in result["runs"]:
        assert run["seconds"].keys() == run["floor"].keys() == {"rollout", "teacher", "student", "optimiser"}
        assert all(seconds > 0 for seconds in run["floor"].values())
        assert run["rollout_tokens"] == 4
    markdown = (tmp_path / "gpu_step.md").read_text()
    assert "| tiny, full, generate |" in markdown
    assert "Left out: vllm (vllm is not installed)." in markdown


def test_floor_by_hand(script):
    """On ceilings of one byte and one FLOP per second."""
    gpu_step, workload = script("gpu_step"), script("workload")
    config = workload.llama(100, 64, 2)
    layers, head = gpu_step.parameters(config)
    assert head == 100 * 64
    ones = gpu_step.Ceilings(1.0, 1.0)
    full = gpu_step.floor(config, workload.Lengths(6, 5, 4), 3, False, torch.bfloat16, ones)
    lora = gpu_step.floor(config, workload.Lengths(6, 5, 4), 3, True, torch.bfloat16, ones)
    prompt, answer, taught = 10, 6, 19

    def forward(tokens):
        return 3 * (2 * layers * tokens + 2 * tokens**2 * 64 * 2)

    cache = 3 * (2 * 2 * 1 * 32 * 2) * (10 + 11 + 12 + 13)
    assert full["rollout"] == 4 * (layers + head) * 2 + cache + forward(prompt)
    assert full["teacher"] == forward(taught + 4) + 2 * head * 3 * 4
    assert full["student"] == 3 * (forward(prompt + 4) + forward(prompt + answer) + 2 * head * 3 * answer)
    assert lora["student"] == pytest.approx(full["student"] * 2 / 3)
    assert full["optimiser"] == 28 * (layers + head)
    assert lora["optimiser"] == 28 * gpu_step.adapter_parameters(config)


def test_real_shapes_have_the_published_number_of_weights(script):
    gpu_step, workload = script("gpu_step"), script("workload")
    weights = {name: sum(gpu_step.parameters(workload.SHAPES[name])) / 1e9 for name in workload.SHAPES}
    assert weights["SmolLM3-3B"] == pytest.approx(3.08, abs=0.01)
    assert weights["Llama-3.2-3B"] == pytest.approx(3.21, abs=0.01)
    assert weights["Phi-4-mini"] == pytest.approx(3.84, abs=0.01)


def test_growth_measures_and_plots(script, tmp_path, capsys, monkeypatch):
    growth = script("growth")
    monkeypatch.setattr(growth, "DEFAULT", {"batch": 2, "length": 4, "vocabulary": 2_000, "k": 8})
    monkeypatch.setitem(growth.AXES, "batch", [1, 2])
    growth.main(["--axis", "batch", "--hidden", "32", "--steps", "1", "--output", str(tmp_path / "growth.png")])
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert "| batch | 1 | 2 | exponent | steepest |" in capsys.readouterr().out


@pytest.mark.skipif(not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), reason="no Chromium")
def test_a_comment_becomes_a_picture(script, tmp_path):
    from PIL import Image

    draw = script("comment_picture").draw
    row = "| general: recall | -4.4 points | at least -5 | 11 of 160 items lost | pass |\n"
    head = "### Gate of `archive`: passed\n\n| rule | candidate | limit | evidence | result |\n|---|---|---|---|---|\n"
    sizes = []
    for rows in (1, 9):
        draw(head + rows * row, tmp_path / "comment.png")
        with Image.open(tmp_path / "comment.png") as image:
            sizes.append(image.size)
            assert len(image.getcolors()) > 4
    (width, low), (same, high) = sizes
    assert width == same == 920
    assert 100 < low < high < 600  # no Markdown is left as a line of text, nothing blank below


def test_exponents(script):
    growth = script("growth")
    assert growth.exponent([1, 2, 4, 8], [3.0, 6.0, 12.0, 24.0]) == pytest.approx(1)
    assert growth.exponent([1, 2, 4], [5.0, 20.0, 80.0]) == pytest.approx(2)
    assert growth.steepest([1, 2, 4, 8], [1.0, 2.0, 16.0, 32.0]) == pytest.approx(3)


MEETING = (
    "In 1990, about 30 people met 5 miles north of Rome because it is near Milan. It did not rain before 9 October, "
    "and prices increased by 12%."
)


def test_tau_sweep_turns_meanings_and_paraphrases_honestly(script, tmp_path, capsys):
    sweep = script("tau_sweep")
    for turned, kinds in ((True, sweep.TURNED), (False, sweep.HONEST)):
        for name, change in kinds.items():
            text = change(MEETING, random.Random(0))
            assert text != MEETING, name
            assert bool(sweep.lost_facts(MEETING, text)) == turned, (name, text)
            assert change("Well, yes.", random.Random(0)) is None, name
    (tmp_path / "rows.json").write_text(json.dumps([{"output": MEETING}, {"output": "Too short."}]))
    sweep.main(["--rows", str(tmp_path / "rows.json"), "--pocket-rows", "2"])
    printed = capsys.readouterr().out
    assert "| meaning turned: another year | 1 |" in printed
    assert "| **honest paraphrase, all** | 5 |" in printed
    assert printed.count("| 0 % |") >= 6  # nothing honest is flagged
    assert printed.startswith("10 rewrites of 5 domains.")


def test_anchors_cost_compares_both_methods(script, capsys):
    anchors_cost = script("anchors_cost")
    anchors_cost.main(["--count", "12", "--rows", "32", "--epochs", "1", "--repeats", "1"])
    printed = capsys.readouterr().out
    for line in ("| inventing and answering |", "| all |", "| fused_sft |", "| fused_sft_anchored |", "| ratio |"):
        assert line in printed
    assert "of what the anchors' passes compute is padding" in printed
