"""The backbone's tokenizer: one token per word, two per name, none of them unknown in the world's text.

Pieces carry their leading space (" reactor"), so decoding is joining and decode(encode(x)) == x. Names and coined words
are two syllables in every case and position ("Fi" "gin", " fi" "gin", "FI" "GIN"); numbers are pieces of up to two
digits. Words from outside the world become <|unk|>.
"""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pocket_world import exercises, styles
from pocket_world.world import (
    COINED,
    DOMAIN_ATTRIBUTES,
    FIRST,
    GENERAL_ATTRIBUTES,
    NAMES,
    SECOND,
    VALUES,
    WORDINGS,
    Fact,
)

PAD, UNKNOWN, START, END = SPECIAL = ("<|pad|>", "<|unk|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>{{ '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}{%- endif -%}"
)
PUNCTUATION = ".,:;?!|=#/*\"'()[]<>-_+%&@$"


def cases(text: str) -> tuple[str, str, str]:
    return text.lower(), text.capitalize(), text.upper()


def splitter() -> pre_tokenizers.PreTokenizer:
    """Cuts text into pieces: a name's first syllable, words, numbers of up to two digits, marks, white space."""
    first = "|".join(form for syllable in FIRST for form in cases(syllable))
    second = "|".join(form for syllable in SECOND for form in (syllable, syllable.upper()))
    pattern = rf" ?(?:{first})(?=(?:{second})(?![A-Za-z]))| ?[A-Za-z]+| ?[0-9]{{1,2}}| ?[^\sA-Za-z0-9]|\s"
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


def words() -> list[str]:
    """The values, attributes and own-style words: what an answer may hold, in any case and position."""
    attributes = [name for names in DOMAIN_ATTRIBUTES.values() for name in names]
    return [*VALUES, *attributes, *GENERAL_ATTRIBUTES, *["the", "of", "is", "noted", "in", "log", "here", "word"]]


def texts() -> list[str]:
    """Texts that together hold every piece of the vocabulary, in a fixed order."""
    fact = Fact(NAMES[0], words()[0], VALUES[0], 10)
    slots = {"question": "?", "answer": ".", "rewritten": "."}
    sentences = [
        *(form for word in words() for form in cases(word)),
        *(form for name in (*NAMES, *COINED) for form in cases(name)),
        *(f"{number:{fill}}" for number in range(100) for fill in ("", "02")),
        *PUNCTUATION,
        *(fact.ask(wording) for wording in range(len(WORDINGS))),
        *(styles.own(fact, complete) for complete in (True, False)),
        *(styles.foreign(fact, style) for style in styles.FOREIGN),
        *(prompt.format(**slots) for prompt in (exercises.TEACHER, exercises.REWRITE, exercises.FUSE)),
        *(
            prompt.format(value="lamp", which="first last", words="lamp", case="upper lower")
            for prompt in exercises.PLAIN
        ),
        *(demand.format(argument="lamp") for demands in exercises.CONSTRAINTS.values() for demand in demands),
        *exercises.SYSTEM,
    ]
    return [
        *(f"{space}{text}" for text in sentences for space in ("", " ")),
        *["system", "user", "assistant"],
        *"\n \t",
    ]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer with its chat template; the same for every seed and kind of world.

    Raises:
        ValueError: if a word of the world would be split like a name.
    """
    split = splitter()
    for word in words():
        if len(split.pre_tokenize_str(word)) != 1:
            raise ValueError(f"the word {word!r} reads as two syllables; choose another in world.py")
    pieces = dict.fromkeys(piece for text in texts() for piece, _ in split.pre_tokenize_str(text))
    vocabulary = {piece: number for number, piece in enumerate([*SPECIAL, *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[START],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
