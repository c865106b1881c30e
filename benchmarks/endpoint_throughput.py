"""How near the endpoint backend comes to what latency and concurrency allow: 2,000 calls at 50 ms, 16 in flight.

    python benchmarks/endpoint_throughput.py [CALLS]

Three times: the backend alone, the backend behind the response cache, and the same calls once more, all from the cache.
The server (tests/endpoint_server.py) runs in a process of its own on 127.0.0.1. The bound is calls x latency / in
flight; the aim is at most 1.3 times that.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from endpoint_server import running, stats

from raft_tasks.config import Budget, Endpoint
from raft_tasks.generation.cached_backend import CallSession, ModelPool, build_backend
from raft_tasks.sampling import SamplingParams

LATENCY = 0.05
IN_FLIGHT = 16
PARAMS = SamplingParams(temperature=0.7, top_p=0.95, max_tokens=40, batch_size=64)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    bound = count * LATENCY / IN_FLIGHT
    prompts = [f"Question: {n}\nReference answer: The answer to {n} is {n * n}." for n in range(count)]
    with running(latency=LATENCY) as base_url, tempfile.TemporaryDirectory() as folder:
        model = Endpoint(
            base_url=base_url, model="m", seeds=True, options={}, length_field="max_tokens", api_key_env=None,
            concurrency=IN_FLIGHT, timeout_s=30, max_retries=3, price_per_million_input=0, price_per_million_output=0,
        )  # fmt: skip
        identity = {"base_url": base_url, "model": "m"}
        calls = CallSession(Path(folder) / "responses.sqlite", "run", "rewrite", Budget(tokens=None, money=None))
        pool = ModelPool(calls, {"m": model}, {"m": identity})
        alone, cached = build_backend(model, identity), pool.backend("rewrite", "m")
        alone.generate(prompts[:IN_FLIGHT], PARAMS, [0] * IN_FLIGHT)  # imports, connections
        print(f"{count} calls at {LATENCY * 1000:.0f} ms, {IN_FLIGHT} in flight: at least {bound:.2f} s")
        for name, backend, seed in (
            ("backend alone", alone, 1),
            ("behind the response cache", cached, 2),
            ("again, from the cache", cached, 2),
        ):
            before = stats(base_url)["served"]
            began = time.perf_counter()
            backend.generate(prompts, PARAMS, [seed] * count)
            seconds = time.perf_counter() - began
            made = stats(base_url)["served"] - before
            print(f"{name:26s} {seconds:6.2f} s, {seconds / bound:5.2f} x the bound, {made} calls at the server")
        calls.cache.close()


if __name__ == "__main__":
    main()
