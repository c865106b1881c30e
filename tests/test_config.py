import re
from pathlib import Path

import pytest
import yaml

from raft_tasks.config import Config, Endpoint, Section, load_config, parse_config, resolved
from raft_tasks.config.base import added_key, key, sections
from raft_tasks.errors import InputError

PROFILES = sorted(Path("profiles").glob("*.yaml"))
REQUIRED = {  # what cannot be guessed, or DVC reads itself
    *(f"run.{name}" for name in ("domains", "harvest", "documents", "judged", "methods", "seeds", "rows")),
    *("run", "models", "models.*.path", "models.*.base_url", "models.*.model", "domains"),
    *("domains.*.hub.id", "domains.*.split.by", "harvest.*.hub", "harvest.*.hub.id", "anchors.*.without.tasks"),
    *("methods.*.distillation.sampler.kind", "methods.*.distillation.sampler.url"),
    *("methods.*.distillation.sampler.folder", "methods.*.merge.kind"),
    *("retrain.fetch.*.kind", "retrain.fetch.*.path"),
}


def small(**changes):
    """A document that says no more than it must, and `changes` to its sections."""
    document = {
        "run": {
            "domains": ["mine"], "harvest": [], "documents": [], "judged": [], "methods": ["sft", "raft"],
            "seeds": [0], "rows": "jsonl",
        },
        "models": {"base": {"path": "models/some"}},
        "domains": {"mine": {}},
    }  # fmt: skip
    for section, values in changes.items():
        document[section] = document.get(section, {}) | values
    return document


def message_of(document):
    with pytest.raises(InputError) as error:
        parse_config(document)
    return str(error.value)


def test_where_a_panel_decides_every_domain_is_judged():
    gate, judged = {"domain_metric": "judged"}, {"judged": ["mine"]}
    assert parse_config(small(gate=gate, run=judged)).gate.domain_metric == "judged"
    assert "gate.domain_metric: got judged, but run.judged lacks ['mine']" in message_of(small(gate=gate))
    other = small(gate=gate, run=judged, judge={"tasks": {"open_prompts": "vote.jinja"}})
    assert "judge.tasks has ['open_prompts'], expected domain" in message_of(other)


