import re
from pathlib import Path

import pytest
import yaml

from raft_tasks.params import Endpoint, ParamsError, load_params

PROFILES = sorted(Path("profiles").glob("*.yaml"))


def changed(tmp_path, change):
    values = yaml.safe_load(Path("params.yaml").read_text())
    change(values)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("path", [Path("params.yaml"), *PROFILES], ids=str)
def test_the_committed_params_are_valid(path):
    assert load_params(path).run.methods


def test_every_problem_is_reported_at_once_with_its_key(tmp_path):
    def break_it(values):
        values["train"]["epochs"] = "three"
        values["train"]["epohcs"] = 3
        del values["rewrite"]["top_p"]
        values["semantic_filter"]["tau"] = 1.5

    with pytest.raises(ParamsError) as error:
        load_params(changed(tmp_path, break_it))
    message = str(error.value)
    assert "4 problem(s)" in message
    for part in (
        "train.epochs",
        "'three'",
        "train.epohcs",
        "rewrite.top_p: Field required",
        "semantic_filter.tau",
        "1.5",
    ):
        assert part in message


def test_names_must_be_known(tmp_path):
    def break_it(values):
        values["run"]["methods"].append("grpo")
        values["fuse"]["model"] = "qwen"

    with pytest.raises(ParamsError, match=r"run.methods: got 'grpo', expected one of .*fuse.model: got 'qwen'"):
        load_params(changed(tmp_path, break_it))


@pytest.mark.parametrize("change", [{"balance": "ema"}, {"teacher": "plain"}])
def test_a_balance_needs_a_teacher_and_a_teacher_a_balance(tmp_path, change):
    with pytest.raises(ParamsError, match=r"methods\.sft.*exactly where there is a teacher"):
        load_params(changed(tmp_path, lambda values: values["methods"]["sft"].update(change)))


def test_a_missing_or_broken_file_is_a_clear_error(tmp_path):
    with pytest.raises(ParamsError, match="is not there"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("run: [")
    with pytest.raises(ParamsError, match="is not YAML"):
        load_params(tmp_path / "params.yaml")


ENDPOINT = {
    "base_url": "http://127.0.0.1:8000/v1", "model": "qwen", "seeds": True, "options": {}, "length_field": "max_tokens",
    "api_key_env": None, "concurrency": 16, "timeout_s": 60, "max_retries": 8,
    "price_per_million_input": 0, "price_per_million_output": 0,
}  # fmt: skip


def test_a_role_may_name_an_endpoint_but_the_base_is_local(tmp_path):
    def add(values):
        values["models"]["qwen"] = ENDPOINT
        values["fuse"]["model"] = "qwen"

    assert isinstance(load_params(changed(tmp_path, add)).models["qwen"], Endpoint)
    with pytest.raises(ParamsError, match=r"models\.base: got an endpoint"):
        load_params(changed(tmp_path, lambda values: values["models"].update(base=ENDPOINT)))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"base_url": "https://me:secret@host/v1"}, "base_url"),
        ({"api_key_env": "sk-something"}, "api_key_env"),
        ({"path": "models/x"}, "path"),
    ],
)
def test_an_endpoint_holds_no_secret_and_is_not_half_a_local_model(tmp_path, change, key):
    def add(values):
        values["models"]["qwen"] = ENDPOINT | change

    with pytest.raises(ParamsError, match=rf"models\.qwen\.endpoint\.{key}") as error:
        load_params(changed(tmp_path, add))
    assert "secret" not in str(error.value)
    assert "sk-something" not in str(error.value)


def test_the_documented_endpoint_is_valid(tmp_path):
    block = re.search(r"```yaml\n(models:.*?)```", Path("docs/backends.md").read_text(), re.DOTALL).group(1)
    documented = yaml.safe_load(block)

    def add(values):
        values["models"]["qwen"] = documented["models"]["qwen"]
        values["rewrite"] |= documented["rewrite"]

    params = load_params(changed(tmp_path, add))
    assert isinstance(params.models[params.rewrite.model], Endpoint)
    assert documented["models"]["base"] == params.base.model_dump()


def test_an_address_is_for_dask(tmp_path):
    def add(values):
        values["resources"]["chunks"]["dask_address"] = "tcp://127.0.0.1:8786"

    with pytest.raises(ParamsError, match=r"dask_address .* with runner 'threads': expected runner dask"):
        load_params(changed(tmp_path, add))
