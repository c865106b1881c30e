"""A model that says one thing, whatever it is asked: what scoring then makes of it is known."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from raft_tasks.config import Model

TEMPLATE = (
    "{% for m in messages %}<start> {{ m.role }} {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<start> assistant {% endif %}"
)
# with a switch for thinking; off, it writes an empty thought
THINKING_TEMPLATE = (
    "{% for m in messages %}<start> {{ m.role }} {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<start> assistant {% if enable_thinking is defined and not enable_thinking %}"
    "<think> </think> {% endif %}{% endif %}"
)
SPECIAL = ["<unk>", "<pad>", "<start>", "<end>", "user"]


def save_saying(folder, words, context=4096):
    """A Llama without attention and MLP: each word's embedding leads to the next word, the last one to <end>.

    The words are told apart by their place, so a word may come twice.
    """
    steps = ["assistant", *(f"{place}:{word}" for place, word in enumerate(words))]
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *steps])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Sequence([decoders.Replace(f"{place}:", "") for place in range(len(words))])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", model_max_length=context
    )
    fast.chat_template = TEMPLATE
    size = len(vocabulary) + len(vocabulary) % 2
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=size, num_hidden_layers=1, num_attention_heads=1,
            intermediate_size=2, max_position_embeddings=context, eos_token_id=3, pad_token_id=1, bos_token_id=None,
        )
    )  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight.copy_(torch.eye(len(vocabulary), size))
        for place, step in enumerate(steps):
            follower = steps[place + 1] if place + 1 < len(steps) else "<end>"
            model.lm_head.weight[vocabulary[follower], vocabulary[step]] = 1
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return Model(path=str(folder), revision=None, dtype="float32", system=None)


def thinking_model(folder, words, thinking, thought_tokens=8):
    """Says `words` where it may think; behind an empty thought, which its tokenizer does not know, "rope lamp"."""
    settings = save_saying(folder, [*words, "rope", " lamp"], context=64)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), LlamaForCausalLM.from_pretrained(folder)
    tokenizer.chat_template = THINKING_TEMPLATE
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        rope = tokenizer.convert_tokens_to_ids(f"{len(words)}:rope")
        model.lm_head.weight[rope, tokenizer.unk_token_id] = 1
    model.save_pretrained(folder)
    return settings.model_copy(update={"thinking": thinking, "thought_tokens": thought_tokens})
