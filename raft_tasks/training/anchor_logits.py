"""Anchors regularise the student towards the base model on prompts that the base generated and answered itself.

    L_anchor = mean over the step's answer positions of KL(base || student), both restricted to the base's top K

(temperature 1, no factor T^2), or the cross-entropy of the base's answers: L = L_SFT + lambda L_KL + w L_anchor. The
base's logits at these positions never change, so they are computed once, for every training, and stored. Replay of
self-generated text with a KL to the base is arXiv:2605.26097; docs/guides/anchors.md names the other sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from raft_tasks.artifacts import atomic_file, read_rows, write_rows
from raft_tasks.chat import text_beginning
from raft_tasks.config import AnchorLoss, TargetKl
from raft_tasks.errors import InputError
from raft_tasks.sampling import longest_first
from raft_tasks.schemas import Anchor, TrainingPair
from raft_tasks.training.batches import steps_of_epoch
from raft_tasks.training.completion_forward import completion_states, output_head
from raft_tasks.training.conversations import ConversationError, Encoded, Encoder
from raft_tasks.training.losses import TopK, chunked_top_k

ROWS, LOGITS = "anchors.jsonl", "base.safetensors"  # of a set's folder


class AnchorLogits(NamedTuple):
    """The base's logits at the answer positions of all anchors, one anchor after the other (P positions)."""

    ids: torch.Tensor  # [P, K] int32, its most likely tokens
    logits: torch.Tensor  # [P, K] float16
    lengths: torch.Tensor  # [anchors] int32, positions of each: its answer's tokens, the end of the turn included

    @classmethod
    def compute(cls, base: PreTrainedModel, rows: Sequence[Encoded], k: int, batch_size: int) -> AnchorLogits:
        """The base's top K at every answer position, rows of like length at a time. No [P, V] tensor is made.

        float16 keeps a logit to within 1 part in 2,000; shifted to a maximum of 0, where the likely tokens are, that
        is far below what sampling noise does to the loss.
        """
        head = output_head(base)
        parts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for batch in longest_first([row.length for row in rows], batch_size):
            answers = [rows[row].completion_ids for row in batch]
            with torch.no_grad():
                hidden = completion_states(base, [rows[row].prompt_ids for row in batch], answers)
                top = chunked_top_k(hidden, head, k)
            logits = (top.logits - top.logits.amax(-1, keepdim=True)).half().cpu()
            lengths = [*map(len, answers)]
            split = zip(top.ids.cpu().split(lengths), logits.split(lengths), strict=True)
            parts |= dict(zip(batch, split, strict=True))
        ids, kept = zip(*(parts[row] for row in range(len(rows))), strict=True)
        positions = torch.tensor([len(row.completion_ids) for row in rows], dtype=torch.int32)
        return cls(torch.cat(ids), torch.cat(kept), positions)

    def save(self, path: Path) -> None:
        from safetensors.torch import save_file

        with atomic_file(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in self._asdict().items()}, temporary)

    @classmethod
    def load(cls, path: Path, rows: Sequence[Encoded]) -> AnchorLogits:
        """What `save` wrote, if it belongs to these anchors as this tokenizer encodes them.

        Raises:
            InputError: it does not.
        """
        from safetensors.torch import load_file

        if not path.exists():
            raise InputError(f"{path} is not there; run `dvc repro` (or `dvc pull`) to get it")
        stored = cls(**load_file(path))
        if stored.lengths.tolist() != [len(row.completion_ids) for row in rows]:
            raise InputError(
                f"{path} was made for other anchors or another tokenizer: it has {len(stored.lengths)} anchors with "
                f"{int(stored.lengths.sum())} positions, expected {len(rows)} with "
                f"{sum(len(row.completion_ids) for row in rows)}; run the stage `anchors` again"
            )
        return stored

    def top_k_at(self, numbers: Sequence[int], device: torch.device) -> TopK:
        """Of the answers of the anchors (or rows) `numbers`, in their order; without mass and tail."""
        ends = self.lengths.cumsum(0).tolist()
        positions = torch.cat(
            [torch.arange(ends[number] - int(self.lengths[number]), ends[number]) for number in numbers]
        )
        ids, logits = (tensor[positions].to(device) for tensor in (self.ids, self.logits))
        return TopK(ids, logits.float(), logits.new_zeros(0), None)


