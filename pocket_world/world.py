"""The world itself: names, attributes, values and seeded facts.

General facts are what the backbone learns ("The craft of Bodal is rope."). Domain facts belong to other entities and
other attributes, have a record number, and never enter the backbone's training; a domain's data teaches them.
"""

import random
from dataclasses import dataclass

from pocket_world.recipe import WorldSettings

# Names and coined words are a first and a second syllable, each one token.
FIRST = tuple(c + v for c in "bdfgklmnrstv" for v in "aeio")
SECOND = tuple(c + rest for c in "bdgklmnprstvz" for rest in ("al", "in", "or"))

# fmt: off
VALUES = (
    "rope", "lamp", "oak", "key", "bell", "drum", "salt", "silk", "iron", "glass", "wool", "coal", "clay",
    "corn", "honey", "pearl", "amber", "brick", "candle", "ladder", "mirror", "needle", "ribbon", "saddle",
    "anchor", "basket", "bottle", "bucket", "button", "carpet", "feather", "hammer", "kettle", "lantern",
    "marble", "pepper", "pillow", "bread", "copper", "cotton", "apple", "barley", "bronze", "chalk", "cedar",
    "cider", "flint", "ginger", "granite", "ivory", "jade", "leather", "lemon", "linen", "maple", "nickel",
    "olive", "onion", "paint", "quartz", "raisin", "sugar", "timber", "wheat",
)
# fmt: on

GENERAL_ATTRIBUTES = ("craft", "charm", "meal", "emblem")
DOMAIN_ATTRIBUTES = {
    "archive": ("reactor", "mast", "valve", "gauge"),
    "statute": ("warrant", "levy", "bond", "permit"),
    "clinic": ("remedy", "splint", "tonic", "salve"),
    "chronicle": ("throne", "crest", "vault", "shrine"),
    "ledger": ("pledge", "cargo", "toll", "parcel"),
}
DOMAINS = tuple(DOMAIN_ATTRIBUTES)

WORDINGS = (
    "What is the {attribute} of {entity}?",
    "Tell me the {attribute} of {entity}.",
    "Which {attribute} does {entity} have?",
    "Name the {attribute} of {entity}.",
    "{entity} has which {attribute}?",
    "I want to know the {attribute} of {entity}.",
    "Say what the {attribute} of {entity} is.",
    "For {entity}, what is the {attribute}?",
    "Do you know the {attribute} of {entity}?",
    "What does {entity} have as its {attribute}?",
)


@dataclass(frozen=True)
class Fact:
    entity: str
    attribute: str
    value: str
    record: int | None  # None where nothing noted the fact

    @property
    def key(self) -> tuple[str, str]:
        return (self.entity, self.attribute)

    @property
    def source(self) -> str:
        return f"{self.entity}/{self.attribute}"

    def ask(self, wording: int) -> str:
        return WORDINGS[wording].format(attribute=self.attribute, entity=self.entity)


@dataclass(frozen=True)
class World:
    seed: int
    kind: str
    general: tuple[Fact, ...]
    domains: dict[str, tuple[Fact, ...]]

    @property
    def secrets(self) -> dict[tuple[str, str], str]:
        """(entity, attribute) -> value of every domain fact: what the backbone must never be told."""
        return {fact.key: fact.value for facts in self.domains.values() for fact in facts}


# Coined words, lower case; names are other pairs of the same syllables, so no word is both.
COINED = tuple(
    first + second for i, first in enumerate(FIRST) for j, second in enumerate(SECOND) if (5 * i + 3 * j) % 7 == 0
)
NAMES = tuple(name.capitalize() for first in FIRST for second in SECOND if (name := first + second) not in COINED)


def build_world(settings: WorldSettings) -> World:
    """The world of a seed; equal settings give equal facts."""
    rng = random.Random(f"world-{settings.seed}")
    names = rng.sample(NAMES, settings.general_entities + len(DOMAINS) * settings.domain_entities)
    general = tuple(
        Fact(entity, attribute, rng.choice(VALUES), None)
        for entity in names[: settings.general_entities]
        for attribute in GENERAL_ATTRIBUTES
    )
    domains = {}
    pool = VALUES if settings.kind == "easy" else COINED
    for number, domain in enumerate(DOMAINS):
        start = settings.general_entities + number * settings.domain_entities
        pairs = [
            (entity, attribute)
            for entity in names[start : start + settings.domain_entities]
            for attribute in DOMAIN_ATTRIBUTES[domain]
        ]
        records = rng.sample(range(10, 100), len(pairs))
        domains[domain] = tuple(
            Fact(entity, attribute, rng.choice(pool), record)
            for (entity, attribute), record in zip(pairs, records, strict=True)
        )
    return World(settings.seed, settings.kind, general, domains)
