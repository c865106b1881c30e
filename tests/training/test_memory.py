"""The memory estimate against what a training on the CPU allocates, and what is said when it was too much."""

import weakref

import pytest
import torch
from tiny import METHODS, TEACHER, distillation, job, pairs, save_tiny, train
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from raft_tasks.config import Lora, Model
from raft_tasks.errors import InputError
from raft_tasks.model_loading import load_model
from raft_tasks.training import memory
from raft_tasks.training.conversations import Encoded, Encoder
from raft_tasks.training.memory import Shape, available_bytes, estimate, settings_that_fit
from raft_tasks.training.preparation import TrainingData, make_pair, teacher_turn, training_arguments
from raft_tasks.training.rollouts import Rollout
from raft_tasks.training.train import train_model
from raft_tasks.training.trainer import RaftTrainer

DRAWN = 80  # tokens of every rollout here


class Allocations(TorchDispatchMode):
    """Bytes of the storages that operations have made and that are still alive."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return result

    def free(self, key, size):
        self.known.discard(key)
        self.live -= size


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Llama shape whose activations are as large as its weights."""
    folder = save_tiny(
        tmp_path_factory.mktemp("memory"), hidden_size=128, intermediate_size=352, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    return Model(path=str(folder), revision=None, dtype="float32", system=None)


def method_and_settings(checkpointing=False, lora=None, micro=4):
    method = METHODS["raft"].model_copy(
        update={
            "distillation": distillation(
                rollout_max_new_tokens=DRAWN, sampling_logprob_tolerance=99.0, probe_steps=100
            ),
            "lora": lora,
        }
    )
    return method, train(max_length=200, micro_batch_size=micro, gradient_checkpointing=checkpointing)


def make_trainer(model, method, settings, folder):
    """A trainer whose rollouts all have full length."""
    dtype = torch.float32
    network, tokenizer = load_model(model, dtype)
    rows = Encoder(tokenizer, settings.max_length, teacher_turn(method, TEACHER), DRAWN)(pairs())
    wanted = job(model, folder, method, train=settings, output=folder, checkpoints=folder)
    arguments = training_arguments(wanted, len(rows))
    student, teacher = make_pair(network, wanted, arguments.device)

    def sampler(prompts, seeds):
        return [Rollout([7] * DRAWN, True, [-1.0] * DRAWN) for _ in prompts]

    trainer = RaftTrainer(wanted, student, teacher, TrainingData(tokenizer, rows), arguments)
    trainer.rollout_buffer.sampler = sampler
    return trainer


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"checkpointing": True},
        {"micro": 1},
        {"lora": Lora(rank=4, alpha=8, dropout=0.0, targets="all-linear")},
    ],
    ids=["plain", "checkpointing", "small micro-batches", "lora"],
)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_estimate_is_near_what_a_step_allocates(model, tmp_path, changes):
    """Within a factor of 1.35, either way, of the peak of two whole steps."""
    method, settings = method_and_settings(**changes)
    trainer = make_trainer(model, method, settings, tmp_path)
    trainer.args.max_steps, trainer.args.save_strategy = 2, "no"
    expected = estimate(Shape.of(trainer.student, model.dtype), trainer.rows, method, settings)
    with Allocations() as allocations:
        trainer.train()
    measured = expected.weights + expected.teacher + allocations.peak  # both were there before
    assert 1 / 1.35 < expected.peak / measured < 1.35


def shape_and_rows(model):
    network, tokenizer = load_model(model, torch.float32)
    method, settings = method_and_settings()
    rows = Encoder(tokenizer, settings.max_length, teacher_turn(method, TEACHER), DRAWN)(pairs())
    return Shape.of(network, model.dtype), rows, method, settings


def test_changes_are_named_until_it_fits(model):
    shape, rows, method, settings = shape_and_rows(model)
    needed = estimate(shape, rows, method, settings)
    [(text, peak)] = settings_that_fit(needed.peak - 1, shape, rows, method, settings)
    assert text == "train.micro_batch_size: 2"
    half = settings.model_copy(update={"micro_batch_size": 2})
    assert peak == estimate(shape, rows, method, half).peak < needed.peak
    every = settings_that_fit(0, shape, rows, method, settings)
    assert [text.split(":")[0] for text, _ in every] == [
        "train.micro_batch_size", "train.micro_batch_size", "train.gradient_checkpointing", "lora",
    ]  # fmt: skip
    assert [peak for _, peak in every] == sorted((peak for _, peak in every), reverse=True)


def test_rollouts_are_drawn_in_smaller_batches_where_they_are_the_peak(model):
    shape, rows, method, settings = shape_and_rows(model)
    wide = settings.model_copy(update={"batch_size": 4096})
    method = method.model_copy(
        update={
            "distillation": distillation(rollout_max_new_tokens=DRAWN, sampler={"kind": "generate", "batch_size": 512})
        }
    )
    needed = estimate(shape, rows, method, wide)
    [(text, peak)] = settings_that_fit(needed.peak - 1, shape, rows, method, wide)
    assert text == "distillation.sampler.batch_size: 256"
    assert peak < needed.peak


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_names_the_settings_that_would_fit(model, tmp_path, monkeypatch, error):
    def fail(self, model):
        raise error

    monkeypatch.setattr(RaftTrainer, "fill_rollout_buffer", fail)
    method, settings = method_and_settings()
    with pytest.raises(InputError) as caught:
        train_model(job(model, tmp_path, method, train=settings))
    message = str(caught.value)
    assert message.startswith("out of memory on cpu, which has ")
    assert "activations 0.03 GB" in message
    assert "  train.micro_batch_size: 2   # then about 0.0" in message
    assert caught.value.__cause__ is error


def test_other_errors_are_not_taken_for_it(model, tmp_path, monkeypatch):
    def fail(self, model):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(RaftTrainer, "fill_rollout_buffer", fail)
    method, settings = method_and_settings()
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train_model(job(model, tmp_path, method, train=settings))


def test_a_teacher_elsewhere_and_shards_need_less(model):
    shape, rows, method, settings = shape_and_rows(model)
    whole = estimate(shape, rows, method, settings)
    elsewhere = method.model_copy(
        update={"distillation": method.distillation.model_copy(update={"teacher_device": "cpu"})}
    )
    assert estimate(shape, rows, elsewhere, settings).teacher == 0
    launch = {"processes": 4, "strategy": "fsdp2"}
    sharded = settings.model_copy(update={"launch": settings.launch.model_copy(update=launch)})
    assert estimate(shape, rows, method, sharded).optimiser == whole.optimiser // 4
    assert available_bytes(torch.device("cpu")) > 1e8
    assert memory.halves(12) == [6, 3, 1]


def test_anchors_that_are_longer_than_the_rows_count():
    rows = [Encoded("row", [1] * 8, [1] * 8, [1] * 20)]
    shape, method, settings = Shape(1000, 4000, 1000, 2, 32, 32, 32, 64, 50, 4), METHODS["raft"], train()
    alone = estimate(shape, rows, method, settings)
    both = estimate(shape, [*rows, Encoded("anchor", [1] * 60, [1] * 20, None)], method, settings)
    assert both.activations > alone.activations
    assert both.rollout_cache == alone.rollout_cache  # nothing is drawn for anchors
