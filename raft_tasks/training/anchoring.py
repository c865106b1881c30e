"""The third term of the loss: the student held to the base on general turns that the base invented and answered.

    L_anchor = mean over the step's answer positions of KL(base || student), both restricted to the base's top K

(temperature 1, no factor T^2), or the cross-entropy of the sampled answers: L = L_SFT + lambda L_KL + w L_anchor. What
the base says at these positions never changes, so it is computed once, for every training, and kept on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from raft_tasks.artifacts import atomic_file, read_rows, write_rows
from raft_tasks.config import AnchorLoss
from raft_tasks.errors import InputError
from raft_tasks.schemas import Anchor, TrainingPair
from raft_tasks.training.batches import steps_of_epoch
from raft_tasks.training.conversations import ConversationError, Encoded, encode_pairs
from raft_tasks.training.losses import TopK, lean_top_k
from raft_tasks.training.scoring import completion_states, output_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS, KEPT = "anchors.jsonl", "base.safetensors"  # of a set's folder


class AnchorError(InputError):
    """Anchors that cannot be used; the message says what to do."""


class Kept(NamedTuple):
    """What the base says at the answer positions of all anchors, one anchor after the other (P positions)."""

    ids: torch.Tensor  # [P, K] int32, its most likely tokens
    logits: torch.Tensor  # [P, K] float16
    lengths: torch.Tensor  # [anchors] int32, positions of each: its answer's tokens, the end of the turn included


def encode_anchors(
    anchors: Sequence[Anchor], tokenizer: PreTrainedTokenizerBase, max_length: int, system: str | None
) -> list[Encoded]:
    """Anchors as token ids, like training pairs.

    Raises:
        ConversationError: naming anchors that do not fit or hold special tokens.
    """
    pairs = [TrainingPair(id=anchor.id, question=anchor.prompt, answer=anchor.answer) for anchor in anchors]
    return encode_pairs(pairs, tokenizer, max_length, system=system)


def is_encodable(anchor: Anchor, tokenizer: PreTrainedTokenizerBase, max_length: int, system: str | None) -> bool:
    """Whether `encode_anchors` takes the anchor."""
    try:
        encode_anchors([anchor], tokenizer, max_length, system)
    except ConversationError:
        return False
    return True


def keep_top_k(base: PreTrainedModel, rows: Sequence[Encoded], k: int, batch_size: int) -> Kept:
    """The base's top K at every answer position, rows of like length at a time. No [P, V] tensor is made.

    float16 keeps a logit to within 1 part in 2,000; shifted to a maximum of 0, where the likely tokens are, that is
    far below what sampling noise does to the loss.
    """
    head = output_head(base)
    order = sorted(range(len(rows)), key=lambda row: -(len(rows[row].prompt) + len(rows[row].answer)))
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        answers = [rows[row].answer for row in batch]
        with torch.no_grad():
            hidden = completion_states(base, [rows[row].prompt for row in batch], answers)
            top = lean_top_k(hidden, head, k)
        logits = (top.logits - top.logits.amax(-1, keepdim=True)).half().cpu()
        parts = zip(top.ids.cpu().split([*map(len, answers)]), logits.split([*map(len, answers)]), strict=True)
        found |= dict(zip(batch, parts, strict=True))
    return Kept(
        torch.cat([found[row][0] for row in range(len(rows))]),
        torch.cat([found[row][1] for row in range(len(rows))]),
        torch.tensor([len(row.answer) for row in rows], dtype=torch.int32),
    )


def write_anchors(
    folder: Path,
    anchors: Sequence[Anchor],
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    system: str | None,
    k: int,
    batch_size: int,
) -> None:
    """A set as trainings read it, in the existing `folder`: the anchors, and the base's top K at their answers.

    Raises:
        ConversationError: as `encode_anchors`.
    """
    write_rows(folder / ROWS, anchors)
    if anchors:
        rows = encode_anchors(anchors, tokenizer, base.config.get_text_config().max_position_embeddings, system)
        write_kept(folder / KEPT, keep_top_k(base, rows, k, batch_size))


def write_kept(path: Path, kept: Kept) -> None:
    from safetensors.torch import save_file

    with atomic_file(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in kept._asdict().items()}, temporary)


def read_kept(path: Path, rows: Sequence[Encoded]) -> Kept:
    """What `write_kept` wrote, if it belongs to these anchors as this tokenizer encodes them.

    Raises:
        AnchorError: it does not.
    """
    from safetensors.torch import load_file

    if not path.exists():
        raise AnchorError(f"{path} is not there; run `dvc repro` (or `dvc pull`) to get it")
    kept = Kept(**load_file(path))
    if kept.lengths.tolist() != [len(row.answer) for row in rows]:
        raise AnchorError(
            f"{path} was made for other anchors or another tokenizer: it has {len(kept.lengths)} anchors with "
            f"{int(kept.lengths.sum())} positions, these are {len(rows)} with {sum(len(row.answer) for row in rows)}; "
            "run the stage `anchors` anew"
        )
    return kept


def load_anchors(
    folder: Path | None,
    hold: AnchorLoss,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    system: str | None,
    seed: int,
) -> AnchorBatches:
    """The anchors of the set in `folder` as a method's training goes through them.

    Raises:
        AnchorError, ConversationError: the set is not there or cannot be used.
    """
    if folder is None:
        raise AnchorError(f"the method is held to the anchors {hold.set!r}, and their folder is not given")
    rows = encode_anchors(read_rows(folder / ROWS, Anchor), tokenizer, max_length, system)
    kept = read_kept(folder / KEPT, rows) if hold.loss == "kl" and hold.logits == "stored" else None
    return AnchorBatches(rows, kept, hold.batch, seed)


class AnchorBatches:
    """The anchors of every optimiser step: like lengths together, each anchor as often as any other, by the seed.

    Args:
        rows: all anchors.
        kept: the base's top K at their answers; None where a teacher says it, or nobody needs it (cross-entropy).
        batch_size: anchors per optimiser step.
        seed: equal ones give equal batches, so a resumed training goes on with the ones it would have had.
    """

    def __init__(self, rows: Sequence[Encoded], kept: Kept | None, batch_size: int, seed: int) -> None:
        if batch_size > len(rows):
            raise AnchorError(f"got {len(rows)} anchors, expected at least anchors.batch = {batch_size}; invent more")
        self.rows, self.kept, self.batch_size, self.seed = rows, kept, batch_size, seed
        self.lengths = [len(row.prompt) + len(row.answer) for row in rows]
        self.per_pass = len(rows) // batch_size  # a short last batch would weigh its anchors more
        if kept is not None:
            self.starts = [0, *kept.lengths.cumsum(0).tolist()]

    def at(self, step: int) -> list[int]:
        """The anchors of an optimiser step (0, 1, ...)."""
        number, within = divmod(step, self.per_pass)
        full = (
            batch
            for batch in steps_of_epoch(self.lengths, self.batch_size, self.seed, number, grouped=True)
            if len(batch) == self.batch_size
        )
        return [*full][within]

    def taught(self, anchors: Sequence[int], device: torch.device) -> TopK | None:
        """The base's top K at the answers of these anchors, in their order, as far as it was kept; no mass, no tail."""
        if self.kept is None:
            return None
        where = torch.cat([torch.arange(self.starts[row], self.starts[row + 1]) for row in anchors])
        ids, logits = (tensor[where].to(device) for tensor in (self.kept.ids, self.kept.logits))
        return TopK(ids, logits.float(), logits.new_zeros(0), None)
