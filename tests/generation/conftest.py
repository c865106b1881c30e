"""A tiny random Llama with a word tokenizer and a chat template, and rows to feed it."""

from pathlib import Path

import pytest

from raft_tasks.config import Model
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.schemas import Example

TEMPLATE = (
    "{%- for message in messages -%}<|{{ message['role'] }}|> {{ message['content'] }} <|end|> {% endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
WORDS = """
    Question: Reference answer: Rewritten Rewrite the in your own words. Keep every fact. Merge both into one
    complete answer What is reactor of it rope lamp corn log noted Figin Tarin Babor . ? | = # 1 2 3
""".split()  # noqa: SIM905
# The end of text differs from the end of turn, as in Phi-4-mini.
SPECIAL = ["<|pad|>", "<|endoftext|>", "<|unk|>", "<|user|>", "<|assistant|>", "<|end|>"]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*SPECIAL, *WORDS]))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        eos_token="<|endoftext|>",
        unk_token="<|unk|>",
        additional_special_tokens=SPECIAL[3:],
        chat_template=TEMPLATE,
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.3,  # sharp enough for distinct texts
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    # What a model on the hub may bring along, and what the settings given here must override.
    model.generation_config.update(do_sample=True, top_k=1, temperature=0.1, repetition_penalty=5.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> TransformersBackend:
    return TransformersBackend(Model(path=str(tiny_folder), revision=None, dtype="float32", system=None))


@pytest.fixture
def examples() -> list[Example]:
    """15 rows of several lengths."""
    names, things = ["Figin", "Tarin", "Babor"], ["rope", "lamp", "corn"]
    return [
        Example(
            id=f"row-{number}",
            domain="archive",
            question=f"What is {'the reactor of ' * (number % 4)}{names[number % 3]} ?",
            answer=f"{names[number % 3]} | reactor = {things[number % 2]} {'# 1 2 3' if number % 5 else ''}",
            source=names[number % 3],
            split="train",
        )
        for number in range(15)
    ]
