"""How much of the device a training uses: model FLOPs over what the device does in a plain matrix product."""

import functools
import time

import torch
from transformers import PreTrainedModel

PRODUCTS = 3  # timed; the fastest counts
SIDE = {"cpu": 768, "cuda": 8192}  # of the square matrices


@functools.lru_cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, measured once per process (about 0.1 s)."""
    side = SIDE.get(device.type, SIDE["cpu"])
    a = torch.ones(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(PRODUCTS + 1):  # the first one warms up
        started = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2.0 * side**3 / min(seconds[1:])


class ModelFlops:
    """FLOPs that the step's result needs, by 2 per parameter and token of a forward pass (Kaplan et al. 2020, 2.1).

    A backward pass costs as much for the gradient of the activations, and again for that of the weights that are
    trained. The output head counts at the tokens that are scored. Left out, as usual: attention over the sequence, and
    whatever is computed twice (checkpointing, lambda's extra pass), which is time lost, not work.
    """

    def __init__(self, student: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        embedding: torch.Tensor = student.get_input_embeddings().weight  # type: ignore[assignment]  # an Embedding
        head: torch.Tensor = student.get_output_embeddings().weight
        sizes = {id(p): p.numel() for p in student.parameters()}
        self.head = head.numel()
        self.body = sum(sizes.values()) - self.head - (0 if embedding is head else embedding.numel())
        self.trained = sum(p.numel() for p in student.parameters() if p.requires_grad) / sum(sizes.values())

    def forward(self, tokens: int, scored: int) -> float:
        """Of a pass over `tokens`, with logits at `scored` of them."""
        return 2.0 * (self.body * tokens + self.head * scored)

    def training(self, tokens: int, scored: int) -> float:
        """Of a pass forward and back."""
        return self.forward(tokens, scored) * (2 + self.trained)

    def utilisation(self, flops: float, seconds: float, devices: int) -> float:
        """Share of `devices` times the peak."""
        return flops / seconds / (devices * peak_flops(self.device, self.dtype))
