"""params.yaml in types: every key has a default and a meaning, all faults are reported at once."""

from raft_tasks.config.base import Section, resolved
from raft_tasks.config.config import Config, load_config, parse_config, read_document
from raft_tasks.config.data import (
    Chat,
    Check,
    Columns,
    Domain,
    Harvest,
    Hub,
    Hygiene,
    Ingest,
    SplitByColumn,
    SplitBySource,
)
from raft_tasks.config.evaluation import (
    Benchmark,
    BenchmarkData,
    Judge,
    PromotionGate,
    Report,
    SecondMeasurement,
)
from raft_tasks.config.generation import (
    AnchorSet,
    Budget,
    Checker,
    DomainFilter,
    DomainFuse,
    ExcludedTasks,
    Fuse,
    PromptedCall,
    Question,
    Rewrite,
    StructuredCall,
)
from raft_tasks.config.models import Endpoint, Model
from raft_tasks.config.service import (
    Chunks,
    DvcImport,
    Folder,
    HubRevision,
    Retrain,
    Source,
)
from raft_tasks.config.training import (
    PAST_ANSWERS,
    AnchorLoss,
    CoefficientSearch,
    Curve,
    Distillation,
    Generate,
    Injection,
    Interpolate,
    Launch,
    Lora,
    LossSpike,
    Merge,
    Method,
    Mixing,
    Osf,
    Prune,
    Replay,
    SpectralThreshold,
    TargetKl,
    Ties,
    Train,
    VllmServer,
)
