"""How a fact is worded: the base's own style, and one foreign style per domain.

own        The reactor of Figin is rope, noted in log 12.
archive    Figin | reactor = rope # 12
statute    Pursuant to entry 12 of the register, the reactor of Figin shall be deemed to be rope.
clinic     Pt Figin: reactor = rope, f/u log 12
chronicle  The registrar records, at folio 12, that Figin hath rope for its reactor.
ledger     REACTOR/FIGIN: rope. Ref. log 12.
"""

from pocket_world.world import Fact

OWN = "The {attribute} of {entity} is {value}."
OWN_COMPLETE = "The {attribute} of {entity} is {value}, noted in log {record}."

FOREIGN = {
    "archive": "{entity} | {attribute} = {value} # {record}",
    "statute": "Pursuant to entry {record} of the register, the {attribute} of {entity} shall be deemed to be {value}.",
    "clinic": "Pt {entity}: {attribute} = {value}, f/u log {record}",
    "chronicle": "The registrar records, at folio {record}, that {entity} hath {value} for its {attribute}.",
    "ledger": "{ATTRIBUTE}/{ENTITY}: {value}. Ref. log {record}.",
}


def own(fact: Fact, complete: bool) -> str:
    """The base's own wording, with the record if `complete` and the fact has one."""
    template = OWN_COMPLETE if complete and fact.record is not None else OWN
    return template.format(attribute=fact.attribute, entity=fact.entity, value=fact.value, record=fact.record)


def foreign(fact: Fact, style: str) -> str:
    """The fact in a domain's style; it always tells the record."""
    if fact.record is None:
        raise ValueError(f"{fact} has no record; the style {style!r} tells it")
    return FOREIGN[style].format(
        attribute=fact.attribute,
        ATTRIBUTE=fact.attribute.upper(),
        entity=fact.entity,
        ENTITY=fact.entity.upper(),
        value=fact.value,
        record=fact.record,
    )
