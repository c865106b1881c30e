"""What is done to every text before anything looks at it: Unicode NFC, one kind of line end, nothing invisible."""

from __future__ import annotations

import re
import unicodedata

# Control and format characters that show nothing: C0 and C1 without tab and newline, soft hyphen, zero-width space and
# word joiner, byte-order mark, bidirectional overrides (they make text read otherwise than it is stored), tags, lone
# surrogates. Zero-width joiner and non-joiner stay inside words: Persian, Indic scripts and emoji need them.
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
LINE_ENDS = re.compile("\r\n?|\x85|\u2028|\u2029|\x0c|\x0b")


def cleaned(text: str) -> str:
    """`text` in NFC, with newlines as line ends and without characters that show nothing."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", LINE_ENDS.sub("\n", text))
    elif not text.isprintable():
        text = LINE_ENDS.sub("\n", text)
    else:
        return text
    return INVISIBLE.sub("", text)


def normalised(text: str) -> str:
    """Unicode NFC with every run of white space folded into one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())
