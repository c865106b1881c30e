"""Which language a text is in, by py3langid; asked only where it can know."""

from functools import cache
from typing import Any

LETTERS = 40  # below that a guess is no better than a coin's
SURE = 0.95  # probability from which another language is believed


def other_language(text: str, language: str) -> str | None:
    """The language (ISO 639-1) that `text` is surely in instead of `language`; None where it is not, or too short."""
    if sum(character.isalpha() for character in text[: 10 * LETTERS]) < LETTERS:
        return None
    found, probability = _identifier().classify(text)
    return found if found != language and probability >= SURE else None


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
