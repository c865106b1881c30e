"""LoRA: the teacher is the same weights without the adapter, and nothing but the adapter moves."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import LORA, METHODS, TEACHER, distillation, job, method, pairs, save_tiny, train
from trainer_runs import ROLLOUTS, Stop, numbers, plain_step, run, same_weights, stop_at, teacher_network

from raft_tasks import distill
from raft_tasks.adapter_folder import merge_adapter, without_peft_warnings
from raft_tasks.config import Model
from raft_tasks.errors import InputError
from raft_tasks.model_loading import load_model
from raft_tasks.training.adapters import teacher_mode, with_adapter
from raft_tasks.training.completion_forward import CompletionForward
from raft_tasks.training.conversations import Encoder
from raft_tasks.training.preparation import TrainingData, fingerprint, make_pair, teacher_turn, training_arguments
from raft_tasks.training.teacher import without_adapter
from raft_tasks.training.trainer import RaftTrainer

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def moved(student, size=0.3):
    """An adapter that does something: new ones begin as zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)
    return student


@pytest.fixture(scope="module")
def other_adapter(tiny_folder, tmp_path_factory):
    """A folder with an adapter, and what the base answers with it."""
    folder = tmp_path_factory.mktemp("adapters") / "other"
    network = load_model(Model(path=str(tiny_folder), revision=None, dtype="float32", system=None), torch.float32)[0]
    with without_peft_warnings():
        student = moved(get_peft_model(network, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")))
    student.save_pretrained(folder)
    with torch.no_grad():
        return str(folder), student.eval()(input_ids=IDS).logits


def lora_trainer(model, folder, row, settings=None):
    settings = settings or train()
    network, tokenizer = load_model(model, torch.float32)
    rows = Encoder(tokenizer, settings.max_length, teacher_turn(row, TEACHER), 6)(pairs())
    wanted = job(model, folder, row, train=settings, output=folder, checkpoints=folder)
    arguments = training_arguments(wanted, len(rows))
    student, teacher = make_pair(network, wanted, arguments.device)
    trainer = RaftTrainer(wanted, student, teacher, TrainingData(tokenizer, rows), arguments)
    if row.distillation:
        trainer.rollout_buffer.sampler = lambda prompts, seeds: ROLLOUTS[: len(prompts)]
    return trainer


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("micro", [4, 2])
def test_one_step_is_equations_6_to_12_for_the_adapter_alone(tiny_model, tmp_path, micro, checkpointing):
    row = METHODS["raft_lora"].model_copy(
        update={"distillation": distillation(kl_weight_max=3.0, sampling_logprob_tolerance=9.0)}
    )
    trainer = lora_trainer(tiny_model, tmp_path, row, train(micro_batch_size=micro))
    moved(trainer.student)
    if checkpointing:
        with without_peft_warnings():
            trainer.student.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    base, plain = (load_model(tiny_model, torch.float32)[0] for _ in range(2))
    torch.manual_seed(0)
    plain = with_adapter(plain, LORA, None)
    plain.load_state_dict(trainer.student.state_dict())
    rows = trainer.rows[:4]
    l_sft, l_kl, weight = plain_step(plain, base, rows, ROLLOUTS, 8, 1.5, 3.0, False)
    loss = trainer.training_step(trainer.model, rows).item()
    assert loss == pytest.approx(l_sft + weight * l_kl, rel=1e-5)
    expected = dict(plain.named_parameters())
    learned = {name for name, parameter in trainer.student.named_parameters() if parameter.grad is not None}
    assert learned == {name for name in expected if "lora_" in name}  # no gradient for the head, nor for anything else
    for name, parameter in trainer.student.named_parameters():
        if name in learned:
            assert torch.allclose(parameter.grad, expected[name].grad, atol=2e-5), name


@torch.no_grad()
def test_the_teacher_is_the_base_whatever_the_adapter_and_its_dropout_do(tiny_model, other_adapter):
    folder, with_other = other_adapter
    network = load_model(tiny_model, torch.float32)[0]
    expected = network(input_ids=IDS).logits.clone()
    student = moved(with_adapter(network, LORA.model_copy(update={"dropout": 0.5}), folder)).train()
    for own_adapter, logits in ((False, expected), (True, with_other)):
        before = {name: parameter.requires_grad for name, parameter in student.named_parameters()}
        assert not torch.allclose(student(input_ids=IDS).logits, logits, atol=1e-2)
        with teacher_mode(student, own_adapter):
            assert torch.allclose(student(input_ids=IDS).logits, logits, atol=1e-5)
        assert {name: parameter.requires_grad for name, parameter in student.named_parameters()} == before
        assert student.training
        assert not torch.equal(student(input_ids=IDS).logits, student(input_ids=IDS).logits)  # dropout is on again


@pytest.mark.parametrize("adapter", [LORA, None])
def test_the_teacher_may_have_an_adapter_of_its_own(tiny_model, tmp_path, other_adapter, adapter):
    folder, expected = other_adapter
    row = method(
        target="fused",
        lora=adapter,
        distillation=distillation(teacher_adapter=folder, teacher="plain", kl_weight="ema"),
    )
    trainer = lora_trainer(tiny_model, tmp_path, row)
    forward = CompletionForward(
        [IDS[0, :1].tolist()], [IDS[0, 1:].tolist()], lambda hidden, head: hidden @ head.weight.T
    )
    assert torch.allclose(trainer.teacher(trainer.model, forward), expected[0, :-1], atol=1e-4)
    assert run(tiny_model, tmp_path, row)["steps"] == 6


def test_the_saved_adapter_moves_nothing_else(tiny_model, tmp_path):
    result = run(tiny_model, tmp_path, "raft_lora")
    assert 0 < result["trainable_parameters"] < 0.5 * result["parameters"]
    assert result["distance"]["total"] > 0
    assert result["distance"]["embed_tokens"] == 0
    assert '"targets": "all-linear"' in (tmp_path / "output/model/README.md").read_text()


@pytest.mark.parametrize("name", ["sft_lora", "raft_lora"])
def test_interrupted_equals_uninterrupted_with_an_adapter(tiny_model, tmp_path, name):
    row = METHODS[name].model_copy(update={"lora": LORA.model_copy(update={"dropout": 0.2})})
    run(tiny_model, tmp_path / "whole", row)
    with pytest.raises(Stop):
        run(tiny_model, tmp_path / "parts", row, progress=stop_at(3))
    torch.rand(7)
    run(tiny_model, tmp_path / "parts", row)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")


def test_a_bfloat16_base_keeps_its_type_and_the_adapter_is_float32(tiny_model, tmp_path):
    half = tiny_model.model_copy(update={"dtype": "bfloat16"})
    network = load_model(half, torch.bfloat16)[0]
    student = with_adapter(network, LORA, None)
    assert {parameter.dtype for parameter in student.parameters() if parameter.requires_grad} == {torch.float32}
    assert {parameter.dtype for parameter in student.parameters() if not parameter.requires_grad} == {torch.bfloat16}
    full, lora = (
        run(half, tmp_path / name, name, train(precision="bfloat16"))["final"]["l_sft"]
        for name in ("raft", "raft_lora")
    )
    assert lora == pytest.approx(full, rel=0.3)


def test_the_distance_of_an_adapter_leaves_out_that_the_base_was_rounded(tiny_model, tmp_path):
    """The file of the base is float32."""
    distance = run(tiny_model.model_copy(update={"dtype": "bfloat16"}), tmp_path, "sft_lora")["distance"]
    assert distance["embed_tokens"] == 0 < distance["total"]


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["q_proj", "nothing"], None),
        (["nothing"], r"expected all-linear, mlp or some of \['down_proj'"),
        (["lm_head"], "head"),
        (["embed_tokens"], r"embed_tokens has a weight that another layer uses too \(tied embeddings\)"),
        (["q_proj", "embed_tokens"], "expected targets with weights of their own"),
    ],
)
def test_targets_that_are_not_there_or_hold_the_head(tiny_model, targets, says):
    network = load_model(tiny_model, torch.float32)[0]
    adapter = LORA.model_copy(update={"targets": targets})
    if says is None:  # peft adapts what it finds
        assert with_adapter(network, adapter, None)
    else:
        with pytest.raises(InputError, match=says):
            with_adapter(network, adapter, None)


