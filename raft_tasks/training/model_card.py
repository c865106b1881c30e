"""The README.md that a trained model carries."""

from __future__ import annotations

import json

from raft_tasks.config import Method, Model, Train

CARD = """---
library_name: transformers
pipeline_tag: text-generation
base_model: {base}
tags: [raft, domain-adaptation, knowledge-distillation]
---

# {base}, taught a domain

| | |
|---|---|
| base model | `{base}`, revision `{revision}` |
| system prompt | {system} |
| learned answers | {answers} |
| teacher | {teacher} |
| balance of the two losses | {balance} |
| trained weights | {trained} |
| training pairs | {rows} ({answer_tokens} answer tokens) |
| data digest | `{data_digest}` |
| base weights digest | `{base_digest}` |
| seed | {seed} |

Loss: {loss}.

## Settings

```json
{settings}
```

## Scores

Not measured by training. The benchmark stage writes them beside this folder, the report compares them with the base.

## Use

Ask as a user turn through the chat template that the tokenizer carries; the model ends its turn with its own
end-of-turn token. It was trained with thinking switched off.
"""


def model_card(
    *, model: Model, method: Method, train: Train, seed: int, rows: int, answer_tokens: int,
    data_digest: str, base_digest: str,
) -> str:  # fmt: skip
    """Markdown with Hugging Face front matter; equal trainings give equal text."""
    settings = {"train": train.model_dump()}
    learned = {
        "none": "mean token cross-entropy of the answers",
        "dft": "mean token cross-entropy of the answers, each token weighted by its probability (DFT)",
        "eaft": "mean token cross-entropy of the answers, each token weighted by the entropy there (EAFT)",
    }[method.token_weighting]
    terms = [learned] if method.sft else []
    if method.distillation is not None:
        terms.append("lambda x KL(teacher || student) on the student's own samples, top-K, T^2")
        settings["distillation"] = method.distillation.model_dump()
    if method.replay is not None:
        terms.append("w x mean token cross-entropy of general rows, w = share / (1 - share)")
        settings["replay"] = method.replay.model_dump()
    if method.anchors is not None:
        what = "KL(base || student), top-K, at" if method.anchors.loss == "kl" else "cross-entropy of"
        terms.append(f"u x {what} the base's answers to general turns that it invented")
        settings["anchors"] = method.anchors.model_dump()
    trained = "all"
    if method.lora is not None:
        trained = f"a LoRA of rank {method.lora.rank}, merged here; by itself in the folder adapter"
        settings["lora"] = method.lora.model_dump()
    return CARD.format(
        base=model.path,
        revision=model.revision,
        system="the template's own" if model.system is None else f"`{model.system!r}`",
        answers=method.target,
        teacher={
            None: "none",
            "plain": "the frozen base model, same prompt",
            "answer_conditioned": "the frozen base model, which also sees the answer",
        }[method.teacher],
        balance=None if method.distillation is None else method.distillation.kl_weight,
        trained=trained,
        rows=rows,
        answer_tokens=answer_tokens,
        data_digest=data_digest,
        base_digest=base_digest,
        seed=seed,
        loss=" + ".join(terms),
        settings=json.dumps(settings, indent=2),
    )
