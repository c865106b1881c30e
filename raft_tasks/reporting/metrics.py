"""The schema of metrics.json.

Per domain and method there are measures: "domain_acc", "domain_complete" (every detail too, or all checks), one for
each check but the first, which is "domain_acc" (of hs_codes "domain_heading"), "domain_judged" (the judges' verdict),
"general" (plain average of the general tasks) and each general task by its name. Scores are shares.
"""

from typing import Any, NotRequired, TypedDict

from raft_tasks.evaluation.outcomes import THOUGHT_METRICS
from raft_tasks.evaluation.statistics import Verdict

PerSeed = dict[str, Any]  # {"seed": int or None, measure: score}


def less_is_better(measure: str) -> bool:
    """Whether a measure counts what should not be: thoughts that were cut."""
    return THOUGHT_METRICS[1] in measure


class Interval(TypedDict):
    estimate: float
    low: float | None  # both ends are None where the items of a single source give no idea of the variation
    high: float | None


class Score(Interval):
    n_items: int
    n_sources: int
    n_seeds: int
    over: str  # what the interval lets vary: "items and seeds" or "items"


class Change(Score):
    verdict: Verdict


class FlipTest(TypedDict):
    """Items lost and won against another model; None where a task's items are neither right nor wrong."""

    lost: float | None  # mean over seeds
    won: float | None
    p: float | None  # McNemar's exact test over sources
    p_per_seed: list[float] | None
    p_holm: float | None  # corrected for the tasks of a method


class Degradation(FlipTest):
    """The base against a trained model on one task."""

    asked: int
    right_before: int
    lost_items: dict[str, int] | None  # id -> number of seeds
    won_items: dict[str, int] | None
    detectable_drop: float | None  # the smallest true drop that would show with a power of 80 %


class Training(TypedDict):
    """Means over seeds."""

    steps: float
    seconds: float
    relative_l2: float  # before a merge
    relative_l2_per_seed: list[float]
    kl_weight_at_max: NotRequired[float]  # share of the steps at which the KL weight is at its bound
    thoughts: NotRequired[float]  # of the base, behind which rows were learned, where it thinks
    unfinished_thoughts: NotRequired[float]  # of them, those that were cut


class Merge(TypedDict):
    """What was merged after training, of one seed; scores {"domain", "general"} on validation items."""

    seed: int
    kind: str
    coefficient: float
    relative_l2: float
    bound_met: bool | None
    base: dict[str, float] | None
    merged: dict[str, float] | None
    unmerged: dict[str, float] | None


class MethodMetrics(TypedDict):
    scores: dict[str, Score]  # by measure, as are all changes and shares below
    per_seed: NotRequired[list[PerSeed]]
    against_reference: NotRequired[dict[str, Change]]  # this method minus plain SFT
    share_of_reference: NotRequired[dict[str, Score | None]]  # this method / plain SFT
    candidate_against_it: NotRequired[dict[str, Change]]  # RAFT minus this method
    against_base: NotRequired[dict[str, Change]]
    retention: NotRequired[dict[str, Score | None]]  # this method / base, of the general measures, but for cut thoughts
    recovered_fraction: NotRequired[dict[str, Score | None]]  # of plain SFT's loss: 0 as much lost, 1 nothing lost
    degradation: NotRequired[dict[str, Degradation]]  # by task, as below
    flips_against_reference: NotRequired[dict[str, FlipTest]]
    training: NotRequired[Training]
    merge: NotRequired[list[Merge]]  # one per seed; empty where nothing is merged
    analysis: NotRequired[dict[str, Any]]  # docs/guides/analysis.md, averaged over seeds


class FrontierPoint(TypedDict):
    method: str
    setting: str | None  # of a sweep's point: "learning rate 0.001"
    line: str | None  # the swept key: points of one key are joined
    domain_acc: Interval
    general: Interval
    best: bool  # no other point is at least as good on both axes and better on one


class Lengths(TypedDict):
    """Words per answer, of "reference" and "target"."""

    mean: dict[str, float]
    edges: list[float]
    counts: dict[str, list[int]]


class JudgeScores(TypedDict):
    scored: int
    abstained: int
    mean: float | None  # score of all candidates
    accepted: float | None
    rewrites: float | None  # mean score
    chosen: float | None  # mean score of the selected answers


class Refinement(TypedDict):
    rows_in: int
    rows_rejected: int
    rows_left_out: int  # by the domain's limit
    rejects: dict[str, int]  # by rule
    flags: dict[str, int]
    questions: dict[str, Any] | None  # pairs made from documents; None where there are none
    rows_train: int
    rows_test: int
    rewrites_unfinished: int
    rewrites_passed: int
    share_passed: float
    passed_with_lost_facts: int
    tau: float
    mean_similarity: float
    similarity_edges: list[float]
    similarity_counts: list[int]
    fused_changed: int
    share_fused_changed: float | None
    mean_fusion_score: float | None
    outcomes: dict[str, int]
    lengths: Lengths
    judges: dict[str, JudgeScores]
    agreement: dict[str, Any]  # evaluation/agreement.py
    calibration: dict[str, Any] | None
    comparisons: dict[str, dict[str, Any]]  # judge -> pairs, unusable, consistent


class ScoredModels(TypedDict):
    methods: dict[str, MethodMetrics]  # by method, the base among them
    frontier: list[FrontierPoint]


class DomainMetrics(ScoredModels):
    measures: dict[str, list[list[str]]]  # measure -> the [task, metric] pairs that it averages
    refinement: NotRequired[Refinement]  # not in a comparison


class OverallMetrics(ScoredModels):
    domains: list[str]
    measures: list[str]


class Comparison(TypedDict):
    """metrics.json of `raft compare`."""

    confidence: float
    models: dict[str, list[str]]  # name -> what it was called on the command line, one entry per seed
    seeds: list[int]
    reference: str | None
    domains: dict[str, DomainMetrics]


class Metrics(TypedDict):
    """reports/metrics.json."""

    confidence: float
    seeds: list[int]
    model: dict[str, Any]  # identity of the base model
    reference: str | None  # plain SFT
    candidate: str | None  # RAFT
    same_target_without_teacher: list[str]
    anchored: str | None
    overall: OverallMetrics
    domains: dict[str, DomainMetrics]
    anchors: dict[str, dict[str, Any]]  # AnchorStatistics
