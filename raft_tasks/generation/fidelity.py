"""What of a reference answer survives in another text, by rule: numbers with their units, dates, names, negation, and
words of direction that became their opposite ("raises" / "lowers", "before" / "after", "at least" / "at most").

Sentence encoders hardly see these: "take 5 mg" and "take 50 mg" have a cosine of .88. What the rules do not see: a
content word that became another one ("rope" / "lamp"), quantities converted to another unit, "9 am" that became "9 pm",
zeros at either end of a code ("0101.21" / "101.21", "820.30" / "820.3"), ordinals in words ("second" / "third"), the
unit of a fraction, names without capitals, and what the other text adds, a negation excepted. They read English, and
may miss an item rather than invent one: a direction counts as turned only where one text has just the one pole and the
other just the opposite.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from raft_tasks.checks import LETTER, Checks, check, lost_checks
from raft_tasks.ngrams import UNSPACED
from raft_tasks.schemas import Example

# One spelling per unit (pounds are a weight and a currency); those not listed in UNIT_WORDS are read as written, since
# case tells mW from MW.
UNIT_WORDS = {
    "%": "percent per\xa0cent", "$": "dollar usd USD US$ US\xa0dollar", "€": "euro eur EUR", "¥": "yen JPY",
    "°C": "celsius Celsius degrees\xa0celsius degrees\xa0Celsius", "°F": "fahrenheit Fahrenheit degrees\xa0Fahrenheit",
    "mg": "milligram",
    "µg": "microgram mcg μg", "g": "gram", "kg": "kilogram kilo", "t": "tonne ton", "oz": "ounce",
    "lb": "pound lbs £ GBP pounds\xa0sterling",
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre",
    "km": "kilometer kilometre", "mi": "mile", "ft": "feet foot", "inch": "inches", "ml": "milliliter millilitre mL",
    "l": "liter litre L", "ms": "millisecond", "s": "second sec", "min": "minute", "h": "hour hr",
    "day": "", "week": "", "month": "", "year": "years yr",
    "W": "watt", "kW": "kilowatt", "MW": "megawatt", "V": "volt", "Hz": "hertz",
    "kHz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz", "J": "joule", "kJ": "kilojoule", "cal": "calorie",
    "kcal": "kilocalorie", "Pa": "pascal", "kB": "kilobyte KB", "MB": "megabyte", "GB": "gigabyte", "TB": "terabyte",
}  # fmt: skip
UNITS = {
    unit: unit for unit in [*UNIT_WORDS, "°", "K", "mW", "mV", "kWh", "kPa", "bar", "dB", "ppm", "mph", "km/h", "rpm"]
}
for _unit, _words in UNIT_WORDS.items():
    for _word in _words.split(" "):
        _word = _word.replace("\xa0", " ")
        UNITS |= {_word: _unit, f"{_word}s": _unit} if _word else {f"{_unit}s": _unit}
UNIT = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))

SMALL = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50,
    "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
SCALES = {
    "dozen": 12, "hundred": 100, "k": 10**3, "thousand": 10**3, "million": 10**6, "bn": 10**9, "billion": 10**9,
    "trillion": 10**12,
}  # fmt: skip
SPELLED = "|".join(sorted([*SMALL, *SCALES], key=len, reverse=True))
_IRREGULAR = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip
ORDINALS = {_IRREGULAR.get(word) or re.sub("y$", "ie", word) + "th": number for word, number in SMALL.items()}
_DIGITS = {word: number for word, number in ORDINALS.items() if number < 10}
ORDINALS |= {f"{tens}-{word}": SMALL[tens] + _DIGITS[word] for tens in [*SMALL][20:] for word in _DIGITS}
ORDINAL = re.compile(rf"\b(?:{'|'.join(sorted(ORDINALS, key=len, reverse=True))})\b")
COMPOUND = "|".join(word for word in _DIGITS if word != "second")
FRACTIONS = (
    ("half", "1/2"), ("third", "1/3"), ("third", "2/3"), ("quarter", "1/4"), ("quarter", "3/4"),
    (".5", "1/2"), (".25", "1/4"), (".75", "3/4"),
)  # fmt: skip
FRACTION_SIGN = re.compile("[\u00bc-\u00be\u2150-\u215e]")  # ½, ¾, ...
# A number may touch a letter of a script without spaces: 每日5毫克.
START, END = rf"(?<!{LETTER})(?<!\d)", rf"(?!{LETTER})(?!\d)"
NUMBER = re.compile(
    rf"""(?P<currency>(?:\b(?:US\$|USD|EUR|GBP|JPY)|[$€£¥])\s?)?
    {START}(?P<sign>(?<!\))[-−](?=\d))?
    (?:(?P<digits>(?<!/)(?:1/\d+|2/3|3/4)(?![\d/])
        | \d{{1,3}}(?:[,'’\xa0\u2009\u202f]\d{{3}})+(?!\d)(?:\.\d+)?              # 1,234,567.8
        | \d+(?:\.\d+)+                                                         # 1.5, version 1.2.3
        | \d+,\d{{1,2}}(?![\d,])                                                # 1,5
        | \d+)
      | (?P<words>\b(?i:{SPELLED})(?:(?:[\s-]|\sand\s)(?i:{SPELLED}))*\b
        (?!-(?:{COMPOUND})\b)))                                                 # twenty-first; not a twenty-second wait
    (?:\s?(?P<scale>k|bn|(?i:thousand|million|billion|trillion)){END})?
    (?:(?:\)?[\s-])?(?P<unit>{UNIT}){END})?""",  # thirty (30) days
    re.VERBOSE,
)

RANGE = re.compile(rf"(\d)(\s?(?:[-–]|to|or|and)\s?[\d.,]*\d[\s-]?({UNIT}){END})")  # 5-10 mg: 5 mg too
MONTHS = [
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
]  # fmt: skip
MONTH = rf"\b(?P<month>{'|'.join(f'{month[:3]}(?:{month[3:]})?' for month in MONTHS)}|sept)\b\.?"
DAY, YEAR = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?", r"(?:,|\sof|\sin)?\s+(?P<year>\d{4})\b"
DATES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{START}(?P<year>\d{{4}})-(?P<number>\d{{1,2}})-(?P<day>\d{{1,2}}){END}",
        rf"{START}(?P<day>\d{{1,2}})[/.](?P<number>\d{{1,2}})[/.](?P<year>\d{{4}}){END}",
        rf"\b{DAY}\s+(?:of\s+)?{MONTH}(?:{YEAR})?",
        rf"{MONTH}\s+(?:the\s+)?{DAY}\b(?:{YEAR})?",
        rf"{MONTH}{YEAR}",
    )
]

ENUMERATOR = re.compile(r"^[ \t]*\d+[.)](?=[ \t]+\S)", re.MULTILINE)  # counts the items of a list, says nothing
BOUND = r"(?:less|more|fewer|later|earlier|longer)\s+than\b"  # "no less than" denies nothing
NEGATION = re.compile(
    rf"""\b(?:not(?!\s+(?:only\b|{BOUND}))|no(?!\.?\s*\d|\s+{BOUND})
        |never|none|nobody|nothing|nowhere|neither|nor|without|cannot|\w+n['’]t)\b""",
    re.IGNORECASE | re.VERBOSE,
)

# One line per axis: what is on its one side, and on the other. Words that mostly mean something else (fall, left,
# permit the noun) are left out.
_AXES = [
    (r"rais(?:e|es|ed|ing)|increas(?:e|es|ed|ing)|ris(?:e|es|ing|en)|rose|grow|grows|grew|growing|higher",
     r"lower(?:s|ed|ing)?|decreas(?:e|es|ed|ing)|reduc(?:e|es|ed|ing)|declin(?:e|es|ed|ing)|fell|drops|dropped"),
    (r"before|prior\sto|earlier", r"after|afterwards|later"),
    (r"at\sleast|n(?:o|ot)\s(?:less|fewer)\sthan|minimum|or\smore",
     r"at\smost|n(?:o|ot)\smore\sthan|maximum|up\sto|or\s(?:less|fewer)"),
    (r"(?<!no\s)(?<!not\s)more\sthan|above|exceed(?:s|ed|ing)?",
     r"(?<!no\s)(?<!not\s)(?:less|fewer)\sthan|below"),
    (r"allow(?:s|ed|ing)?|permitted|permits", r"forbid(?:s|den)?|forbade|prohibit(?:s|ed|ing)?"),
    (r"include[sd]?|including", r"exclude[sd]?|excluding"),
    (r"largest|biggest|highest|longest|(?<!at\s)most", r"smallest|lowest|shortest|(?<!at\s)least"),
    (r"first", r"last"),
    (r"northern|north", r"southern|south"),
    (r"eastern|east", r"western|west"),
]  # fmt: skip
AXES = [tuple(re.compile(rf"\b(?:{pole})\b", re.IGNORECASE) for pole in axis) for axis in _AXES]

IN_DIGITS = re.compile(r"\d|^[IVX]{2,}$")
WORD = re.compile(rf"[^\W_{UNSPACED}]+(?:['’][^\W\d_]+)*")
SENTENCE_START = re.compile(r"(?:^|[.!?:;…\n])[\s\"'“”‘’()\[\]*#>–—•-]*")
RECORD_SIGN = re.compile(r"\s*(?:::|->|[|=/<>#@→])")  # what follows the subject in records, not in sentences
FUNCTION_WORDS = """
    a about after all also although an and any are as at be because been before between both but by can could did do
    does dr during each either every few first for from had has have he her here his how however i if in into is it its
    let many may might more most mr mrs ms much must my no none nor not of on once one or other our out over per please
    ref she should since so some such than that the their them then there these they this those through to under until
    up was we were what when where whether which while who whom whose why will with without would yes yet you your
""".split()  # noqa: SIM905
Date = tuple[int | None, int, int | None]  # year, month, day; None where it is not said


@dataclass(frozen=True)
class Fact:
    """Something in a text that can be looked for in another one."""

    start: int
    surface: str  # as it is written
    value: frozenset[Date] | tuple[str, str] | str  # a date's readings; a number and its unit; a name


def lost_from(row: Example, text: str, checks: Checks) -> list[str]:
    """What `text` has lost of a row's statement: names of checks where its answer has their values, else facts."""
    if any(check(row.answer, row.answer, checks).values()):
        return lost_checks(text, row.statement, row.answer, checks)
    return lost_facts(row.statement, text)


def lost_facts(reference: str, text: str) -> list[str]:
    """What the reference says and `text` does not, as the reference writes it, in its order, each once.

    A negation that only one of them has counts too: as written in the reference, or as "added: never" at the end. So
    does a direction whose opposite `text` says instead.
    """
    return _compare(reference, text)[0]


def find_additions(text: str, source: str) -> list[str]:
    """Numbers (in digits, Roman ones too), dates and codes of `text` that `source` does not say, as `text` has them."""
    return [surface for surface in lost_facts(text, source) if IN_DIGITS.search(surface)]


def fidelity_score(reference: str, text: str) -> float:
    """Share of the reference's numbers, dates, names, negation and directions that `text` keeps; 1 if it has none."""
    missing, checked = _compare(reference, text)
    return 1 - len(missing) / checked if checked else 1.0


def _compare(reference: str, text: str) -> tuple[list[str], int]:
    """What is lost, and how many things were looked for."""
    reference, text = _normalize(reference), _normalize(text)
    wanted = {fact.value: fact for fact in reversed(_facts(reference)) if fact.value != ("1", "")}  # "one" is a pronoun
    there = [fact.value for spelling in {text, RANGE.sub(r"\1 \3\2", text)} for fact in _facts(spelling)]
    dates = [reading for value in there if isinstance(value, frozenset) for reading in value]
    numbers = {value for value in there if isinstance(value, tuple)}
    plain_numbers = {number for number, _ in numbers} | {str(part) for date in dates for part in date if part}
    words = {_folded(word.group()) for word in WORD.finditer(text)}
    plain_numbers |= {str(ORDINALS[match.group()]) for match in ORDINAL.finditer(text.lower())}
    decimals = {f".{number.partition('.')[2]}" for number in plain_numbers}
    plain_numbers |= {fraction for word, fraction in FRACTIONS if word in words | decimals}

    def survives(value: frozenset[Date] | tuple[str, str] | str) -> bool:
        if isinstance(value, frozenset):
            return any(_says(date, reading) for reading in value for date in dates)
        if isinstance(value, tuple):
            return value in numbers if value[1] else value[0] in plain_numbers
        return value in words or str(ORDINALS.get(value)) in plain_numbers

    missing = [(fact.start, fact.surface) for fact in wanted.values() if not survives(fact.value)]
    denied, denies = NEGATION.search(reference), NEGATION.search(text)
    if denied and not denies:
        missing.append((denied.start(), denied.group()))
    if denies and not denied:
        missing.append((len(reference), f"added: {denies.group()}"))
    opposites, directions = _find_reversals(reference, text)
    return [surface for _, surface in sorted(missing + opposites)], len(wanted) + bool(denied or denies) + directions


def _normalize(text: str) -> str:
    """One form of what is written in several: composed letters, and 1/2 for the sign of a half."""
    text = unicodedata.normalize("NFC", text)
    return FRACTION_SIGN.sub(lambda sign: " " + unicodedata.normalize("NFKC", sign[0]).replace("\u2044", "/"), text)


def _find_reversals(reference: str, text: str) -> tuple[list[tuple[int, str]], int]:
    """Directions of the reference whose opposite the text says, by position; and on how many axes both say anything."""
    reversals, compared = [], 0
    for axis in AXES:
        in_reference, in_text = ([pole.search(side) for pole in axis] for side in (reference, text))
        word = in_reference[0] or in_reference[1]
        if word is None or all(in_reference) or not any(in_text):
            continue
        compared += 1
        if in_text[0 if in_reference[0] else 1] is None:
            reversals.append((word.start(), word.group()))
    return reversals, compared


def _facts(text: str) -> list[Fact]:
    """The dates, numbers and names of a text, by position; none is a part of another."""
    facts = []
    text = ENUMERATOR.sub(lambda match: " " * len(match.group()), text)
    for pattern in DATES:
        for match in pattern.finditer(text):
            readings = _date(match)
            if readings:
                facts.append(Fact(match.start(), match.group().rstrip("."), readings))
                text = text[: match.start()] + "\0" * len(match.group()) + text[match.end() :]
    facts += [Fact(match.start(), match.group().strip(), _number(match)) for match in NUMBER.finditer(text)]
    facts += _names(text)
    return sorted(facts, key=lambda fact: fact.start)


def _date(match: re.Match[str]) -> frozenset[Date]:
    """Every way to read the date (3/4/2020 has two); empty if it is none ("may 3" is mostly the verb)."""
    parts = match.groupdict()
    year, day = (int(parts[part]) if parts.get(part) else None for part in ("year", "day"))
    if name := parts.get("month"):
        if name in ("may", "march", "mar"):
            return frozenset()
        readings = [(year, [month[:3] for month in MONTHS].index(name[:3].lower()) + 1, day)]
    else:
        number = int(parts["number"])
        readings = [(year, number, day)] if "-" in match.group() else [(year, number, day), (year, day or 0, number)]
    return frozenset((y, m, d) for y, m, d in readings if 1 <= m <= 12 and (d is None or 1 <= d <= 31))


def _says(date: Date, reference: Date) -> bool:
    return all(part is None or part == other for part, other in zip(reference, date, strict=True))


def _number(match: re.Match[str]) -> tuple[str, str]:
    """The value in plain digits, and the unit in its one spelling ("" without)."""
    if match["words"]:
        value = _spelled(re.findall(SPELLED, match["words"].lower()))
    else:
        digits = re.sub(r"[,'’\xa0\u2009\u202f](?=\d{3})", "", match["digits"]).replace(",", ".")
        if digits.count(".") > 1 or "/" in digits:  # a version or a section; a fraction: half an hour, half a tablet
            return digits, ""
        value = Decimal(digits)
    value *= SCALES[match["scale"].lower()] if match["scale"] else 1
    sign = "-" if match["sign"] else ""
    unit = (match["currency"] or match["unit"] or "").strip()
    return f"{sign}{value.normalize():f}", UNITS.get(unit, "")


def _spelled(words: list[str]) -> Decimal:
    total = current = 0
    for word in words:
        if word in SMALL:
            current += SMALL[word]
        elif SCALES[word] < 1000:
            current = max(current, 1) * SCALES[word]
        else:
            total, current = total + max(current, 1) * SCALES[word], 0
    return Decimal(total + current)


def _names(text: str) -> Iterator[Fact]:
    """Capitalised words inside sentences, words of letters and digits (B12), words with inner capitals (iPhone).

    At the start of a sentence a capital says nothing, so there the word must be a possessive, stand before a sign of
    records (`Figin :: reactor`), or be capitalised elsewhere too. Words in capitals count like others, unless most of
    the text is in capitals. All are compared without regard to case, accents and plural.
    """
    words = [(match.start(), match.end(), match.group()) for match in WORD.finditer(text)]
    letters = [word for _, _, word in words if len(word) > 1 and not word[0].isdigit()]
    shouting = sum(word.isupper() for word in letters) * 2 > len(letters)
    starts = {match.end() for match in SENTENCE_START.finditer(text)}
    inside = {word for start, _, word in words if start not in starts and word[0].isupper()}
    for start, end, word in words:
        stem = word.replace("’", "'").split("'")[0].lower()
        if len(word) == 1 or word[0].isdigit() or stem in FUNCTION_WORDS or word in UNITS or NEGATION.fullmatch(word):
            continue
        code = any(character.isdigit() for character in word)
        mixed = not word.isupper() and any(character.isupper() for character in word[1:])
        capital = word[0].isupper() and not shouting
        if start in starts:
            capital = capital and (word in inside or "'" in word or "’" in word or bool(RECORD_SIGN.match(text, end)))
        if code or mixed or capital:
            yield Fact(start, word, _folded(word))


def _folded(word: str) -> str:
    """Lower case, without accents, possessive and plural endings."""
    plain = unicodedata.normalize("NFKD", word).replace("’", "'").casefold()
    plain = "".join(character for character in plain if not unicodedata.combining(character)).removesuffix("'s")
    return plain[:-1] if len(plain) > 3 and plain.endswith("s") and not plain.endswith("ss") else plain
