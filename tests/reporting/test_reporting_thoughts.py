"""A thought that was cut is a fault: fewer are better."""

import re

import pytest
from synthetic_artifacts import TASKS, collected, synthetic_config, write_artifacts

from raft_tasks.artifacts import read_rows, write_rows
from raft_tasks.reporting.measures import measure
from raft_tasks.reporting.origin import Origin
from raft_tasks.reporting.report import write_report
from raft_tasks.schemas import ItemResult

CUT = {"base": 6, "sft-0": 50, "fused_sft-0": 6, "raft-0": 40}  # thoughts of 60


@pytest.fixture
def study(tmp_path):
    """Of models that think when they answer the first general task."""
    config = synthetic_config(seeds=[0], methods=["sft", "fused_sft", "raft"])
    write_artifacts(tmp_path, config)
    for model, cut in CUT.items():
        file, items = tmp_path / "archive" / "benchmarks" / model / "items.jsonl", []
        for row in read_rows(file, ItemResult):
            if row.task == TASKS[0]:
                is_cut = int(row.id) < cut
                row.metrics.update(thought=float(not is_cut), unfinished_thought=float(is_cut))
            items.append(row)
        write_rows(file, items)
    return collected(tmp_path, config)


def test_cut_thoughts_are_neither_retained_nor_good(study, tmp_path):
    metrics = measure(study)
    raft = metrics["overall"]["methods"]["raft"]
    assert raft["scores"]["general_unfinished_thought"]["estimate"] == pytest.approx(40 / 60)
    assert raft["retention"]["general_thought"]["estimate"] == pytest.approx(20 / 54)
    assert "general_unfinished_thought" not in {**raft["retention"], **raft["recovered_fraction"]}
    write_report(study, metrics, Origin("abc1234", {}), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    table = re.search(r"RAFT against every other method</b>.*?</table>", page, re.DOTALL)[0]
    assert "positive: RAFT is better, of unfinished thoughts worse." in table
    rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
    heads = re.findall(r'<th scope="col".*?>(.*?)</th>', rows[0])[1:]
    colours = {
        re.search(r"</span>(.*?)</th>", row)[1]: dict(
            zip(heads, re.findall(r'<td class="number (\w+)">', row), strict=True)
        )
        for row in rows[1:]
    }
    assert colours["SFT"]["general unfinished thought"] == "up"  # RAFT cuts fewer
    assert colours["fused SFT"]["general unfinished thought"] == "down"
    assert colours["fused SFT"]["general thought"] == "down"
