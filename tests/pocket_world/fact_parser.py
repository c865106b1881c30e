"""From a text back to the fact that it words: the inverse of pocket_world.styles."""

from __future__ import annotations

import re
from functools import cache

from pocket_world import styles
from pocket_world.world import Fact


def parse(text: str, style: str) -> Fact | None:
    """The fact that `text` words in `style` ("own" or a domain's), or None if it is not that style."""
    templates = [styles.OWN, styles.OWN_COMPLETE] if style == "own" else [styles.FOREIGN[style]]
    for template in templates:
        found = _pattern(template).fullmatch(text)
        if found:
            slots = found.groupdict()
            entity = slots.get("entity") or slots["ENTITY"].capitalize()
            attribute = slots.get("attribute") or slots["ATTRIBUTE"].lower()
            record = slots.get("record")
            return Fact(entity, attribute, slots["value"], None if record is None else int(record))
    return None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    pattern = re.sub(
        r"\\\{(\w+)\\\}",
        lambda slot: rf"(?P<{slot[1]}>\d+)" if slot[1] == "record" else rf"(?P<{slot[1]}>[A-Za-z]+)",
        re.escape(template),
    )
    return re.compile(pattern)
