"""The last section of a model card: how three servers serve this folder as it was measured."""

import re
from pathlib import Path

from raft_tasks.adapter_folder import CONFIG, is_adapter
from raft_tasks.artifacts import read_json
from raft_tasks.config import Model
from raft_tasks.gguf import model_folder

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM reserves room for
SECTION = re.compile(r"\n## Use\n.*?(?=\n## |\Z)", re.DOTALL)
WHOLE_VLLM = 'vllm serve "$MODEL" --dtype {dtype} --served-model-name "$MODEL"'
ADAPTER_VLLM = """\
vllm serve {base} --dtype {dtype}{revision} --enable-lora --max-lora-rank {rank} --lora-modules "$MODEL=$MODEL" \\
  --tokenizer "$MODEL" --chat-template "$MODEL/chat_template.jinja" --generation-config "$MODEL\""""
USE = """
## Use

{what} The folder's chat template renders, without any option, the prompts that the model was trained and measured with;
system prompt, thinking policy and date are in it. The model ends its turn with its own end-of-turn token.

```sh
MODEL=path/to/this/folder
# vLLM
{vllm}
# transformers
transformers serve "$MODEL" --dtype {dtype}
# llama.cpp (Llama architecture; `raft export` needs `pip install gguf`)
raft export "$MODEL" model.gguf --dtype {width}
python -m llama_cpp.server --model model.gguf --model_alias "$MODEL"
```

Each speaks OpenAI's protocol at http://127.0.0.1:8000/v1. The scores were measured greedily, and servers sample unless
a request says otherwise (llama_cpp.server also needs `"repeat_penalty": 1.0`, its own is 1.1):

```sh
curl http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \\
  -d '{{"model": "'"$MODEL"'", "messages": [{{"role": "user", "content": "..."}}], "temperature": 0}}'
```
"""


def with_usage(card: str, folder: Path, base: Model) -> str:
    """The card with the section for the model in `folder` at its end, in place of one that it has.

    Args:
        base: what an adapter in `folder` was trained on; its dtype is the one that was measured in.
    """
    width = "float32" if base.dtype == "float32" else "float16"
    what, vllm, names = "The folder is complete.", WHOLE_VLLM, {}
    if is_adapter(folder):
        what = f"An adapter: run the commands where its base `{base.path}` is."
        rank = read_json(folder / CONFIG)["r"]
        names = {
            "base": str(model_folder(base.path)),
            "revision": f" --revision {base.revision}" if base.revision else "",
            "rank": next((room for room in RANKS if room >= rank), rank),
        }
        vllm = ADAPTER_VLLM
    vllm = vllm.format(dtype=base.dtype, **names)
    return SECTION.sub("", card).rstrip("\n") + "\n" + USE.format(what=what, vllm=vllm, dtype=base.dtype, width=width)
