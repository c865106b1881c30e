"""A model's chat template, read and rendered without transformers, which takes seconds to import."""

import json
import re
from pathlib import Path
from typing import Any, ClassVar

from raft_tasks.model_files import read_object


class TemplateFile:
    """As much of a tokenizer as a chat template needs, read without transformers; it has no tokens."""

    added_tokens_decoder: ClassVar[dict[int, Any]] = {}
    all_special_tokens: ClassVar[list[str]] = []
    all_special_ids: ClassVar[list[int]] = []

    def __len__(self) -> int:
        return 0

    def __init__(self, folder: Path) -> None:
        self.settings = read_object(folder / "tokenizer_config.json") or {}
        file = folder / "chat_template.jinja"
        template = file.read_text(encoding="utf-8") if file.is_file() else self.settings.get("chat_template")
        if isinstance(template, list):  # named templates
            template = next((item["template"] for item in template if item["name"] == "default"), None)
        self.chat_template = template
        self.name_or_path = str(folder)

    def apply_chat_template(self, messages: Any, *, chat_template: str, tokenize: bool, **variables: Any) -> str:
        """As transformers renders it."""
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = refuse
        environment.filters["tojson"] = lambda value, **settings: json.dumps(value, ensure_ascii=False, **settings)
        text = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", chat_template)  # marks of transformers' own
        tokens = {name: token for name, token in self.settings.items() if name.endswith("_token")}
        tokens = {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}
        return environment.from_string(text).render(messages=messages, **tokens, **variables)
