"""The typed mirror of recipe.yaml: no defaults, unknown or missing keys are errors, all reported at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

RECIPE = Path(__file__).with_name("recipe.yaml")
Share = Annotated[float, Field(ge=0, le=1)]


class RecipeError(Exception):
    """The recipe does not say what the code expects."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


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
        RecipeError: naming every key that is wrong, what was expected and what came.
    """
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise RecipeError(f"{path} is not there; give the path of a recipe like {RECIPE.name}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        problems = [
            f"  {'.'.join(map(str, problem['loc'])) or '(top level)'}: {problem['msg']}, got {problem['input']!r:.80}"
            for problem in error.errors()
        ]
        raise RecipeError(f"{path} has {len(problems)} problem(s):\n" + "\n".join(problems)) from error
