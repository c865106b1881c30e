"""The embedded model in a project of one's own: a copy whose vocabulary has the words of the user's rows too."""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

POCKET = Path(__file__).parents[1] / "pocket_world" / "model"
EMBEDDING = "model.embed_tokens.weight"  # the head is tied to it
MOST_WORDS = 20_000


def copy_pocket_model(folder: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Copy the embedded model to `folder` and add the words of `rows`; returns how many were added.

    Its tokenizer knows its own world alone, and training refuses answers with unknown tokens. New words begin near the
    mean embedding: no more likely than any other word until they are learned.
    """
    import numpy
    from safetensors.numpy import load_file, save_file
    from tokenizers import Tokenizer

    shutil.copytree(POCKET, folder)
    file, config, weights = folder / "tokenizer.json", folder / "config.json", folder / "model.safetensors"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    split = Tokenizer.from_file(str(file)).pre_tokenizer.pre_tokenize_str
    texts = (f"{space}{text}" for text in _texts(list(rows)) for space in ("", " "))  # a word after a space is another
    pieces = Counter(piece for text in texts for piece, _ in split(text))
    words = [piece for piece, _ in pieces.most_common() if piece not in vocabulary][:MOST_WORDS]
    if not words:
        return 0
    vocabulary |= {word: number for number, word in enumerate(words, start=len(vocabulary))}
    file.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    settings = json.loads(config.read_text(encoding="utf-8")) | {"vocab_size": len(vocabulary)}
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    tensors = load_file(weights)
    table = tensors[EMBEDDING]
    noise = numpy.random.default_rng(0).normal(size=(len(words), table.shape[1])) * 0.1 * table.std(axis=0)
    tensors[EMBEDDING] = numpy.concatenate([table, table.mean(axis=0) + noise]).astype(table.dtype)
    save_file(tensors, weights, metadata={"format": "pt"})
    return len(words)


def _texts(value: Any) -> Iterator[str]:
    """All texts in rows, however deep."""
    values = [value]
    while values:
        value = values.pop()
        if isinstance(value, str):
            yield value.encode("utf-8", "replace").decode()  # half a character is none that a tokenizer takes
        elif isinstance(value, dict | list):
            values += [*(value.values() if isinstance(value, dict) else value)][::-1]
