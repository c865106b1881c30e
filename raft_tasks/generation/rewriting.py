"""Self-conditioned rewriting (Eq. 1): the base model says the reference answer in its own words."""

from raft_tasks.config import Rewrite
from raft_tasks.generation.backend import Backend
from raft_tasks.generation.templates import render
from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import Example, Rewritten, end_with
from raft_tasks.seeds import derive_seed


def rewrite(rows: list[Example], backend: Backend, settings: Rewrite) -> list[Rewritten]:
    """Draw y~_i ~ p_theta(. | x_i, y_i) for every row; a row's rewrite does not depend on the rows beside it.

    The request ends the row's conversation, where it has a history.

    A rewrite that was cut at `max_new_tokens` is kept for the record, marked as not `finished`; it, like an empty
    one, never passes the semantic filter. Where the model gave none, the row says why.
    """
    completions = backend.generate(
        [end_with(row.history, render(settings.template, question=row.question, answer=row.statement)) for row in rows],
        SamplingParams(settings.temperature, settings.top_p, settings.max_new_tokens, settings.batch_size),
        [derive_seed(settings.seed, "rewrite", row.id) for row in rows],
    )
    return [
        Rewritten(
            **dict(row),
            rewritten=completion.text.strip(),
            finished=completion.finished,
            failure=str(completion.failure) if completion.failure else None,
        )
        for row, completion in zip(rows, completions, strict=True)
    ]