def all_keys(section, prefix=""):
    """(key, field) of `section` and all within, * for a name."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        star = "*." if "dict[" in str(field.annotation) else ""
        for inner in sections(field.annotation):
            yield from all_keys(inner, f"{prefix}{name}.{star}")


@pytest.mark.parametrize("path", [Path("params.yaml"), *PROFILES], ids=str)
def test_the_committed_files_are_valid(path):
    assert load_config(path).run.methods


def test_every_key_has_a_meaning_and_a_default_unless_it_cannot_be_guessed():
    assert [name for name, field in all_keys(Config) if not field.description] == []
    assert {name for name, field in all_keys(Config) if field.is_required()} == REQUIRED


def test_defaults_are_the_papers():
    config = parse_config(small())
    raft = config.methods["raft"].distillation
    assert (raft.temperature, raft.top_k, raft.ema_beta, raft.kl_weight) == (1.5, 512, 0.9, "ema")
    assert (config.train.learning_rate, config.train.epochs, config.train.batch_size) == (5e-6, 3, 16)
    assert config.semantic_filter.tau == 0.8
    assert config.domains["mine"].files == ["data/mine/*.{jsonl,csv,jsonl.gz,csv.gz,jsonl.zst,csv.zst,parquet}"]
    assert (config.fuse.quorum, config.judge.quorum) == (3, 1)


def test_a_row_is_merged_over_the_built_in_row_and_its_children_follow():
    methods = {
        "raft": {"distillation": {"top_k": 64}},
        "mine": {"extends": "raft_lora", "distillation": {"kl_weight": 1}, "merge": {"kind": "ties"}},
        "fapm": {"merge": {"kind": "interpolate"}},
        "raft_anchored": {"distillation": None, "anchors": {"batch": 4}},
    }
    config = parse_config(small(methods=methods))
    assert config.methods["raft"].distillation.top_k == config.methods["on_policy"].distillation.top_k == 64
    mine = config.methods["mine"]
    assert (mine.target, mine.lora.rank, mine.distillation.top_k, mine.distillation.kl_weight) == ("fused", 16, 64, 1.0)
    assert mine.merge.tasks == config.benchmark.validation_tasks == config.gate.recover.tasks == ["arc_easy"]
    assert config.methods["fapm"].merge.kind == "interpolate"  # another kind: prune's `keep` is gone
    assert config.methods["raft_anchored"].distillation is None
    sft = {"target": "reference", "sft": True, "token_weighting": "none", "learning_rate_scale": 1.0}
    assert config.methods["sft"].model_dump(exclude_none=True) == sft


@pytest.mark.parametrize("parent", ["nothing", "b", "a"])
def test_extending_nothing_or_oneself_is_an_error(parent):
    methods = {"a": {"extends": parent}, "b": {"extends": "a"}}
    assert re.search(r"methods\.[ab]\.extends: names no other entry", message_of(small(methods=methods)))


def test_known_benchmarks_bring_their_examples_and_pinned_data():
    benchmark = parse_config(small()).benchmark
    assert benchmark.few_shot == {"mmlu": 5}
    assert set(benchmark.data) == {"google/IFEval", "cais/mmlu", "allenai/ai2_arc"}
    given = {"data": {"cais/mmlu": {"mirror": "data/benchmarks/mmlu"}}, "few_shot": {"mmlu": 0}}
    benchmark = parse_config(small(benchmark=given)).benchmark
    assert benchmark.few_shot == {"mmlu": 0}
    assert benchmark.data["cais/mmlu"].revision is None
    only = parse_config(small(benchmark={"tasks": ["other"], "validation_tasks": ["more"]})).benchmark
    assert (only.few_shot, only.data) == ({}, {})


def test_chat_takes_the_place_of_the_columns_and_hygiene_can_be_off():
    hygiene = {"near_duplicates": "off", "contamination": False}
    domain = {"chat": {}, "columns": {"source": "topic"}, "hygiene": hygiene}
    mine = parse_config(small(domains={"mine": domain})).domains["mine"]
    assert (mine.columns.question, mine.columns.source, mine.chat.conversation) == (None, "topic", "single")
    assert (mine.hygiene.near_duplicates, mine.hygiene.contamination) == (None, None)


def test_a_split_column_that_nothing_reads_is_an_error():
    columns = {"question": "q", "answer": "a", "split": "part"}
    message = message_of(small(domains={"mine": {"columns": columns}}))
    assert "domains.mine.columns.split: got 'part' with split.by 'source'" in message
    parse_config(small(domains={"mine": {"columns": columns, "split": {"by": "column"}}}))


def test_a_coefficient_is_not_chosen_on_what_is_reported():
    methods = {"mine": {"merge": {"kind": "interpolate"}}}
    benchmark = {"tasks": ["t", "u"], "validation_tasks": ["t", "v"]}
    message = message_of(small(benchmark=benchmark, methods=methods))
    for where in ("gate.recover", "methods.mine.merge"):
        assert f"{where}.tasks: got 't', which is in benchmark.tasks too" in message
    parse_config(small(benchmark={"tasks": ["t", "u"], "validation_tasks": ["v"]}, methods=methods))


def test_every_problem_is_reported_at_once_with_its_key():
    document = small(
        train={"epochs": "three", "epohcs": 3},
        semantic_filter={"tau": 1.5},
        gate={"aproval": None},
        methods={"raft": {"distillation": {"kl_weight": "often"}}},
    )
    del document["run"]["harvest"]
    message = message_of(document)
    for part in (
        "6 problem(s)",
        "train.epochs: Input should be a valid integer, got 'three'",
        "train.epohcs: unknown key; did you mean epochs?",
        "semantic_filter.tau: Input should be less than or equal to 1, got 1.5",
        "gate.aproval: unknown key; did you mean approval?",
        "methods.raft.distillation.kl_weight: Input should be 'ema'; or Input should be a valid number, got 'often'",
        "run.harvest: Field required, since DVC unrolls the graph over it",
    ):
        assert part in message


def test_an_old_file_is_told_the_new_names():
    row = {"answers": "raw", "cross_entropy": "plain", "teacher": "none", "balance": None, "distill": None}
    document = small(
        methods={"sft": {**row, "adapter": None, "after": None}, "raft": {"distillation": {"lambda_max": 1.0}}},
        resources={"rows": "jsonl"},
        train={"explosion": {}},
        anchors={"generated": {"turns": "invented"}},
        domains={"mine": {"chat": {"turns": "one"}}},
    )
    message = message_of(document)
    for old, new in {
        "methods.sft.answers": "methods.sft.target (raw is now reference, rewritten is rewrite)",
        "methods.sft.cross_entropy": "methods.sft.token_weighting (plain is now none), or sft: false (was none)",
        "methods.sft.teacher": "methods.sft.distillation.teacher (none: without distillation)",
        "methods.sft.balance": "methods.sft.distillation.kl_weight",
        "methods.sft.distill": "methods.sft.distillation (its lambda_max",
        "methods.sft.adapter": "methods.sft.lora",
        "methods.sft.after": "methods.sft.merge",
        "methods.raft.distillation.lambda_max": "methods.raft.distillation.kl_weight_max",
        "resources.rows": "run.rows",
        "train.explosion": "train.loss_spike",
        "anchors.generated.turns": "anchors.generated.prompt_source (invented is now generated)",
        "domains.mine.chat.turns": "domains.mine.chat.conversation (one is now single, every is all)",
    }.items():
        assert f"  {old}: renamed, now {new}" in message


def test_names_must_be_known():
    document = small(fuse={"model": "qwen"}, methods={"mine": {"anchors": {"set": "none"}}})
    document["run"]["methods"].append("grpo")
    message = message_of(document)
    assert re.search(r"run.methods: got 'grpo', expected one of .*fuse.model: got 'qwen'", message)
    assert "methods.*.anchors.set: got 'none', expected one of ['beginning', 'dialogue', 'generated', " in message
    message = message_of(small(benchmark={"validation_tasks": []}, methods={"mine": {"merge": {}}}))
    assert "methods.mine.merge.tasks: got none" in message
    assert "gate.recover.tasks: got none" in message


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"sft": False}, "sft false with no distillation"),
        ({"sft": False, "distillation": {}}, "expected a number as distillation.kl_weight"),
        ({"sft": False, "distillation": {"kl_weight": 1.0}, "replay": {}}, "replay with sft false"),
        ({"sft": False, "distillation": {"kl_weight": 1.0}, "token_weighting": "dft"}, "token_weighting 'dft'"),
        ({"sft": False, "distillation": {"kl_weight": 1.0}, "anchors": {"weight": "ema"}}, "anchors.weight 'ema'"),
        ({"anchors": {"logits": "teacher"}}, "anchors.logits 'teacher' without distillation"),
        ({"osf": {}, "injection": {}}, "osf and injection: expected one of them"),
        ({"injection": {"epochs": 0}}, "methods.mine.injection.epochs"),
        ({"injection": {"instruction": ""}}, "methods.mine.injection.instruction"),
        ({"lora": {}, "distillation": {"teacher_dtype": "bfloat16"}}, "both must be null"),
    ],
)
def test_a_methods_settings_go_together(row, expected):
    assert expected in message_of(small(methods={"mine": row}))


def test_a_missing_or_broken_file_is_a_clear_error(tmp_path):
    path = tmp_path / "params.yaml"
    with pytest.raises(InputError, match="is not there"):
        load_config(path)
    path.write_text("run: [")
    with pytest.raises(InputError, match=r"params\.yaml is not YAML"):
        load_config(path)
    path.write_text("train:\n  epochs: 1\n  epochs: 2\n")
    with pytest.raises(InputError, match=r'found duplicate key "epochs" .* at line 3'):
        load_config(path)


@pytest.mark.parametrize("number", ["1e-5", "1e-05", "1.0e-5", "0.00001"])
def test_numbers_are_those_of_yaml_1_2(tmp_path, number):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(small()) + f"train: {{learning_rate: {number}}}\n")
    assert load_config(path).train.learning_rate == 1e-5


ENDPOINT = {"base_url": "http://127.0.0.1:8000/v1", "model": "qwen"}


def test_a_role_may_name_an_endpoint_but_the_base_is_local():
    models = {"base": {"path": "m"}, "qwen": ENDPOINT}
    assert isinstance(parse_config(small(models=models, fuse={"model": "qwen"})).models["qwen"], Endpoint)
    assert "models.base: got an endpoint" in message_of(small(models={"base": ENDPOINT}))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"base_url": "https://me:secret@host/v1"}, "base_url"),
        ({"api_key_env": "sk-something"}, "api_key_env"),
        ({"api_key": "sk-something"}, "api_key"),
        ({"path": "models/x"}, "path"),
    ],
)
def test_an_endpoint_holds_no_secret_and_is_not_half_a_local_model(change, name):
    message = message_of(small(models={"base": {"path": "m"}, "qwen": ENDPOINT | change}))
    assert f"models.qwen.{name}: " in message
    assert "secret" not in message
    assert "sk-something" not in message


def test_the_documented_endpoint_is_valid():
    block = re.search(r"```yaml\n(models:.*?)```", Path("docs/guides/models.md").read_text(), re.DOTALL).group(1)
    config = parse_config(small(**yaml.safe_load(block)))
    assert isinstance(config.models[config.rewrite.model], Endpoint)


def test_an_address_is_for_dask():
    chunks = {"dask_address": "tcp://127.0.0.1:8786"}
    message = message_of(small(resources={"chunks": chunks}))
    assert (
        "resources.chunks: dask_address 'tcp://127.0.0.1:8786' with runner 'threads': expected runner dask" in message
    )


def test_resolved_values_leave_an_added_key_out_where_it_changes_nothing():
    class Inner(Section):
        old: int = key(1, "a key of the first release")
        new: bool = added_key(False, "a key that came later", neutral=False)

    class Outer(Section):
        inner: Inner = key(Inner(), "inner")
        rows: list[Inner] = key([], "rows")

    assert resolved(Outer(rows=[Inner(new=True)])) == {"inner": {"old": 1}, "rows": [{"old": 1, "new": True}]}
    method = parse_config(small()).methods["raft"]
    assert resolved(method) == method.model_dump(mode="json", exclude={"injection"})
    assert resolved(parse_config(small()).methods["raft_injected"])["injection"]["epochs"] == 3


def test_harvested_documents_are_injected_where_they_are_there_in_time():
    document = small(harvest={"mine": [{"hub": {"id": "a/b", "revision": "0" * 40}, "text": "text"}]})
    document["run"] |= {"methods": ["raft_injected"], "harvest": ["mine"], "documents": []}
    assert "run.documents: got no 'mine', which is in run.harvest, with methods.raft_injected.injection" in message_of(
        document
    )
    document["run"]["documents"] = ["mine"]
    parse_config(document)


@pytest.mark.parametrize("key", ["limit", "max_tokens"])
def test_a_bound_on_a_task_that_nothing_benchmarks_is_no_bound(key):
    with pytest.raises(InputError, match=rf"benchmark.{key}: got the task 'ifevl', expected one of .*'ifeval'"):
        parse_config(small(benchmark={key: {"ifevl": 5}}))
    assert getattr(parse_config(small(benchmark={key: {"ifeval": 5, "domain": 3}})).benchmark, key)["ifeval"] == 5


def test_files_of_a_domain_lie_where_dvc_watches():
    with pytest.raises(InputError, match=r"got 'elsewhere/\*\.jsonl', expected a pattern in data/mine/"):
        parse_config(small(domains={"mine": {"files": ["elsewhere/*.jsonl"]}}))
