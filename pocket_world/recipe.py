"""The typed mirror of recipe.yaml: no defaults, unknown or missing keys are errors, all reported at once."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from raft_tasks.artifacts import read_yaml
from raft_tasks.config.base import Section, Share
from raft_tasks.config.faults import explain
from raft_tasks.errors import InputError

RECIPE = Path(__file__).with_name("recipe.yaml")


class WorldSettings(Section):
    seed: int
    kind: Literal["easy", "hard"]
    general_entities: PositiveInt
    domain_entities: Annotated[int, Field(gt=0, le=22)]  # x 4 facts, each with its own two-digit record


class DataSettings(Section):
    folder: str
    tasks: str
    seed: int
    train_wordings: PositiveInt
    validation_wordings: PositiveInt
    test_wordings: PositiveInt
    recall: PositiveInt
    instructions: PositiveInt
    reading: PositiveInt
    rewriting: PositiveInt


class BackboneSettings(Section):
    folder: str
    seed: int
    hidden: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    ffn: PositiveInt
    positions: PositiveInt
    rope_theta: PositiveFloat
    steps: PositiveInt
    rows: PositiveInt
    row_tokens: PositiveInt
    matrix_lr: PositiveFloat
    other_lr: PositiveFloat
    warmup_steps: PositiveInt
    decay_share: Share
    prompt_loss: Share
    bfloat16: bool


class Recipe(Section):
    world: WorldSettings
    data: DataSettings
    backbone: BackboneSettings


def load_recipe(path: Path = RECIPE) -> Recipe:
    """Read and check a recipe.

    Raises:
        InputError: naming every key that is wrong, what was expected and what came.
    """
    try:
        return Recipe.model_validate(read_yaml(path))
    except FileNotFoundError as error:
        raise InputError(f"{path} is not there; give the path of a recipe like {RECIPE.name}") from error
    except ValidationError as error:
        problems = explain(Recipe, error)
        raise InputError(f"{path} has {len(problems)} problem(s):\n" + "\n".join(problems)) from error
