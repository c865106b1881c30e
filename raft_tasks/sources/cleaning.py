"""What is done to every text before anything looks at it: Unicode NFC, one kind of line end, nothing invisible."""

import re
import unicodedata

# Control and format characters that show nothing: C0 and C1 without tab and newline, soft hyphen, zero-width space and
# word joiner, byte-order mark, bidirectional overrides (they make text read otherwise than it is stored), tags, lone
# surrogates. Zero-width joiner and non-joiner stay inside words: Persian, Indic scripts and emoji need them.
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
# What PDFs keep of a font's letters; NFC leaves them, and no search finds the word.
LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})
LINE_END_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u2010\u00ac][ \t]*\n[ \t]*(?=[^\W\d_])")
SOFT_HYPHEN = re.compile("\xad[ \t]*\n?[ \t]*")  # stands where a line may end, and in PDFs where one did
LINE_ENDS = re.compile("\r\n?|\x85|\u2028|\u2029|\x0c|\x0b")


def cleaned(text: str) -> str:
    """`text` in NFC, with newlines as line ends and without characters that show nothing."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", LINE_ENDS.sub("\n", text)).translate(LIGATURES)
        text = SOFT_HYPHEN.sub("", text)
    elif not text.isprintable():
        text = LINE_ENDS.sub("\n", text)
    else:
        return text
    return INVISIBLE.sub("", text)


def normalised(text: str) -> str:
    """Unicode NFC with every run of white space folded into one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def without_line_end_hyphens(text: str) -> str:
    """ "verifi-\\ncation" becomes one word again; a hyphen that the text has within a line too stays."""

    def join(match: re.Match[str]) -> str:
        before = re.search(r"[^\W\d_]*$", text[max(0, match.start() - 40) : match.start()])
        after = re.match(r"[^\W\d_]*", text[match.end() : match.end() + 40])
        first, second = before[0] if before else "", after[0] if after else ""
        hyphenated = f"{first}-{second}"
        return "" if second[:1].islower() and hyphenated not in text else "-"

    return LINE_END_HYPHEN.sub(join, text)