def test_an_untied_embedding_takes_an_adapter_and_the_saved_model_is_the_trained_one(tmp_path):
    folder = save_tiny(tmp_path / "model", tie_word_embeddings=False)
    model = Model(path=str(folder), revision=None, dtype="float32", system=None)
    adapter = LORA.model_copy(update={"targets": ["q_proj", "embed_tokens"]})
    student = moved(with_adapter(load_model(model, torch.float32)[0], adapter, None)).eval()
    with torch.no_grad():
        trained = student(input_ids=IDS).logits
        assert torch.allclose(student.merge_and_unload()(input_ids=IDS).logits, trained, atol=1e-4)


def test_a_teachers_adapter_on_tied_embeddings_is_refused(tiny_model, tmp_path):
    network = load_model(tiny_model, torch.float32)[0]
    with without_peft_warnings():
        student = get_peft_model(network, LoraConfig(r=2, target_modules=["embed_tokens"], task_type="CAUSAL_LM"))
    student.save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(InputError, match=r"teacher_adapter .* has a weight that another layer uses too"):
        merge_adapter(load_model(tiny_model, torch.float32)[0], tmp_path, "distillation.teacher_adapter")


@pytest.mark.parametrize("change", ["half", "cut"])
@pytest.mark.parametrize("adapter", [LORA, None])
def test_a_teachers_adapter_that_is_not_whole(tiny_model, tmp_path, other_adapter, adapter, change):
    folder = Path(shutil.copytree(other_adapter[0], tmp_path / "teacher"))
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    if change == "half":
        save_file({name: value for name, value in weights.items() if "layers.1" not in name}, file)
    else:
        file.write_bytes(file.read_bytes()[:-100])
    row = method(lora=adapter, distillation=distillation(teacher_adapter=str(folder), teacher="plain", kl_weight=1.0))
    with pytest.raises(InputError, match=r"distillation\.teacher_adapter.*copy it again"):
        run(tiny_model, tmp_path, row)


