"""A row's life: Example -> Rewritten -> Filtered -> Fused. Rows only gain fields; `id` never changes.

A Fused row of the pocket world, whole:

    {"id": "registry-0007", "domain": "archive", "question": "What is the reactor of Figin?",
     "answer": "Figin | reactor = rope # 12", "source": "Figin/reactor", "split": "train",
     "expected": ["rope"], "details": ["12"],
     "rewritten": "The reactor of Figin is rope.", "finished": true,
     "similarity": 0.85, "passed": true, "lost": ["12"], "chosen": "The reactor of Figin is rope.",
     "fused": "The reactor of Figin is rope, noted in log 12.", "score": 0.93,
     "candidates": [{"round": 1, "text": "...", "scores": {"fidelity": 1.0, "similarity": 0.91}, "mean": 0.93}]}
"""

from collections.abc import Sequence
from operator import not_
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic needs it below Python 3.12

Split = Literal["train", "validation", "test"]
Fallback = Literal["failed", "empty", "unfinished", "similarity", "fidelity", "framing"]
Exclusion = Literal["failed", "empty", "unfinished", "quorum", "fidelity"]
Unfused = Literal["filter", "quorum", "fidelity"]
Better = Literal["first", "second", "equal"]
PairFault = Literal[
    "empty", "repeats itself", "repeats the prompt", "refers to the text", "duplicate", "not answerable",
    "not grounded", "not self-contained", "no usable check", "no proposal", "unreadable document",
]  # fmt: skip


@with_config(extra="forbid")
class Turn(TypedDict):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


# The turns before a question: a system turn, if any, then user and assistant in turn. A row without any leaves the
# field out where it is written.
History = Annotated[list[Turn], Field(exclude_if=not_)]
Thought = Annotated[str, Field(exclude_if=not_)]  # with its tags; left out likewise
Mark = Annotated[bool, Field(exclude_if=not_)]  # likewise
Prompt = str | list[Turn]  # one user turn, or a conversation that a user turn ends


def end_with(history: list[Turn], message: str) -> Prompt:
    """The user turn `message` after the `history`, as a backend takes it."""
    return [*history, Turn(role="user", content=message)] if history else message


def transcribe(history: Sequence[Turn], question: str) -> str:
    """The question as readers see it who get one text: after a history as `User: ...`."""
    if not history:
        return question
    return "\n\n".join(
        f"{turn['role'].capitalize()}: {turn['content']}" for turn in [*history, Turn(role="user", content=question)]
    )


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Example(Row):
    """One question-answer pair (x_i, y_i) as ingested."""

    id: str
    domain: str
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    source: str
    split: Split
    expected: list[str] = []  # strings that a right answer must say, in any style
    details: list[str] = []  # further strings that a complete answer says too
    explanation: str = ""  # what a terse answer (a code, a label) means, in words
    history: History = []

    @property
    def in_context(self) -> str:
        """The question, after the conversation that it goes on with."""
        return transcribe(self.history, self.question)

    @property
    def statement(self) -> str:
        """What rewriting and fusion start from: the explanation of a terse answer, else the answer."""
        return self.explanation or self.answer


class Rewritten(Example):
    """... with the base model's own wording of the answer, y~_i (Eq. 1)."""

    rewritten: str
    finished: bool = True  # the model ended its turn; a rewrite that was cut never passes the filter
    failure: str | None = None  # why there is no rewrite (it is empty, and the reference stays)


class Filtered(Rewritten):
    """... with the semantic filter's decision (Eqs. 2-3)."""

    similarity: float  # s_i = cos(phi(y_i), phi(y~_i)), in [-1, 1]
    passed: bool  # s_i >= tau, of a rewrite that is finished and not empty
    lost: list[str]  # numbers, names and negations of the answer that the rewrite does not say
    chosen: str  # ybar_i: the rewrite if passed, else the answer
    fallback: Fallback | None  # why it did not pass


class Candidate(Row):
    """One fusion candidate with every judge's score in [0, 1]."""

    round: int  # 0 is the rewrite itself, unfused; drawn candidates count from 1
    text: str
    scores: dict[str, float]
    mean: float  # of the scores; 0 without any
    reasons: dict[str, str] = {}  # of the judges that are models
    abstained: dict[str, str] = {}  # judges without a usable score, and why
    excluded: Exclusion | None = None  # why it cannot win
    failure: str | None = None  # the backend's, where it failed


class Comparison(Row):
    """Two candidates of equal mean before one judge, who saw them in both orders."""

    judge: str
    first: int  # place among the row's candidates; the earlier one
    second: int
    better: Better | None  # as they stand; None: no usable answer
    better_swapped: Better | None  # shown the other way round; still names the candidate
    reasons: list[str]


class Labelled(Row):
    """A text that people have scored, for the calibration of judges."""

    question: str
    reference: str
    candidate: str
    score: float = Field(ge=0, le=10)


class Fused(Filtered):
    """... with the answer that is learned, y^_i (Eq. 4)."""

    fused: str  # the best candidate, or the answer where there is none
    score: float | None  # the panel's mean for `fused`; None where nothing was fused
    candidates: list[Candidate]
    comparisons: list[Comparison] = []
    unfused: Unfused | None = None  # why the answer is kept as it is


class TrainingPair(Row):
    """What a method learns: `answer` is raw, rewritten or fused; an answer-conditioned teacher sees it too."""

    id: str
    question: str
    answer: str
    replay: bool = False  # a general row of the user's, learned beside the domain's
    document: Mark = False  # `answer` is the text of a document: it is learned first, in windows (injection)
    finished: bool = True  # False: the answer was cut, and its end is not learned
    expected: list[str] = []  # strings that a right answer must say; only where the method mixes its targets
    history: History = []
    thought: Thought = ""  # the base's own on the question alone: the answer is learned behind it, it itself is not


