import pytest
import torch
from tiny import tiny_llama

from raft_tasks.training.completion_forward import completion_mask, completion_states, output_head
from raft_tasks.training.losses import head_logits

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
COMPLETIONS = [[20, 21], [22], [23, 24, 25, 2]]


@pytest.fixture(scope="module")
def model():
    return tiny_llama(40)


def test_mask_has_a_true_entry_per_token():
    assert completion_mask(COMPLETIONS).int().tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]


@torch.no_grad()
def test_a_batch_scores_like_its_rows_one_by_one(model):
    together = completion_states(model, PROMPTS, COMPLETIONS)
    apart = torch.cat([completion_states(model, [p], [c]) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    assert together.shape == (7, 32)
    assert torch.allclose(together, apart, atol=1e-5)


@torch.no_grad()
def test_a_left_padded_batch_with_mask_scores_the_same(model):
    """The way `generate` sees the student: left-padded, masked. Same states at the same tokens."""
    rows = [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    padded = torch.cat([logits[i, -len(c) - 1 : -1] for i, c in enumerate(COMPLETIONS)])
    scored = head_logits(completion_states(model, PROMPTS, COMPLETIONS), output_head(model))
    assert torch.allclose(scored, padded, atol=1e-4)


@torch.no_grad()
def test_states_predict_the_completion(model):
    """Position t's state gives the logits of token t + 1: compare with the model's own logits."""
    logits = model(input_ids=torch.tensor([PROMPTS[2] + COMPLETIONS[2]])).logits[0]
    scored = head_logits(completion_states(model, [PROMPTS[2]], [COMPLETIONS[2]]), output_head(model))
    assert torch.allclose(scored, logits[2:6], atol=1e-5)


def small(kind, **settings):
    import transformers

    shape = {
        "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "initializer_range": 0.5,
    }  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(shape | settings))
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("SmolLM3", {}),
        ("Llama", {"tie_word_embeddings": True}),
        ("Phi3", {}),
        ("Qwen3", {}),
        ("Gemma2", {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}),
        ("Granite", {"logits_scaling": 8.0}),
        ("Cohere", {"logit_scale": 0.25}),
    ],
)
@torch.no_grad()
def test_heads_of_real_architectures(kind, settings):
    model = small(kind, **settings)
    expected = model(input_ids=torch.tensor([PROMPTS[0] + COMPLETIONS[0]])).logits[0, 4:6]
    scored = head_logits(completion_states(model, [PROMPTS[0]], [COMPLETIONS[0]]), output_head(model))
    assert torch.allclose(scored, expected, atol=1e-5)
    together = completion_states(model, PROMPTS, COMPLETIONS)
    apart = torch.cat([completion_states(model, [p], [c]) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    assert torch.allclose(together, apart, atol=1e-4)


def test_unknown_ways_to_logits_are_refused(model):
    class Odd(type(model)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 1.5
            return output

    odd = Odd(model.config)
    with pytest.raises(ValueError, match="Odd computes its logits in a way"):
        output_head(odd)
