"""A person's conversation with base and candidate, scripted: what transformers alone, told no option, would answer."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from flows.cli import app
from raft_tasks.chat import save_tokenizer
from raft_tasks.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "models" / "pocket-base"
TYPED = ["Hello", "", "What is the craft of Linin?", "/new", "What is the craft of Linin?"]
CONVERSATIONS = (TYPED[:1] + TYPED[2:3], TYPED[4:])
TOKENS = 40


def talk(*arguments, typed=TYPED):
    return CliRunner().invoke(app, ["chat", *arguments], input="".join(f"{line}\n" for line in typed))


def columns(output):
    """[(base's answer, candidate's)] of the printed tables."""
    answers, table = [], None
    for line in output.splitlines():
        if line.split() == ["base", "candidate"]:
            table = None
        elif set(line.strip()) == {"─"}:
            answers.append(table := ["", ""])
        elif table is not None:
            cells = line[:50], line[50:]
            answers[-1] = table = [f"{old} {new.strip()}".strip() for old, new in zip(table, cells, strict=True)]
    return [tuple(pair) for pair in answers]


def answer_alone(folder):
    """What a server's user reads: the folder's template, weights and generation config, and nothing of ours."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    answers = []
    for questions in CONVERSATIONS:
        turns = []
        for question in questions:
            turns.append({"role": "user", "content": question})
            prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
            ids = network.generate(**prompt, max_new_tokens=TOKENS)[0, prompt["input_ids"].shape[1] :]
            text = tokenizer.decode(ids, skip_special_tokens=True).strip()
            turns.append({"role": "assistant", "content": text})
            answers.append(" ".join(text.split()))
    return answers


@pytest.fixture
def candidate(tmp_path, monkeypatch):
    """The base, prompted otherwise."""
    monkeypatch.chdir(ROOT)
    shutil.copytree(BASE, tmp_path / "c")
    save_tokenizer(AutoTokenizer.from_pretrained(BASE), "What is the reactor of Figin?", tmp_path / "c")
    return tmp_path / "c"


def test_base_and_candidate_answer_as_their_folders_would_be_served(candidate):
    done = talk(str(candidate), "--max-tokens", str(TOKENS))
    assert done.exit_code == 0, done.output
    expected = list(zip(answer_alone(BASE), answer_alone(candidate), strict=True))
    assert columns(done.output) == expected
    assert len({answer for pair in expected for answer in pair}) > 3  # system prompt and history change the answers


def test_outside_of_a_project_the_base_is_named(candidate, monkeypatch):
    monkeypatch.chdir(candidate.parent)
    done = talk("c", "--base", str(BASE), "--max-tokens", "2", typed=["Hello"])
    assert done.exit_code == 0, done.output
    assert len(columns(done.output)) == 1
    assert "params.yaml is not there" in str(talk("c").exception)


def test_a_turn_that_does_not_fit_ends_no_conversation(candidate):
    done = talk(str(candidate), "--max-tokens", "500", typed=["Hello " * 40, "Hello"])
    (long, _), (short, _) = columns(done.output)
    assert "[no answer: " in long
    assert "/new begins" in long
    assert short
    assert "[no answer: " not in short


def test_a_cut_answer_says_so(candidate):
    ((base, _),) = columns(talk(str(candidate), "--max-tokens", "2", typed=["Hello"]).output)
    assert base.endswith("[not finished in 2 tokens]")


def test_a_model_that_is_not_there_is_named_before_a_person_types(candidate):
    done = talk("nowhere")
    assert isinstance(done.exception, InputError)
    assert "expected a folder with a model" in str(done.exception)
