"""A LoRA row's artifact is an adapter: loadable by PEFT alone, on the right base only, measured as it is released."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from dvc.repo import Repo
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import save_tiny
from trainer_runs import run
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft_tasks import model_loading
from raft_tasks.adapter_folder import add_adapter, base_of, without_peft_warnings, write_base
from raft_tasks.artifacts import digest_path
from raft_tasks.chat import save_tokenizer
from raft_tasks.config import Benchmark, Lora, Method, Model
from raft_tasks.errors import InputError
from raft_tasks.evaluation.harness import Suite, evaluate
from raft_tasks.merged_folder import check_merged, write_whole
from raft_tasks.model_loading import load_model, load_tokenizer
from raft_tasks.schemas import Example
from raft_tasks.training.adapters import save_adapter, with_adapter

ROOT = Path(__file__).parents[2]
POCKET = Model(path=str(ROOT / "models/pocket-base"), dtype="float32")
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def at(model, folder):
    return model.model_copy(update={"path": str(folder), "revision": None})


def adapter_on(base, folder, size=0.01, **changes):
    """A folder as a training leaves it, with an adapter that changes something."""
    network, tokenizer = load_model(base, getattr(torch, base.dtype))
    student = with_adapter(network, Lora(rank=4, alpha=8, dropout=0.0, **changes), None)
    move(student, size)
    save_adapter(student, base, folder)
    network.generation_config.save_pretrained(folder)
    save_tokenizer(tokenizer, base.system, folder)
    return folder


def move(student, size):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)


def logits(network, ids=IDS):
    with torch.no_grad():
        return network.eval()(input_ids=ids).logits


def test_a_trained_folder_is_an_adapter_that_peft_loads_by_itself(tiny_model, tmp_path):
    run(tiny_model, tmp_path, "sft_lora")
    folder = tmp_path / "output" / "model"
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "base.json", "tokenizer.json"} < names
    assert {"README.md", "chat_template.jinja", "generation_config.json"} < names
    assert not names & {"config.json", "model.safetensors"}
    assert "LoRA adapter of rank 4" in (folder / "README.md").read_text()
    with without_peft_warnings():
        apart = AutoPeftModelForCausalLM.from_pretrained(folder)
    here = load_model(at(tiny_model, folder), torch.float32)[0]
    assert torch.allclose(logits(here), logits(apart), atol=1e-4)
    assert not torch.allclose(logits(here), logits(load_model(tiny_model, torch.float32)[0]), atol=1e-2)
    run(tiny_model, tmp_path / "again", "sft_lora")
    assert digest_path(tmp_path / "again/output/model") == digest_path(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_release_is_whole_and_bit_for_bit_what_was_measured(tiny_folder, tmp_path, dtype):
    base = Model(path=str(tiny_folder), dtype=dtype)
    folder = adapter_on(base, tmp_path / "adapter", 0.1)
    write_whole(at(base, folder), tmp_path / "whole")
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    measured = load_model(at(base, folder), getattr(torch, dtype))[0]
    assert alone.dtype == getattr(torch, dtype)
    assert torch.equal(logits(alone), logits(measured))
    assert alone.generation_config.eos_token_id == measured.generation_config.eos_token_id
    template = AutoTokenizer.from_pretrained(tmp_path / "whole").chat_template
    assert template == load_tokenizer(at(base, folder)).chat_template != load_tokenizer(base).chat_template
    assert not {path.name for path in (tmp_path / "whole").iterdir()} & {"adapter_config.json", "base.json"}
    write_whole(base, tmp_path / "copy")  # a model with weights of its own is copied
    assert digest_path(tmp_path / "copy") == digest_path(tiny_folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_weights_that_are_not_base_and_adapter_are_refused(tiny_folder, tmp_path, dtype):
    base = Model(path=str(tiny_folder), dtype=dtype)
    model = at(base, adapter_on(base, tmp_path / "adapter"))
    write_whole(model, tmp_path / "whole")
    file = tmp_path / "whole" / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][3, 4] = weights[name][3, 4] * 1.02  # two units in bfloat16's last place
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 merged weights are not those .* model\.layers\.1\.mlp\.up_proj\.weight"):
        check_merged(model, tmp_path / "whole")


@pytest.mark.parametrize("tied", [True, False])
def test_modules_to_save_are_loaded_and_released(tmp_path, tied):
    """With tied embeddings the trained input embedding parts from the head, which stays the base's."""
    base = Model(path=str(save_tiny(tmp_path / "model", tie_word_embeddings=tied)), dtype="float32")
    network, tokenizer = load_model(base, torch.float32)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    with without_peft_warnings():
        student = get_peft_model(network, config)
    move(student, 0.2)
    expected = logits(student)
    save_adapter(student, base, tmp_path / "adapter")
    network.generation_config.save_pretrained(tmp_path / "adapter")
    save_tokenizer(tokenizer, None, tmp_path / "adapter")
    model = at(base, tmp_path / "adapter")
    assert torch.allclose(logits(load_model(model, torch.float32)[0]), expected, atol=1e-4)
    write_whole(model, tmp_path / "whole")
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), expected, atol=1e-4)


