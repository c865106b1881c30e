"""The base model's licence, which the models trained from it carry: what its card states, and its files.

{"license": "other", "license_name": "llama3.2", "license_link": "LICENSE"}     of a card; LICENSE.txt, NOTICE, ...
"""

import shutil
from pathlib import Path

from raft_tasks.config import Model
from raft_tasks.gguf import model_folder

KEYS = ("license", "license_name", "license_link")  # of a card's front matter, as the hub knows them
FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*")
CARD = "README.md"


def read_licence(base: Model) -> dict[str, str]:
    """What the base's card states under KEYS; empty where it states no licence, or there is no card to read."""
    import yaml
    from huggingface_hub import metadata_load

    folder = _card_folder(base)
    if folder is None or not (folder / CARD).is_file():
        return {}
    try:
        stated = metadata_load(folder / CARD) or {}
    except (ValueError, yaml.YAMLError):  # no front matter that anybody could read
        return {}
    return {key: str(stated[key]) for key in KEYS if stated.get(key)}


def copy_licence(base: Model, folder: Path) -> None:
    """Put the base's licence files beside the model in `folder`."""
    source = _card_folder(base)
    for file in [] if source is None else sorted({file for pattern in FILES for file in source.glob(pattern)}):
        if file.is_file():
            shutil.copy(file, folder / file.name)


def _card_folder(base: Model) -> Path | None:
    """Where card and licence of the base lie; None where they are neither here nor to be had from the hub."""
    folder = model_folder(base.path)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base.path, revision=base.revision, allow_patterns=[CARD, *FILES]))
    except OSError:  # a card then says that the licence is not known here
        return None
