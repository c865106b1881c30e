"""A row that `distill` would refuse is a reject of `ingest`, with its reason: before any call is paid."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from chat_models import chat_tokenizer

from raft_tasks.artifacts import write_rows
from raft_tasks.config import Chat, Config, Curve, Domain, Hygiene, SplitBySource, Train, load_config
from raft_tasks.errors import InputError
from raft_tasks.ingest import asking_check, ingest_domain, learning_check
from raft_tasks.schemas import Example, Reject

ROOT = Path(__file__).resolve().parents[1]
ANSWER = "The reactor of Figin is rope."


def config(methods: list[str], **train: object) -> Config:
    values = load_config(ROOT / "params.yaml")
    base = values.base.model_copy(update={"path": str(ROOT / "models" / "pocket-base")})
    return values.model_copy(
        update={
            "run": values.run.model_copy(update={"methods": methods}),
            "train": values.train.model_copy(update=train),
            "models": {"base": base},
            "ingest": values.ingest.model_copy(update={"max_rejected": 1.0}),
        }
    )


def example(question: str = "What is the reactor of Figin?", answer: str = ANSWER) -> Example:
    return Example(id="x", domain="archive", question=question, answer=answer, source="x", split="train")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("rope <|im_end|> lamp", r"special token(s) ['<|im_end|>']"),
        ("<think>Hm.</think>rope", "the answer holds a think block"),
        ("qwertz", "the tokenizer does not know 1 token(s) of the answer: 'qwertz'"),
        ("rope " * 300, "prompt + answer has "),
    ],
)
def test_an_answer_that_no_method_could_learn(answer: str, reason: str) -> None:
    check = learning_check(config(["sft"]))
    assert check(example()) is None
    assert reason in str(check(example(answer=answer)))


def test_every_method_of_the_run_decides() -> None:
    question = "What is the reactor of Figin? " * 29
    assert learning_check(config(["sft"], max_length=256))(example(question)) is None
    found = learning_check(config(["sft", "raft"], max_length=256))(example(question))
    assert "rollout has" in str(found)


def test_what_is_cut_is_no_reject_and_what_the_base_cannot_read_is() -> None:
    long = example(answer="rope " * 300)
    assert learning_check(config(["sft"], too_long="cut"))(long) is None
    assert learning_check(config(["sft"], max_length=400))(long) is None
    assert learning_check(config(["sft"], max_length=9000))(example(answer="rope " * 600)) is not None  # base: 512


def test_such_rows_are_rejects_and_held_out_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "id": f"{split}{n}",
            "question": f"What is {split} log {n}?",
            "answer": answer,
            "source": f"{split}{n}",
            "split": split,
        }
        for split in ("train", "test")
        for n, answer in enumerate([ANSWER, "rope <|im_end|> lamp"])
    ]
    for row in rows:
        row |= {"expected": [], "details": []}
    folder = tmp_path / "data" / "archive"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "work").mkdir()
    with closing(ingest_domain.fn("archive", config(["sft"]), ROOT, tmp_path / "work")) as work:
        decisions = list(work)
    assert [row.id for row in decisions if isinstance(row, Example)] == ["train0", "test0", "test1"]
    (reject,) = (row for row in decisions if isinstance(row, Reject))
    assert (reject.rule, reject.line) == ("not learnable", 2)
    assert "special token" in reject.reason


def talk(name: int, *answers: str) -> list[dict[str, str]]:
    turns = [text for number, answer in enumerate(answers) for text in (f"What is log {name} {number}?", answer)]
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]


def of_talks(folder: Path, talks: list[list[dict[str, str]]], max_rejected: float) -> list[Example | Reject]:
    """What becomes of conversations, each answer a row."""
    whole, split = config(["sft"]), SplitBySource(by="source", validation=0.0, test=0.5)
    hygiene = Hygiene(near_duplicates=None, contamination=None)
    domain = Domain(files=["rows.jsonl"], chat=Chat(conversation="all"), split=split, hygiene=hygiene)
    ingest = whole.ingest.model_copy(update={"max_rejected": max_rejected})
    (folder / "rows.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in talks))
    (folder / "work").mkdir()
    settings = whole.model_copy(update={"domains": {"archive": domain}, "ingest": ingest})
    with closing(ingest_domain.fn("archive", settings, ROOT, folder / "work")) as work:
        return list(work)


def test_a_lost_conversation_is_one_of_the_files_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its turns are not counted, while those of the others are: 5 of 305 rows, but 5 of 35 conversations."""
    monkeypatch.chdir(tmp_path)
    talks = [talk(n, *["rope"] * 10) for n in range(30)] + [talk(n, "<think>rope</think> rope") for n in range(30, 35)]
    with pytest.raises(InputError, match=r"^5 of 35 rows of the files cannot be used, .*0.02(?s:.*):31: the answer"):
        of_talks(tmp_path, talks, max_rejected=0.02)


def test_a_held_out_row_that_the_benchmark_could_not_ask_is_a_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    talks = [talk(n, "rope") for n in range(20)] + [talk(n, "rope " * 600, "rope") for n in range(20, 40)]
    decisions = of_talks(tmp_path, talks, max_rejected=1.0)
    reasons = {row.rule: row.reason for row in decisions if isinstance(row, Reject)}
    assert set(reasons) == {"not askable", "not learnable"}
    assert "of the 512 that the base reads 472 are left beside benchmark.max_new_tokens" in reasons["not askable"]
    assert {len(row.history) for row in decisions if isinstance(row, Example)} == {0}


def test_a_held_out_prompt_leaves_room_for_thought_and_answer() -> None:
    whole, tokenizer = config(["sft"]), chat_tokenizer("smollm3")

    def problem(model: dict[str, object], max_new_tokens: int, history: Sequence[dict[str, str]] = ()) -> str | None:
        settings = whole.model_copy(
            update={
                "models": {"base": whole.base.model_copy(update=model)},
                "benchmark": whole.benchmark.model_copy(update={"max_new_tokens": max_new_tokens}),
            }
        )
        return asking_check(settings, tokenizer)(example().model_copy(update={"history": list(history)}))

    both = {"thinking": "both", "thought_tokens": 200}
    assert problem({}, 300) is None
    assert problem({"thinking": "off", "thought_tokens": 200}, 300) is None
    assert "the held-out prompt has" in str(problem(both, 300))
    assert problem(both, 100) is None
    for told in ("/think", "/no_think"):
        assert "switches thinking" in str(problem(both, 100, [{"role": "system", "content": told}]))


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    broken = config(["sft"])
    gone = broken.base.model_copy(update={"path": str(tmp_path / "gone")})
    with pytest.raises(InputError, match=r"there is no folder .*gone"):
        learning_check(broken.model_copy(update={"models": {"base": gone}}))


def test_validation_rows_of_the_forgetting_curve(tmp_path):
    from flows.ingest import curve_rows

    rows = [
        Example(id=f"row-{n}", domain="d", question="?", answer="!", source="s", split="validation") for n in range(9)
    ]
    write_rows(tmp_path / "validation.jsonl", rows)
    drawn = curve_rows(tmp_path / "validation.jsonl", Train(curve=Curve(rows=4)))
    assert len(drawn) == 4
    assert {row.id for row in drawn} < {
        row.id for row in curve_rows(tmp_path / "validation.jsonl", Train(curve=Curve(rows=6)))
    }
    assert curve_rows(tmp_path / "validation.jsonl", Train()) == []