def test_an_adapter_is_loaded_on_its_own_base_only(tiny_folder, tmp_path):
    base = Model(path=str(shutil.copytree(tiny_folder, tmp_path / "base")), dtype="float32")
    folder = adapter_on(base, tmp_path / "adapter")
    assert base_of(at(base, folder)).path == base.path
    assert base_of(base) == base
    (tmp_path / "base/README.md").write_text("A card changes no weight.")
    load_model(at(base, folder), torch.float32)
    save_tiny(tmp_path / "base", seed=1)
    with pytest.raises(InputError, match=r"its base .*/base has other weights \(\w{16}\), expected weights"):
        load_model(at(base, folder), torch.float32)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(InputError, match=r"its base .*/base is not there"):
        load_model(at(base, folder), torch.float32)
    (folder / "base.json").unlink()
    with pytest.raises(InputError, match=r"expected base\.json with path, revision and sha256"):
        load_model(at(base, folder), torch.float32)


def test_an_adapter_that_is_not_whole_is_refused(tiny_model, tmp_path):
    folder = adapter_on(tiny_model, tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if "layers.1" not in name}, file)
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is not whole; copy it again"):
        load_model(at(tiny_model, folder), torch.float32)
    more = {
        name.replace("layers.1", "layers.9"): value.clone() for name, value in weights.items() if "layers.1" in name
    }
    save_file(weights | more, file)
    with pytest.raises(
        InputError, match=r"is not whole; copy it again\. Missing: none, of other layers: \['base_model"
    ):
        load_model(at(tiny_model, folder), torch.float32)
    file.write_bytes(whole[:-100])
    with pytest.raises(InputError, match="cut or damaged"):
        load_model(at(tiny_model, folder), torch.float32)
    file.unlink()
    with pytest.raises(InputError, match="is missing, cut or damaged"):
        load_model(at(tiny_model, folder), torch.float32)


def test_scores_and_answers_are_equal_merged_and_apart(tmp_path, monkeypatch):
    """The harness on the pocket model: adapter folder, released folder, and PEFT's own forward pass unmerged."""
    lines = (ROOT / "data/archive/pairs.jsonl").read_text().splitlines()
    rows = [Example(**json.loads(line), domain="archive") for line in lines[::40]][:24]
    suite = Suite("archive", rows, Benchmark(tasks=[], batch_size=8, max_new_tokens=12), tmp_path)
    folder = adapter_on(POCKET, tmp_path / "adapter", 0.1)
    write_whole(at(POCKET, folder), tmp_path / "whole")
    base = evaluate(POCKET, suite)[1]
    adapter, whole = (evaluate(at(POCKET, path), suite)[1] for path in (folder, tmp_path / "whole"))
    monkeypatch.setattr(model_loading, "merge_adapter", add_adapter)
    apart = evaluate(at(POCKET, folder), suite)[1]
    assert adapter == whole == apart
    assert [row.answer for row in adapter] != [row.answer for row in base]


def test_dvc_stores_an_adapter_in_a_fraction_of_a_models_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter_on(POCKET, tmp_path / "lora")
    shutil.copytree(POCKET.path, tmp_path / "full")
    stored = {}
    with Repo.init(no_scm=True) as repo:
        for name in ("lora", "full"):
            before = cached_bytes()
            repo.add(name)
            stored[name] = cached_bytes() - before
    assert 0 < stored["lora"] < stored["full"] / 10


def cached_bytes():
    return sum(path.stat().st_size for path in Path(".dvc/cache").rglob("*") if path.is_file())


def test_mlp_targets_are_the_mlps_layers(tiny_model):
    student = with_adapter(load_model(tiny_model, torch.float32)[0], Lora(targets="mlp"), None)
    layers = {name.split(".")[-4] for name, value in student.named_parameters() if value.requires_grad}
    assert layers == {"gate_proj", "up_proj", "down_proj"}
    assert Method(lora={"targets": "mlp"}).lora.targets == "mlp"


def test_write_base_of_a_hub_id_has_its_commit(tmp_path):
    write_base(Model(path="owner/name", revision="a" * 40), tmp_path)
    expected = {"path": "owner/name", "revision": "a" * 40, "sha256": None}
    assert json.loads((tmp_path / "base.json").read_text()) == expected
