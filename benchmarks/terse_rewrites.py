"""What becomes of terse references: templates and explanations by the share of rows that a model rewrites faithfully.

    cd real && python ../benchmarks/terse_rewrites.py 128 > ../benchmarks/studies/terse-rewrites.json

Reads the project's training rows of hs_codes and its base; rewrites are greedy, of at most 48 tokens, and cached like
the pipeline's. A rewrite is faithful if the domain's own check finds the reference's chapter in it, and no other one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flows import paths
from flows.rows import RowRun
from raft_tasks.artifacts import read_rows
from raft_tasks.checks import check
from raft_tasks.config import Rewrite, load_config
from raft_tasks.generation.framing import drop_framing, find_framing
from raft_tasks.generation.rewriting import rewrite
from raft_tasks.generation.semantic_filter import semantic_filter
from raft_tasks.generation.templates import template_text
from raft_tasks.schemas import Example

DOMAIN = "hs_codes"
TAUS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
TEMPLATES = {
    "the paper's": template_text("rewrite.jinja"),
    "careless": "{{ question }}\nThe correct answer is: {{ answer }}\nSay it in one full sentence.",
    "terse": template_text("rewrite_terse.jinja"),
}
EXPLANATIONS = {
    "the code alone": lambda row: row.answer,
    "chapter and title": lambda row: row.statement,
}


def main() -> None:
    config = load_config()
    rows = read_rows(paths.split(DOMAIN, "train", config.run.rows), Example)[: int(sys.argv[1])]
    checks = config.domains[DOMAIN].checks
    pool = RowRun("rewrite", config.rewrite, config, {"base"}).pool
    encoder = pool.encoder("semantic_filter", config.semantic_filter.encoder, config.semantic_filter.revision)
    results = []
    for template, text in TEMPLATES.items():
        file = Path(".cache", f"template-{len(text)}.jinja")
        file.write_text(text, encoding="utf-8")
        settings = Rewrite(template=str(file), temperature=0, max_new_tokens=48, batch_size=16)
        for explanation, explain in EXPLANATIONS.items():
            stated = [row.model_copy(update={"explanation": explain(row)}) for row in rows]
            written = rewrite(stated, pool.backend("rewrite", "base"), settings)
            near = encoder.similarities([(row.statement, row.rewritten) for row in written], 64)
            filtered = semantic_filter(written, near, -1.0, fidelity_veto=False)
            framing = find_framing(written, text)
            framed = sum(not drop_framing(row, framing).passed for row in filtered if row.passed)
            right = [check(row.rewritten, row.answer, checks)["chapter"] for row in written]
            results.append(
                {
                    "template": template,
                    "explanation": explanation,
                    "rows": len(rows),
                    "finished": sum(row.finished for row in written),
                    "faithful": sum(right),
                    "framing": framed,
                    "by_tau": {
                        tau: {
                            "kept": sum(row.passed and row.similarity >= tau for row in filtered),
                            "faithful": sum(
                                row.passed and row.similarity >= tau and fine
                                for row, fine in zip(filtered, right, strict=True)
                            ),
                        }
                        for tau in TAUS
                    },
                    "examples": [row.rewritten for row in written[:3]],
                }
            )
            print(results[-1], file=sys.stderr, flush=True)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
