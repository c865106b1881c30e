"""Hygiene on real text: databricks-dolly rows and IFEval's prompts, where they lie beside the checkout."""

import json
from pathlib import Path

import pytest
from qa import decided, domain

from raft_tasks.config import SplitBySource
from raft_tasks.schemas import Example, Reject
from raft_tasks.sources.contamination import BenchmarkIndex

DATA = Path(__file__).parents[3] / "shared" / "data"
DOLLY, IFEVAL = DATA / "dolly" / "dolly_2000.json", DATA / "ifeval" / "input_data.jsonl"
pytestmark = pytest.mark.skipif(not (DOLLY.exists() and IFEVAL.exists()), reason="the real texts are not there")


def test_what_real_text_repeats_is_found_and_little_else(tmp_path: Path) -> None:
    prompts = [json.loads(line)["prompt"] for line in IFEVAL.read_text(encoding="utf-8").splitlines()]
    index = BenchmarkIndex(((f"ifeval item {n}", prompt) for n, prompt in enumerate(prompts, start=1)), 0.5)
    rows = json.loads(DOLLY.read_text(encoding="utf-8"))
    pairs = [{"q": f"{row['instruction']}\n\n{row['input']}".strip(), "a": row["output"]} for row in rows]
    pairs += [{"q": f"Please do this. {prompt}", "a": "Done."} for prompt in prompts[:20]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    split = SplitBySource(by="source", validation=0.1, test=0.2, seed=0)
    what = domain(["rows.jsonl"], split=split, columns={"split": None}, near_duplicates=0.8, contamination=0.5)
    ingested = decided(tmp_path, what, index)
    found = list(ingested)
    ingested.close()
    rejects = [row for row in found if isinstance(row, Reject)]
    by_line = {row.line: row.reason for row in rejects}
    assert [by_line.get(line, "") for line in range(2001, 2021)] == [
        f"contamination: repeats ifeval item {n} (100% of its word 8-grams)" for n in range(1, 21)
    ]
    real = [row for row in rejects if row.line <= 2000 and row.rule != "too long"]
    assert any("repeats ifeval item 185" in row.reason for row in real)  # dolly quotes its passage
    assert any(row.rule == "near duplicate" for row in real)
    assert len(real) < 20
    assert len([row for row in found if isinstance(row, Example)]) + len(rejects) == len(pairs)
