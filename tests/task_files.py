"""lm-eval tasks of a test's own, as files."""

import json

import yaml


def write_task(folder, name, rows, **definition):
    """A task over the rows, which ask their `question`."""
    items = folder / f"{name}.jsonl"
    items.write_text("\n".join(map(json.dumps, rows)) + "\n")
    task = {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(items)}},
        "test_split": "test", "doc_to_text": "question", "metadata": {"version": 1.0}, **definition,
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))


def exact_match(until, tokens):
    """Of greedy answers: they end at `until` or after so many tokens."""
    return {
        "output_type": "generate_until",
        "generation_kwargs": {"until": until, "do_sample": False, "max_gen_toks": tokens},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


def multiple_choice(choices):
    """Of log-likelihoods; a row's `right` is the number of the right choice."""
    accuracy = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    return {
        "output_type": "multiple_choice", "doc_to_choice": choices, "doc_to_target": "right", "metric_list": [accuracy]
    }  # fmt: skip
