import pytest
from stdnum import iban

from raft_tasks.sources.privacy import card_is_valid, findings, masked, phone_is_valid

PRIVATE = [
    ("Write to bob.smith+x@mail.example.org, please.", "e-mail address", "bob.smith+x@mail.example.org"),
    ("IBAN DE89 3704 0044 0532 0130 00.", "IBAN", "DE89 3704 0044 0532 0130 00"),
    ("Pay with 4111 1111 1111 1111 today", "payment card number", "4111 1111 1111 1111"),
    ("SSN 078-05-1120", "US social security number", "078-05-1120"),
    ("Call +49 30 1234567 now", "phone number", "+49 30 1234567"),
    ("Call (555) 123-4567 now", "phone number", "(555) 123-4567"),
    ("key AKIAIOSFODNN7EXAMPLE is", "AWS Access Key", "AKIAIOSFODNN7EXAMPLE"),
    ("token ghp_" + "a1B2" * 9, "GitHub Token", "ghp_" + "a1B2" * 9),
    ("-----BEGIN RSA PRIVATE KEY-----", "Private Key", "BEGIN RSA PRIVATE KEY"),
    ("https://bob:hunter2@example.org/", "Basic Auth Credentials", "://bob:hunter2@"),
    ("sk_live_" + "0123456789abcdefABCDEFgh", "Stripe Access Key", "sk_live_0123456789abcdefABCDEFgh"),
    ("xoxb-123456789012-abcdef", "Slack Token", "xoxb-123456789012-abcdef"),
]
PUBLIC = [
    "Between 2019-2020-2021 the share rose from 12.5 to 13,000,000.",
    "ISBN 978-3-16-148410-0, version 1.2.3.4.5, 10.1000/182",
    "Card 4111 1111 1111 1112 fails Luhn; IBAN DE89 3704 0044 0532 0130 01 its check digits.",
    "@alice wrote a@b and f(x) = 3 - 2; SSN 666-12-3456 cannot be.",
    "000000000000000000 eyJhbGciOi.not.json",
    "The distance is 149 597 870 700 metres.",
]


@pytest.mark.parametrize(("text", "rule", "secret"), PRIVATE)
def test_every_rule_finds_its_format(text: str, rule: str, secret: str) -> None:
    [found] = findings(text)
    assert (found.rule, text[found.start : found.end]) == (rule, secret)
    assert secret not in masked(text, [found])
    assert f"[{rule}, {len(secret)} characters]" in masked(text, [found])


@pytest.mark.parametrize("text", PUBLIC)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert findings(text) == []


def test_check_digits() -> None:
    assert iban.is_valid("GB82 WEST 1234 5698 7654 32")
    assert not iban.is_valid("GB82 WEST 1234 5698 7654 23")
    assert card_is_valid("5500-0000-0000-0004")
    assert not card_is_valid("0000 0000 0000 0000")
    assert phone_is_valid("+1 212 555 0123")
    assert not phone_is_valid("+49 1")
    assert not phone_is_valid("+999 1234567")


def test_several_findings_in_order() -> None:
    text = "a@example.org, 078-05-1120, b@example.org"
    assert [found.rule for found in findings(text)] == ["e-mail address", "US social security number", "e-mail address"]
    assert "example" not in masked(text, findings(text))
