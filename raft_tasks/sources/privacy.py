"""Secrets and personal data by their format: which rule finds what in a text. Formats alone: no name is recognised.

Secrets: the regular expressions of detect-secrets' plugins. Personal data: the patterns below, those with check digits
checked. Every match holds one of a rule's fixed words: most rows are done with a search for these.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pkgutil import resolve_name
from typing import Any

from stdnum import iban, luhn

SHOWN = 2  # characters of a finding that reports show

_DIGITS = re.compile(r"\d[\d ().\-]{5,}\d")  # what every rule on numbers needs
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])")
_SSN = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_PHONE = re.compile(
    r"(?<![\w+])\+[1-9]\d{0,2}[ .\-]?(?:\(\d{1,4}\)[ .\-]?)?\d(?:[ .\-]?\d){5,11}(?![\w-])"  # +49 30 1234567
    r"|(?<![\w(.\-])(?:\(\d{3}\) ?|\d{3}[.\-])\d{3}[.\-]\d{4}(?![\w-])"  # (555) 123-4567
)


@dataclass(frozen=True)
class Finding:
    """`text[start:end]` has the format of `rule`."""

    rule: str
    start: int
    end: int


def findings(text: str) -> list[Finding]:
    """Every secret and personal datum in `text`, in order; of two that overlap, the first rule's."""
    found: list[Finding] = []
    for needle, rule, matches in _rules():
        if needle in text:
            found += [Finding(rule, start, end) for start, end in matches(text)]
    if _DIGITS.search(text):
        for rule, pattern, valid in _NUMBERS:
            found += [Finding(rule, *match.span()) for match in pattern.finditer(text) if valid(match[0])]
    distinct: list[Finding] = []
    for finding in found:
        if all(finding.end <= other.start or other.end <= finding.start for other in distinct):
            distinct.append(finding)
    return sorted(distinct, key=lambda finding: finding.start)


def masked(text: str, found: list[Finding]) -> str:
    """`text` with its findings shortened to two characters and named."""
    parts, position = [], 0
    for finding in found:
        parts += [text[position : finding.start], mask(text, finding)]
        position = finding.end
    return "".join([*parts, text[position:]])


def mask(text: str, finding: Finding) -> str:
    return f"{text[finding.start : finding.start + SHOWN]}...[{finding.rule}, {finding.end - finding.start} characters]"


def card_is_valid(number: str) -> bool:
    """ISO/IEC 7812: an issuer's first digit, and Luhn's check digit."""
    digits = "".join(filter(str.isdigit, number))
    return digits[0] in "23456" and len(set(digits)) > 1 and luhn.is_valid(digits)


def phone_is_valid(number: str) -> bool:
    """Whether a country's numbers can have this length; without a country code: those of North America."""
    import phonenumbers

    try:
        return phonenumbers.is_possible_number(phonenumbers.parse(number, "US"))
    except phonenumbers.NumberParseException:
        return False


_NUMBERS: list[tuple[str, re.Pattern[str], Callable[[str], bool]]] = [
    ("IBAN", _IBAN, iban.is_valid),
    ("payment card number", _CARD, card_is_valid),
    ("US social security number", _SSN, lambda number: True),
    ("phone number", _PHONE, phone_is_valid),
]


@cache
def _rules() -> list[tuple[str, str, Callable[[str], Iterator[tuple[int, int]]]]]:
    """(a word that matches hold, rule, text -> spans); detect-secrets is imported here, it takes a moment."""
    gitlab = ("glpat-", "gldt-", "glft-", "glsoat-", "glrt-", "GR1348941", "glcbt-", "glimt-", "glptt-", "glagent-")
    plugins: dict[str, tuple[str, ...]] = {
        "aws.AWSKeyDetector": ("AKIA", "ASIA", "ABIA", "ACCA", "A3T"),
        "azure_storage_key.AzureStorageKeyDetector": ("AccountKey=",),
        "basic_auth.BasicAuthDetector": ("://",),
        "github_token.GitHubTokenDetector": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
        "gitlab_token.GitLabTokenDetector": gitlab,
        "jwt.JwtTokenDetector": ("eyJ",),
        "npm.NpmDetector": (":_authToken",),
        "openai.OpenAIDetector": ("T3BlbkFJ",),
        "private_key.PrivateKeyDetector": ("PRIVATE KEY", "PuTTY-User-Key-File-2"),
        "pypi_token.PypiTokenDetector": ("pypi-AgE",),
        "sendgrid.SendGridDetector": ("SG.",),
        "slack.SlackDetector": ("xox", "XOX", "hooks.slack.com"),
        "stripe.StripeDetector": ("k_live_",),
    }

    def spans(plugin: Any) -> Callable[[str], Iterator[tuple[int, int]]]:
        """Whole matches: what a plugin itself reports can be a part of the secret, the rest of which we would show."""
        valid = getattr(plugin, "is_formally_valid", lambda secret: True)  # of a JSON web token

        def of(text: str) -> Iterator[tuple[int, int]]:
            for pattern in plugin.denylist:
                yield from (match.span() for match in pattern.finditer(text) if valid(match[0]))

        return of

    def emails(text: str) -> Iterator[tuple[int, int]]:
        return (match.span() for match in _EMAIL.finditer(text))

    rules = [
        (needle, plugin.secret_type, spans(plugin))
        for name, needles in plugins.items()
        for plugin in [resolve_name(f"detect_secrets.plugins.{name}")()]
        for needle in needles
    ]
    return [*rules, ("@", "e-mail address", emails)]