class TargetLogits:
    """The base's top K at the answers of a training's own rows, for KL(base || student) there (config.TargetKl)."""

    def __init__(self, base: PreTrainedModel, rows: Sequence[Encoded], settings: TargetKl, batch_size: int) -> None:
        self.weight, self.numbers = settings.weight, {row.id: number for number, row in enumerate(rows)}
        self.stored = AnchorLogits.compute(base, rows, min(settings.top_k, len(output_head(base).weight)), batch_size)

    def top_k_at(self, rows: Sequence[Encoded], device: torch.device) -> TopK:
        return self.stored.top_k_at([self.numbers[row.id] for row in rows], device)


def encode_anchors(anchors: Sequence[Anchor], encoder: Encoder) -> list[Encoded]:
    """Anchors as token ids, like training pairs without a teacher; of a text without prompt every token counts as the
    answer's.

    Raises:
        ConversationError: naming anchors that do not fit or, where they have a prompt, hold special tokens.
    """
    pairs = [
        TrainingPair(
            id=anchor.id,
            question=anchor.prompt,
            answer=anchor.answer,
            finished=anchor.finished,
            history=anchor.history,
        )
        for anchor in anchors
        if anchor.prompt
    ]
    rows = iter(encoder(pairs) if pairs or not anchors else [])
    return [next(rows) if anchor.prompt else _encode_text(anchor, encoder) for anchor in anchors]


def _encode_text(anchor: Anchor, encoder: Encoder) -> Encoded:
    tokenizer, max_length = encoder.tokenizer, encoder.max_length
    ids = encoder.ids(anchor.answer)
    row = Encoded(anchor.id, [text_beginning(tokenizer)], ids, None)
    if not ids or tokenizer.unk_token_id in ids or row.length > max_length:
        raise ConversationError(
            f"{anchor.id}: got {row.length} tokens, {ids.count(tokenizer.unk_token_id)} of them unknown, of the text "
            f"{anchor.answer!r:.200}; expected 2 to {max_length} known ones. Lower anchors.*.answer_max_new_tokens, or "
            "raise train.max_length"
        )
    return row


def is_encodable(anchor: Anchor, encoder: Encoder) -> bool:
    """Whether `encode_anchors` takes the anchor."""
    try:
        encode_anchors([anchor], encoder)
    except ConversationError:
        return False
    return True


def write_anchors(
    folder: Path,
    anchors: Sequence[Anchor],
    base: PreTrainedModel,
    encoder: Encoder,
    k: int,
    batch_size: int,
) -> None:
    """A set as trainings read it, in the existing `folder`: the anchors, and the base's top K at their answers.

    Raises:
        ConversationError: as `encode_anchors`.
    """
    write_rows(folder / ROWS, anchors)
    if anchors:
        AnchorLogits.compute(base, encode_anchors(anchors, encoder), k, batch_size).save(folder / LOGITS)


def load_anchors(folder: Path | None, settings: AnchorLoss, encoder: Encoder, seed: int) -> AnchorBatches:
    """The anchors of the set in `folder` as a method's training uses them.

    Raises:
        InputError, ConversationError: the set is not there or cannot be used.
    """
    if folder is None:
        raise InputError(f"the method uses the anchor set {settings.set!r}, and got no folder of it")
    rows = encode_anchors(read_rows(folder / ROWS, Anchor), encoder)
    stored = settings.loss == "kl" and settings.logits == "stored"
    return AnchorBatches(rows, AnchorLogits.load(folder / LOGITS, rows) if stored else None, settings, seed)


class AnchorBatches:
    """The anchors of every optimiser step: like lengths together, each equally often on average, by the seed.

    Args:
        rows: all anchors.
        stored: the base's logits at their answers; None where a teacher computes them, or cross-entropy needs none.
        settings: of the method: the loss, anchors per optimiser step.
        seed: equal ones give equal batches, so a resumed training goes on with the ones it would have had.
    """

    def __init__(self, rows: Sequence[Encoded], stored: AnchorLogits | None, settings: AnchorLoss, seed: int) -> None:
        if settings.batch > len(rows):
            raise InputError(
                f"got {len(rows)} anchors, expected at least anchors.batch = {settings.batch}; generate more"
            )
        self.rows, self.stored, self.loss, self.seed = rows, stored, settings.loss, seed
        self.batch_size, self.lengths = settings.batch, [row.length for row in rows]
        self.per_epoch = len(rows) // settings.batch  # a short last batch would weigh its anchors more

    def at(self, step: int) -> list[int]:
        """The anchors of an optimiser step (0, 1, ...)."""
        epoch, number = divmod(step, self.per_epoch)
        batches = steps_of_epoch(self.lengths, self.batch_size, self.seed, epoch, grouped=True)
        return [batch for batch in batches if len(batch) == self.batch_size][number]
