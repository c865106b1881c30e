"""Which bytes, or which pinned revision, a model is: what the stages that use it depend on."""

import re
from pathlib import Path
from typing import Any

from raft_tasks import gguf
from raft_tasks.chat import check_prompt
from raft_tasks.config import Endpoint, Model, resolved
from raft_tasks.errors import InputError
from raft_tasks.file_digests import FileDigests
from raft_tasks.template_file import TemplateFile

COMMIT = re.compile(r"[0-9a-f]{40}")


def identify(role: str, model: Model | Endpoint, digests: FileDigests) -> dict[str, Any]:
    """The identity of `model`: its folder's digest, its hub id with the pinned commit, an endpoint's address and name.

    Nobody can say which weights an endpoint serves under a name: it is taken at its word. Its key is not read.

    Raises:
        InputError: if `model.path` is neither a folder with a config.json nor a hub id pinned to a commit, or the
            folder's chat template cannot do what `model.thinking` wants.
    """
    if isinstance(model, Endpoint):
        return model.model_dump(include={"base_url", "model", "seeds", "options", "sampling_fields"})
    folder = Path(model.path)
    identity = resolved(model)
    if folder.suffix == gguf.SUFFIX:
        about = gguf.describe(folder)
        return {**identity, "sha256": about["sha256"], "quantisation": about["quantisation"]}
    if (folder / "config.json").is_file():
        if model.thinking != "off":
            template: Any = TemplateFile(folder)
            check_prompt(template, model.system, model.thinking)
        return {**identity, "sha256": digests.of(folder)}
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model.path) or model.path.startswith("models/"):
        raise InputError(
            f"params.yaml: models.{role}.path: got {model.path!r}, expected a folder with a config.json, "
            "or a hub id (owner/name); put the model there or correct the path"
        )
    if not model.revision or not COMMIT.fullmatch(model.revision):
        raise InputError(
            f"params.yaml: models.{role}.revision: got {model.revision!r}, expected the 40 hexadecimal digits of a "
            f"commit of {model.path}: a branch or tag can move, and every result below would be another model's"
        )
    return identity
