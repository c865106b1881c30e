"""The README.md that a trained model carries."""

import json

from raft_tasks.artifacts import digest
from raft_tasks.config import Method
from raft_tasks.training.job import TrainingJob
from raft_tasks.training.licence import read_licence
from raft_tasks.training.preparation import TrainingData

CROSS_ENTROPIES = {
    "none": "mean token cross-entropy of the answers",
    "dft": "mean token cross-entropy of the answers, each token weighted by its probability (DFT)",
    "eaft": "mean token cross-entropy of the answers, each token weighted by the entropy there (EAFT)",
    "talr": "mean token cross-entropy of the answers, each token weighted by p^(1/tau), at least 0.01 (TALR)",
}
TEACHERS = {
    None: "none",
    "plain": "the frozen base model, same prompt",
    "answer_conditioned": "the frozen base model, which also sees the answer",
}
CARD = """---
library_name: transformers
pipeline_tag: text-generation
{licence_lines}base_model: {base}
tags: [raft, domain-adaptation, knowledge-distillation]
---

# {base}, taught a domain

| | |
|---|---|
| base model | `{base}`, revision `{revision}` |
| licence | {licence} |
| system prompt | {system} |
| thinking | {thinking} |
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
"""


def model_card(job: TrainingJob, data: TrainingData) -> str:
    """Markdown with Hugging Face front matter; equal trainings give equal text."""
    model, method = job.model, job.method
    sections = {
        "distillation": method.distillation,
        "target_kl": method.target_kl,
        "mixing": method.mixing,
        "injection": method.injection,
        "replay": method.replay,
        "anchors": method.anchors,
        "lora": method.lora,
        "osf": method.osf,
    }
    settings = {"train": job.train.model_dump() | {"learning_rate_scale": method.learning_rate_scale}}
    settings |= {name: section.model_dump() for name, section in sections.items() if section is not None}
    stated = read_licence(model)
    mixed = ", rewritten token by token by the base (MixSD)" if method.mixing else ""
    return CARD.format(
        licence_lines="".join(f"{key}: {json.dumps(value)}\n" for key, value in stated.items()),
        licence=" ".join(stated.values()) or "not known here: see the base model's own card",
        base=model.path,
        revision=model.revision,
        thinking="as the request says (`enable_thinking`)" if model.thinking == "both" else model.thinking,
        system="the template's own" if model.system is None else f"`{model.system!r}`",
        answers=f"{method.target}{mixed}{', after the texts of the documents' if method.injection else ''}",
        teacher=TEACHERS[method.teacher],
        balance=None if method.distillation is None else method.distillation.kl_weight,
        trained=trained_weights(method),
        rows=len(data.rows),
        answer_tokens=sum(len(row.completion_ids) for row in data.rows),
        data_digest=digest([job.pairs, job.documents] if job.documents else [job.pairs]),
        base_digest=data.base_digest,
        seed=job.seed,
        loss=" + ".join(loss_terms(method)),
        settings=json.dumps(settings, indent=2),
    )


def trained_weights(method: Method) -> str:
    if method.osf is not None:
        return f"of each linear layer all but {method.osf.preserved:.0%} of the singular directions (OSF)"
    if method.lora is not None:
        return f"a LoRA adapter of rank {method.lora.rank}"
    return "all"


def loss_terms(method: Method) -> list[str]:
    terms = [CROSS_ENTROPIES[method.token_weighting]] if method.sft else []
    if method.target_kl is not None:
        terms.append(f"{method.target_kl.weight:g} x KL(base || student) at the answers' tokens, top-K (ASFT)")
    if method.distillation is not None:
        terms.append("lambda x KL(teacher || student) on the student's own samples, top-K, T^2")
    if method.replay is not None:
        terms.append("r x mean token cross-entropy of general rows, r = share / (1 - share)")
    if method.anchors is not None:
        measure = "KL(base || student), top-K, at" if method.anchors.loss == "kl" else "cross-entropy of"
        terms.append(f"w x {measure} the base's answers to general prompts that it generated")
    return terms