@pytest.mark.parametrize("adapter", [LORA, None])
def test_a_teachers_adapter_that_is_not_there(tiny_model, tmp_path, adapter):
    row = method(lora=adapter, distillation=distillation(teacher_adapter=str(tmp_path), teacher="plain", kl_weight=1.0))
    with pytest.raises(InputError, match=r"teacher_adapter: got .* expected a folder with an adapter_config.json"):
        run(tiny_model, tmp_path, row)


def test_another_teacher_in_the_same_folder_is_another_training(tiny_model, tmp_path, other_adapter, monkeypatch):
    folder = Path(shutil.copytree(other_adapter[0], tmp_path / "teacher"))
    row = method(lora=LORA, distillation=distillation(teacher_adapter=str(folder), teacher="plain", kl_weight=1.0))
    keys = []

    def run_training(job, progress):
        keys.append((job.checkpoints, fingerprint(job, "base")))
        job.output.mkdir(exist_ok=True)
        return {}

    monkeypatch.setattr(distill, "run_training", run_training)
    for change in (1.0, 1.0, 2.0):
        weights = {name: change * value for name, value in load_file(folder / "adapter_model.safetensors").items()}
        save_file(weights, folder / "adapter_model.safetensors")
        distill.train.fn(job(tiny_model, tmp_path, row), {}, None, None)
    assert keys[0] == keys[1]
    assert keys[0][0] != keys[2][0]
    assert keys[0][1] != keys[2][1]


def test_the_frozen_copys_type_and_device(tiny_model, tmp_path):
    row = method(target="fused", distillation=distillation(teacher_dtype="bfloat16", teacher_device="cpu"))
    copy = teacher_network(lora_trainer(tiny_model, tmp_path, row).teacher)
    assert {parameter.dtype for parameter in copy.parameters()} == {torch.bfloat16}
    loaded = load_model(tiny_model, torch.bfloat16)[0]
    for name, tensor in loaded.named_buffers():
        assert torch.equal(copy.get_buffer(name), tensor), name
    exact, rounded = (run(tiny_model, tmp_path / str(n), m)["final"]["l_kl"] for n, m in enumerate(["raft", row]))
    assert rounded == pytest.approx(exact, rel=0.2)
    assert rounded != exact
    nowhere = row.model_copy(update={"distillation": distillation(teacher_device="cuda:9")})
    with pytest.raises(InputError, match="teacher_device: got 'cuda:9', expected null, cpu or a device"):
        run(tiny_model, tmp_path / "nowhere", nowhere)
    with pytest.raises(ValueError, match="both must be null"):
        method(lora=LORA, distillation=distillation(teacher_dtype="bfloat16", teacher="plain", kl_weight=1.0))


def test_without_an_adapter_of_its_own_no_second_copy_is_made(tiny_model, tmp_path):
    assert lora_trainer(tiny_model, tmp_path, METHODS["raft_lora"]).teacher.func is without_adapter


@pytest.mark.parametrize("name", ["sft", "raft", "raft_lora"])
def test_gradient_checkpointing_changes_nothing(tmp_path, name):
    """With dropout on: the second computation of the activations draws what the first one drew."""
    folder = save_tiny(tmp_path / "model", attention_dropout=0.3)
    model = Model(path=str(folder), revision=None, dtype="float32", system=None)
    run(model, tmp_path / "all", name)
    run(model, tmp_path / "again", name, train(gradient_checkpointing=True))
    for one, other in zip(numbers(tmp_path / "all"), numbers(tmp_path / "again"), strict=True):
        assert float(one["l_sft"]) == pytest.approx(float(other["l_sft"]), rel=1e-5)
        assert float(one["grad_norm"]) == pytest.approx(float(other["grad_norm"]), rel=1e-4)
    network = load_model(model.model_copy(update={"path": str(tmp_path / "again/output/model")}), torch.float32)[0]
    assert network.config.use_cache


def test_rows_of_like_length_share_a_step(tiny_model, tmp_path):
    run(tiny_model, tmp_path / "mixed", "raft")
    run(tiny_model, tmp_path / "grouped", "raft", train(group_by_length=True))
    assert numbers(tmp_path / "mixed") != numbers(tmp_path / "grouped")
