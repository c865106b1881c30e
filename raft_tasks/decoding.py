"""Decoding with a causal language model in this process.

A row that ends leaves the batch, and what all prompts begin with (a system prompt) is read once: transformers'
`generate` computes every row until the last one ends, and every prompt from its first token.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from raft_tasks.sampling import left_pad

SAVED_TOKENS = 64  # a pass over the common prefix pays where at least this many tokens are saved

OF_SAMPLING = {  # settings of a GenerationConfig that greedy decoding does not read
    "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "max_length", "max_new_tokens", "use_cache", "output_attentions", "output_hidden_states", "output_scores",
    "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config",
}  # fmt: skip

# (logits float32 [B, V], numbers of their rows [B], number of the token) -> the next token of each row [B]
Choose = Callable[[Tensor, Tensor, int], Tensor]


def new_cache(model: PreTrainedModel) -> DynamicCache:
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def is_of_keys(cache: DynamicCache) -> bool:
    """Whether the cache holds keys and values alone, whose rows can be selected; a recurrent state's cannot."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def greedy(logits: Tensor, rows: Tensor, step: int) -> Tensor:
    return logits.argmax(-1)


def greedy_until(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, end: int) -> Choose:
    """Greedy decoding; a row that has said one of `texts` ends with its next token, which is `end`."""
    said: defaultdict[int, list[int]] = defaultdict(list)
    last = max(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts) + 2  # tokens may overlap a text

    def choose(logits: Tensor, rows: Tensor, step: int) -> Tensor:
        tokens = logits.argmax(-1)
        for place, row in enumerate(rows.tolist()):
            written = tokenizer.decode(said[row][-last:])
            if any(text in written for text in texts):
                tokens[place] = end
            said[row].append(int(tokens[place]))
        return tokens

    return choose


def is_greedy(config: GenerationConfig) -> bool:
    """Whether decoding without sampling takes the likeliest token: no penalties, beams or bans."""
    return not config.to_diff_dict().keys() - OF_SAMPLING


def decode(
    model: PreTrainedModel, prompts: Sequence[list[int]], choose: Choose, stop_ids: Iterable[int], max_new_tokens: int
) -> list[list[int]]:
    """Each prompt's next tokens, up to and with its first stop token; at most `max_new_tokens`.

    The model is used as it is (mode, dtype); the settings of its generation config are not.
    """
    stops = torch.tensor(sorted(stop_ids), device=model.device)
    completions: list[list[int]] = [[] for _ in prompts]
    cache = new_cache(model)
    of_keys = is_of_keys(cache)
    # padding behind the prefix would count in a sliding window
    prefix = read_common_prefix(model, prompts, cache) if of_keys and not any(cache.is_sliding) else 0
    ids, mask = left_pad([prompt[prefix:] for prompt in prompts], 0, model.device)
    mask = torch.cat([mask.new_ones(len(prompts), prefix), mask], dim=1)
    rows = torch.arange(len(prompts), device=model.device)
    going = torch.ones_like(rows, dtype=torch.bool)
    for step in range(max_new_tokens):
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1)[:, -ids.shape[1] :] - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens = choose(output.logits[:, -1].float(), rows, step)
        for row, token in zip(rows[going].tolist(), tokens[going].tolist(), strict=True):
            completions[row].append(token)
        going &= torch.isin(tokens, stops, invert=True)
        if not going.any():
            break
        if of_keys and not going.all():
            cache.batch_select_indices(going.nonzero().squeeze(1))
            rows, tokens, mask, going = rows[going], tokens[going], mask[going], going[going]
        ids, mask = tokens[:, None], torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return completions


def read_common_prefix(model: PreTrainedModel, prompts: Sequence[list[int]], cache: DynamicCache) -> int:
    """Reads what all prompts begin with into the cache; its number of tokens, 0 where they are too few to pay."""
    first, shortest = prompts[0], min(map(len, prompts)) - 1
    length = next((n for n in range(shortest) if any(row[n] != first[n] for row in prompts)), shortest)
    if length * (len(prompts) - 1) < SAVED_TOKENS:
        return 0
    ids = torch.tensor([first[:length]], device=model.device)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(len(prompts))
    return length
