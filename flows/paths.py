"""Where every artifact lies: the one place that names paths (dvc.yaml repeats them, a test compares)."""

from pathlib import Path

import raft_tasks

ARTIFACTS = Path("artifacts")
REPORTS = Path("reports")
SWEEPS = Path("sweeps")  # scores of experiments, kept in git: the report draws them
LOCK = Path("dvc.lock")
CHECKPOINTS = Path(".cache/checkpoints")  # keyed by content; not an artifact: removed once its training has finished
RESPONSES = Path(".cache/responses.sqlite")  # of models; keyed by content, so not an artifact either
TASKS = Path(".cache/tasks")  # results of chunks of rows; keyed by content too
GPU_CLAIMS = Path(".cache/gpus")  # which worker process has which GPU
BASE_STATES = Path(".cache/base_states")  # of the base on its own answers; the latest of each domain, under its key
NEAR_MISSES = Path(".cache/near_misses")  # candidates of the gate interpolated towards the base; not an artifact
TRACKING = Path(".cache/tensorboard")  # curves for `tensorboard --logdir`; not an artifact: DVC has steps.csv
BENCHMARK_TASKS = Path(raft_tasks.__file__).parent / "evaluation" / "tasks"
PACKAGED_BENCHMARKS = BENCHMARK_TASKS.parent / "mirrors"  # data that the package brings
BENCHMARK_DATA = Path("data/benchmarks")  # mirrors
NLTK_DATA = BENCHMARK_DATA / "nltk_data"

CHAMPIONS = Path("champions")
HELD_OUT = ARTIFACTS / "held_out"  # questions that no anchor may come near
ANCHORS = ARTIFACTS / "anchors"
RESOLVED = ARTIFACTS / "resolved"  # what each stage depends on beside its data
MODELS = ARTIFACTS / "models"  # which bytes, or which pinned revision, every model is
FILE_DIGESTS = Path(".cache/digests.json")


def model_identity(role: str) -> Path:
    return MODELS / f"{role}.json"


def documents(domain: str) -> Path:
    return Path("documents") / domain


def harvested(domain: str) -> Path:
    return documents(domain) / "harvested.parquet"


def questions(domain: str) -> Path:
    """Beside the domain's other question-answer files."""
    return Path("data") / domain / "questions.jsonl"


def question_rejects(domain: str) -> Path:
    return ARTIFACTS / domain / "questions"


def examples(domain: str) -> Path:
    return ARTIFACTS / domain / "examples"


def split(domain: str, name: str, rows: str) -> Path:
    """Here and below `rows` is `run.rows`, how rows are kept."""
    return examples(domain) / f"{name}.{rows}"


def curve_rows(domain: str) -> Path:
    """The validation rows of `train.curve`; empty without one."""
    return examples(domain) / "curve.jsonl"


def ingest_summary(domain: str) -> Path:
    return ARTIFACTS / domain / "ingest.json"


def rewritten(domain: str, rows: str) -> Path:
    return ARTIFACTS / domain / f"rewritten.{rows}"


def filtered(domain: str, rows: str) -> Path:
    return ARTIFACTS / domain / f"filtered.{rows}"


def fused(domain: str, rows: str) -> Path:
    return ARTIFACTS / domain / f"fused.{rows}"


def judging(domain: str) -> Path:
    return ARTIFACTS / domain / "judging.json"


def labels(name: str) -> Path:
    """Scores by people."""
    return Path("data/calibration") / name


def user_turns(name: str) -> Path:
    """General prompts of the user's own."""
    return Path("data/anchors") / name


def training(domain: str) -> Path:
    return ARTIFACTS / domain / "training"


def run(domain: str, method: str, seed: int) -> Path:
    return ARTIFACTS / domain / "runs" / f"{method}-{seed}"


def merged(domain: str, method: str, seed: int) -> Path:
    return run(domain, method, seed) / "merged"


def trained(domain: str, method: str, seed: int) -> Path:
    """The model that a training ends with: the merged one, where the method merges."""
    trained, merged_model = run(domain, method, seed) / "model", merged(domain, method, seed) / "model"
    return merged_model if merged_model.exists() else trained


def champion(domain: str) -> Path:
    """The model in production, where there is one: a folder that flows.retrain puts under DVC."""
    return CHAMPIONS / domain


def benchmark(domain: str, method: str | None, seed: int | None) -> Path:
    """Of a training; without seed of the champion; without method of the base."""
    name = "base" if method is None else method if seed is None else f"{method}-{seed}"
    return ARTIFACTS / domain / "benchmarks" / name


def judged(domain: str) -> Path:
    return ARTIFACTS / domain / "judged"


def analysis(domain: str, method: str, seed: int) -> Path:
    return ARTIFACTS / domain / "analysis" / f"{method}-{seed}.json"


def base_states(domain: str) -> Path:
    return BASE_STATES / f"{domain}.safetensors"


def held_out(domain: str) -> Path:
    return HELD_OUT / f"{domain}.jsonl"


def anchor_set(name: str) -> Path:
    return ANCHORS / "sets" / name


def near_miss(domain: str) -> Path:
    return NEAR_MISSES / domain