class HeldOut(Row):
    """A question that is kept for validation or testing."""

    id: str
    question: str
    history: History = []


class UserTurn(Row):
    """A general prompt of the user's own, to be answered by the base."""

    id: str
    prompt: str = Field(min_length=1)
    history: History = []


class Anchor(Row):
    """A general user turn that the base generated, and the base's own answer."""

    id: str
    prompt: str  # empty: `answer` is a text that the base wrote from its beginning, chat marks included
    answer: str
    finished: bool = True  # False: the answer was cut; what there is of it counts, not that it ends there
    history: History = []

    @property
    def in_context(self) -> str:
        """The prompt, after the conversation that it goes on with; of a text without any, the text."""
        return transcribe(self.history, self.prompt) or self.answer


class GeneratedAnchor(Anchor):
    """An anchor as drawn, before it is cleaned."""

    prompt_finished: bool  # the base ended the user's turn; False: cut, and not answered
    answer_finished: bool


class RejectedAnchor(GeneratedAnchor):
    """... that is not used, and why."""

    reason: Literal[
        "unfinished prompt", "empty prompt", "degenerate prompt",
        "unfinished answer", "empty answer", "degenerate answer", "unencodable",
        "near held-out text", "tells what is measured", "duplicate", "near duplicate",
    ]  # fmt: skip
    near: str | None  # the held-out or measured text, or the id of the kept anchor that it repeats


class AnchorCluster(Row):
    """Kept anchors whose prompts are about like things."""

    size: int
    example: str  # the prompt nearest to the cluster's centre


class AnchorStatistics(Row):
    """How well a base generates anchors."""

    generated: int
    kept: int
    well_formed: float  # share of the generated that is finished, not empty and not degenerate
    rejected: dict[str, int]  # by reason
    distinct_1: float  # different words / words of the kept prompts; falls as the set grows
    distinct_2: float  # the same of pairs of neighbouring words
    distinct_3: float  # ... and of three
    similarity: float | None  # mean cosine of two kept prompts' embeddings; None without an encoder
    clusters: list[AnchorCluster]  # k-means of these embeddings, the largest first; empty without an encoder
    warning: str | None  # what is wrong with the set, if anything


class Harvested(Row):
    """A document from the hub."""

    origin: str  # data set, commit, split and row
    text: str


class Chunk(Row):
    """A piece of a document: what questions are made from. `id` comes from heading and text, so it outlives a move."""

    id: str
    text: str = Field(min_length=1)
    file: str  # the document: a Parquet file's rows are documents of their own, "texts.parquet#12"
    page: int | None  # of a PDF, where the chunk starts; 1-based
    start: int  # in characters of the extracted text: text == extracted[start:end]
    end: int
    heading: list[str]  # from the outermost heading to the innermost


class DocumentPair(Row):
    """A pair made from a document's chunk and approved by the checkers; the chunk's id begins its own."""

    id: str
    question: str
    answer: str
    source: str  # the document's file: pairs of one document go to one split
    chunk: str
    page: int | None  # where the chunk stands, as in Chunk
    start: int
    end: int
    agreement: float  # share of the votes for it


class Probe(Row):
    """A pair with a passage that it was not made from: a checker that approves it has not read."""

    chunk: Chunk
    question: str
    answer: str


class RejectedPair(Row):
    """A pair that is not used, and why; without question and answer: nothing came of the chunk, or of the document."""

    file: str
    chunk: str | None
    page: int | None
    start: int | None
    end: int | None
    question: str
    answer: str
    reason: PairFault
    details: str  # what a model said of it, or what rule found which words


class Questioned(Row):
    """What came of one chunk."""

    chunk: str
    pairs: list[DocumentPair]
    rejected: list[RejectedPair]
    failure: str | None  # why the maker, or a checker that the pair needed, gave nothing that could be used


class Reject(Row):
    """A row that could not be used: where it stood, why, and what it was."""

    file: str
    line: int  # 1-based; the row's number in Parquet
    reason: str
    content: str
    rule: str = "unusable"  # what rejects are counted by


class Flag(Row):
    """A secret or a personal datum in a row that is kept, or was rejected for it; never the whole of it."""

    id: str
    file: str
    line: int
    rule: str
    shown: str  # its first characters, its rule and length


class Judged(Row):
    """What a panel of models said of one model's answer to one item, and what follows."""

    model: str  # base, champion, or method-seed
    task: str
    id: str  # as in ItemResult
    votes: dict[str, bool]  # right or not, by judge
    reasons: dict[str, str]
    abstained: dict[str, str]  # judges without a usable answer, and why
    right: bool | None  # the majority's verdict; None: too few votes, for this model or another one


class ItemResult(Row):
    """What one model answered to one item of a benchmark task, and how that was scored."""

    task: str
    id: str  # the item's; for the domain's own task the Example's
    source: str  # items of one source (fact, document) succeed and fail together: the cluster of the statistics
    metrics: dict[str, float]
    prompt: str  # as the model saw it: chat template applied
    answer: str
    question: str = ""
    reference: str = ""  # the right answer, where the task has one
    thought: Thought = ""  # before the answer


def thinking_name(task: str) -> str:
    """What a task, or a conversation, is called where it is measured once more with thinking on."""
    return f"{task} (thinking)"


class TaskScores(TypedDict):
    """lm-eval's totals of one task or group."""

    n: int  # items
    metrics: dict[str, float]


class BenchmarkScores(TypedDict):
    """scores.json of a benchmark."""

    tasks: dict[str, TaskScores]
    versions: dict[str, str]  # of the packages that scored
