"""One training from its settings to a saved model: resumption, the loop, the model's folder, the summary."""

from pathlib import Path
from typing import Any

import torch

from raft_tasks.chat import save_tokenizer, stop_ids
from raft_tasks.errors import Interrupted
from raft_tasks.model_files import save_network
from raft_tasks.model_loading import load_model, quiet
from raft_tasks.thoughts import count_thoughts
from raft_tasks.training.adapters import STUDENT, save_adapter
from raft_tasks.training.checkpoints import last_complete
from raft_tasks.training.divergence import relative_distance
from raft_tasks.training.injection import injection_summary
from raft_tasks.training.job import TrainingJob
from raft_tasks.training.licence import copy_licence
from raft_tasks.training.memory import Shape, explain, is_out_of_memory
from raft_tasks.training.model_card import model_card
from raft_tasks.training.preparation import (
    TrainingData,
    base_dtype,
    make_pair,
    prepare,
    training_arguments,
    with_target_logits,
)
from raft_tasks.training.step_metrics import Progress, write_table
from raft_tasks.training.summary import TrainingSummary, summarise
from raft_tasks.training.trackers import report_to
from raft_tasks.training.trainer import RaftTrainer
from raft_tasks.training.usage import with_usage


def train_model(job: TrainingJob, progress: Progress | None = None) -> TrainingSummary | None:
    """Train one model by one method; resume where an interrupted call with an equal job stopped.

    Returns:
        The summary. Of several processes only the first writes and returns something.

    Raises:
        ChatError, ConversationError, InputError: before training, each saying what to do.
        InputError: in training, if a checkpoint cannot be written; if a loss or gradient diverges, naming step and rows
            (the batch is kept as JSON in `checkpoints`); if memory runs out, naming the settings that would fit; if
            rollouts are not sampled from the student as it is.
        Interrupted: after SIGTERM or SIGINT, when a checkpoint is complete.
    """
    network, data = prepare(job)
    arguments = training_arguments(job, len(data.rows))
    report_to(arguments, job.trackers, job.tracking)
    job.checkpoints.mkdir(parents=True, exist_ok=True)
    with arguments.main_process_first():  # it removes incomplete checkpoints
        checkpoint = last_complete(job.checkpoints, data.fingerprint)
    job.output.mkdir(parents=True, exist_ok=True)
    data = with_target_logits(network, data, job, arguments.device)
    student, teacher = make_pair(network, job, arguments.device)
    with quiet():
        trainer = RaftTrainer(job, student, teacher, data, arguments, progress)
        run_loop(trainer, job, data, checkpoint)
    weights = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None  # by all together
    if not arguments.should_save:
        return None
    if weights is not None:  # the student is in shards
        student = make_pair(load_model(job.model, torch.float32)[0], job, arguments.device)[0]
        student.load_state_dict(weights)
    trained = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    student, distance = save_model(student, job, data)
    parameters = sum(parameter.numel() for parameter in student.parameters())
    unknown = data.tokenizer.unk_token_id
    summary = summarise(trainer.steps(), data.rows, data.replay, unknown, (parameters, trained), distance)
    if job.model.thinking != "off":
        summary["thoughts"], summary["unfinished_thoughts"] = count_thoughts(pair.thought for pair in job.pairs)
    if trainer.curve is None:
        write_table(job.output / "curve.csv", ["step"], [])
    else:
        summary["curve"] = trainer.curve.summary(summary["seconds"])
    if job.injected is not None:
        summary["injection"] = injection_summary(job.injected)
        summary["seconds"] += summary["injection"]["seconds"]
    return summary


def run_loop(
    trainer: RaftTrainer, job: TrainingJob, data: TrainingData, checkpoint: tuple[Path, dict[str, Any]] | None
) -> None:
    """Train to the end, from the checkpoint (folder, state) if there is one."""
    if checkpoint is not None:
        trainer.load_state_dict(checkpoint[1])
    shape = Shape.of(trainer.student, job.model.dtype)  # before it is sharded
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint[0]) if checkpoint else None)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise explain(error, trainer.args.device, shape, data.all_rows, job) from error
    finally:
        trainer.interruption.watch.restore()
    done, steps, signal = trainer.state.global_step, trainer.state.max_steps, trainer.interruption.received
    if signal and done < steps:
        raise Interrupted(
            f"stopped by {signal} after step {done} of {steps}; its checkpoint is complete, the next run goes on there"
        )
    if trainer.curve is not None:
        trainer.curve.restore_best()


def save_model(student: Any, job: TrainingJob, data: TrainingData) -> tuple[Any, dict[str, float]]:
    """Write `output`/model, of LoRA the adapter; returns the whole model and its weights' distance to the base."""
    folder = job.output / "model"
    base = load_model(job.model, base_dtype(job))[0]
    with quiet():
        if job.method.lora is not None:  # OSF's factors are as large as the model
            save_adapter(student, job.model, folder)
        if job.method.adapter is not None:
            student = student.float().merge_and_unload(adapter_names=[STUDENT])
        distance = relative_distance(student, base)
        generation = student.generation_config
        generation.eos_token_id = stop_ids(data.tokenizer, generation.eos_token_id)  # where it stops for other users
        if job.method.lora is not None:
            generation.save_pretrained(folder)
        else:
            save_network(student.to(getattr(torch, job.model.dtype)), folder)
    save_tokenizer(data.tokenizer, job.model.system, folder, job.model.thinking)
    copy_licence(job.model, folder)
    card = with_usage(model_card(job, data), folder, job.model)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return student, distance
