"""The four chat formats that the project promises, and others, each as a tiny model of its own architecture.

The templates have the form of the real ones, written from their documented behaviour and shortened to what matters:
where turns begin and end, the system block, the date, the thinking switch, which tokens begin and end a text. So do
the tokenizers: byte-level BPE without unknown tokens; those of Llama and Zephyr add a begin-of-text token to every text
by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMOLLM3 = """\
{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif -%}
{%- set mode = '/think' if enable_thinking else '/no_think' -%}
{%- set told = '' -%}
{%- if messages[0].role == 'system' -%}
  {%- set told = messages[0].content -%}
  {%- if '/no_think' in told %}{% set mode = '/no_think' -%}
  {%- elif '/think' in told %}{% set mode = '/think' %}{% endif -%}
  {%- set told = told.replace('/no_think', '').replace('/think', '').rstrip() -%}
{%- endif -%}
{{- '<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\n' -}}
{{- 'Today Date: ' ~ strftime_now('%d %B %Y') ~ '\nReasoning Mode: ' ~ mode ~ '\n\n## Custom Instructions\n\n' -}}
{{- (told or 'You are a helpful AI assistant named SmolLM, trained by Hugging Face.') ~ '\n\n<|im_end|>\n' -}}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}
    {{- '<|im_start|>user\n' ~ message.content ~ '<|im_end|>\n' -}}
  {%- elif message.role == 'assistant' -%}
    {{- '<|im_start|>assistant\n' ~ ('' if mode == '/think' else '<think>\n\n</think>\n') -}}
    {{- message.content.lstrip('\n') ~ '<|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' ~ ('' if mode == '/think' else '<think>\n\n</think>\n') -}}
{%- endif -%}
"""
LLAMA = """\
{{- bos_token -}}
{%- if not date_string is defined -%}
  {%- if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') -%}
  {%- else %}{% set date_string = '26 Jul 2024' %}{% endif -%}
{%- endif -%}
{%- if messages[0]['role'] == 'system' -%}
  {%- set told = messages[0]['content'] | trim %}{% set messages = messages[1:] -%}
{%- else %}{% set told = '' %}{% endif -%}
{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n' -}}
{{- 'Today Date: ' + date_string + '\n\n' + told + '<|eot_id|>' -}}
{%- for message in messages -%}
  {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif -%}
"""
PHI = """\
{%- for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif -%}
"""
QWEN3 = """\
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {%- set content = message.content.split('</think>')[-1].lstrip('\n') -%}
    {{- '<|im_start|>assistant\n' -}}
    {%- if loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif -%}
    {{- content + '<|im_end|>\n' -}}
  {%- else -%}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
  {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif -%}
{%- endif -%}
"""
ZEPHYR = """\
{%- for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif -%}
"""


@dataclass(frozen=True)
class Format:
    template: str
    config: str  # class of transformers
    special: tuple[str, ...]
    names: dict[str, str]  # bos_token, eos_token, pad_token, unk_token: what the tokenizer declares
    end: str  # of an assistant's turn
    ending: str  # of a prompt: what the assistant's words follow
    thinks: bool = False
    dated: bool = False
    shape: dict[str, Any] | None = None  # of the configuration, beside the common one


FORMATS = {
    "smollm3": Format(
        SMOLLM3, "SmolLM3Config", ("<|im_start|>", "<|im_end|>", "<|end_of_text|>"),
        {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},  # pad == eos
        "<|im_end|>", "<|im_start|>assistant\n<think>\n\n</think>\n", thinks=True, dated=True,
        shape={"no_rope_layers": [1, 0], "tie_word_embeddings": True},
    ),
    "llama": Format(
        LLAMA, "LlamaConfig",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},  # no padding token at all
        "<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n", dated=True,
        shape={"tie_word_embeddings": True},
    ),
    "phi": Format(
        PHI, "Phi3Config", ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>"),
        "<|end|>", "<|assistant|>",  # the end of a turn is not the end of the text, which follows it
        shape={"partial_rotary_factor": 0.75, "tie_word_embeddings": True},
    ),
    "qwen3": Format(
        QWEN3, "Qwen3Config", ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "<|im_end|>", "<|im_start|>assistant\n<think>\n\n</think>\n\n", thinks=True,
        shape={"head_dim": 16, "tie_word_embeddings": False},
    ),
}  # fmt: skip
OTHERS = {
    "zephyr": Format(
        ZEPHYR, "MistralConfig", ("<s>", "</s>"),
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"},  # <s> is added, but not by the template
        "</s>", "<|assistant|>\n",
        shape={"tie_word_embeddings": False},
    ),
}  # fmt: skip


def chat_tokenizer(name: str) -> Any:
    """The tokenizer of that format: its merges are learned from the template itself, so that prompts are short."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    form = (FORMATS | OTHERS)[name]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(
        [form.template, "Background reference knowledge: Answer the question based on the reference What is the of"],
        trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False),
    )
    core.add_special_tokens([AddedToken(token, special=True) for token in form.special])
    if form.thinks:  # as in the real ones: tokens of their own, but none that decoding would leave out
        core.add_tokens([AddedToken(token, special=False) for token in ("<think>", "</think>")])
    if "bos_token" in form.names and "unk_token" not in form.names:
        bos = form.names["bos_token"]
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, core.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=form.template, **form.names)


SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 512, "initializer_range": 0.1,
}  # fmt: skip


def save_chat_model(name: str, folder: Path, **shape: Any) -> Path:
    """Random weights of the format's architecture, and its tokenizer. The generation config names the end of the text
    alone, as those of some real models do."""
    import torch
    import transformers

    form, tokenizer = (FORMATS | OTHERS)[name], chat_tokenizer(name)
    config = getattr(transformers, form.config)(
        vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **SHAPE | (form.shape or {}) | shape,
    )  # fmt: skip
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
