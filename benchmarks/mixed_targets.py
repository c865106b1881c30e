"""How many rows get a target by MixSD (the base writes it, with and without the reference): docs/studies/real-model.md.

    cd real && python ../benchmarks/mixed_targets.py hs_codes --rows 16 --attempts 3

Of references and of refined answers; prints the counts, and some targets beside what they were made from.
"""

from __future__ import annotations

import argparse

from flows import paths
from raft_tasks.artifacts import read_rows
from raft_tasks.config import Mixing, load_config
from raft_tasks.errors import InputError
from raft_tasks.generation.mixing import mix_answers
from raft_tasks.generation.templates import template_text
from raft_tasks.schemas import TrainingPair
from raft_tasks.training.conversations import teacher_message

SHOWN = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("domain")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--attempts", type=int, default=11)
    parser.add_argument("--tokens", type=int, default=48)
    sizes = parser.parse_args()
    settings = Mixing(attempts=sizes.attempts, max_new_tokens=sizes.tokens)
    guide, base = teacher_message(template_text(settings.template)), load_config().base
    for name, method in (("references", "sft"), ("refined answers", "fused_sft")):
        rows = read_rows(paths.training(sizes.domain) / f"{method}.jsonl", TrainingPair)[: sizes.rows]
        given = {row.id: row.answer for row in rows}
        try:
            mixed = mix_answers(rows, base, settings, guide, 0)
        except InputError as error:
            if not str(error).startswith("mixing: none of"):
                raise
            mixed = []
        print(f"\n{name}: {len(mixed)} of {len(rows)} rows got a right target in {sizes.attempts} attempts", flush=True)
        for row in mixed[:SHOWN]:
            print(f"    {given[row.id]!r} -> {row.answer!r}", flush=True)


if __name__ == "__main__":
    main()
