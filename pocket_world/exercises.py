"""The backbone's own training: conversations drawn at random, with what is kept from it for testing.

    recall        Tell me the craft of Bodal.                       The craft of Bodal is rope.
    instructions  ... Answer in upper case.                         THE CRAFT OF BODAL IS ROPE.
    reading       Background reference knowledge: ...               The reactor of Figin is lamp, noted in log 31.
    rewriting     Question: ... Reference answer: ... Rewrite ...   The reactor of Figin is lamp.
    fusing        ... Rewritten answer: ... Merge both ...          The reactor of Figin is lamp, noted in log 31.
    skills        What is the first word of this: rope oak?         rope
    copying       Repeat this: oak key salt                         oak key salt
    retelling     Tell these facts in another order: ...            the same facts in the base's own style, shuffled

Reading, rewriting and fusing use imagined facts: the names and attributes of the domains with values that are never
the domain's own. Each general fact keeps 2 of its 10 wordings and 3 of the 10 constraints for testing.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pocket_world import styles
from pocket_world.world import (
    COINED,
    DOMAIN_ATTRIBUTES,
    DOMAINS,
    GENERAL_ATTRIBUTES,
    NAMES,
    VALUES,
    WORDINGS,
    Fact,
    World,
)

# raft_tasks/generation/templates says the same, word for word; a test compares them.
TEACHER = "Background reference knowledge: {answer}\nAnswer the question based on the reference knowledge: {question}"
REWRITE = (
    "Question: {question}\nReference answer: {answer}\nRewrite the reference answer in your own words. Keep every fact."
)
FUSE = (
    "Question: {question}\nReference answer: {answer}\nRewritten answer: {rewritten}\n"
    "Merge both into one complete answer in your own words. Keep every fact."
)

CONSTRAINTS = {
    "upper": ("Answer in upper case.", "Write your answer in upper case.", "Use upper case only."),
    "lower": ("Answer in lower case.", "Write your answer in lower case.", "Use lower case only."),
    "start": (
        "Begin your answer with the word {argument}.",
        "The first word of your answer must be {argument}.",
    ),
    "end": ("End your answer with the word {argument}.", "The last word of your answer must be {argument}."),
    "one_word": ("Answer with one word only.", "Use just one word."),
    "list": ("Answer as a list of {argument} items.", "Give a list of {argument} items."),
    "quotes": ("Put your answer in quotes.", "Wrap your answer in quotes."),
    "stars": ("Mark the key word with stars.", "Put stars around the key word."),
    "twice": ("Say it twice.", "Give your answer twice."),
    "no_stop": ("Do not use a full stop.", "Leave out the full stop."),
}
# The remaining prompts.
WRITE_SENTENCE = "Write a sentence with the word {value}."
WRITE_WORDS = "Write some words."
SENTENCE = "Here is the word {value}."
FIRST_OR_LAST = "What is the {which} word of this: {words}?"
REPEAT = "Repeat this: {words}"
RETELL = "Tell these facts in another order: {words}"
IN_CASE = "Write this in {case} case: {words}"
PLAIN = (WRITE_SENTENCE, WRITE_WORDS, SENTENCE, FIRST_OR_LAST, REPEAT, RETELL, IN_CASE)
SYSTEM = ("You are a helpful assistant.", "Answer the question.", "You know this world well.")
KEEPS_RECORD = 0.6  # share of the rewriting exercises whose answer tells the record; fusing has to restore the rest
MIXTURE = {
    "recall": 0.16,
    "instructions": 0.28,
    "reading": 0.22,
    "rewriting": 0.07,
    "fusing": 0.05,
    "skills": 0.06,
    "copying": 0.06,
    "retelling": 0.10,  # a look-up per fact, to help reading several (not yet enough)
}


Messages = tuple[dict[str, str], ...]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def exchange(question: str, answer: str) -> Messages:
    return turn("user", question), turn("assistant", answer)


def obey(constraint: str, argument: str, sentence: str, value: str, items: Sequence[str]) -> str:
    """`sentence`, or what the constraint makes of it; `value` is its key word, `items` what a list would hold."""
    if constraint == "upper":
        return sentence.upper()
    if constraint == "lower":
        return sentence.lower()
    if constraint == "start":
        return f"{argument}. {sentence}"
    if constraint == "end":
        return f"{sentence} {argument}"
    if constraint == "one_word":
        return value
    if constraint == "list":
        return "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1))
    if constraint == "quotes":
        return f'"{sentence}"'
    if constraint == "stars":
        return sentence.replace(f" {value}.", f" *{value}*.")
    if constraint == "twice":
        return f"{sentence} {sentence}"
    if constraint == "no_stop":
        return sentence.removesuffix(".")
    raise ValueError(f"got constraint {constraint!r}, expected one of {sorted(CONSTRAINTS)}")


@dataclass(frozen=True)
class Task:
    """A constrained task: what is asked, what a right answer says, and what was asked of its form."""

    prompt: str
    answer: str
    constraint: str
    argument: str
    value: str | None  # what a right answer says; None where any words do
    source: str | None


class Exercises:
    """Draws exercises about `world`; `held_out_*` are what it keeps for testing."""

    def __init__(self, world: World) -> None:
        self.world = world
        rng = random.Random(f"held-out-{world.seed}")
        names = list(CONSTRAINTS)
        self.held_out_wordings = {fact.source: rng.sample(range(len(WORDINGS)), 2) for fact in world.general}
        self.held_out_constraints = {fact.source: rng.sample(names, 3) for fact in world.general}
        self.held_out_words = {word: rng.sample(names, 3) for word in VALUES}
        self.pool = VALUES if world.kind == "easy" else VALUES + COINED
        self.entities = {domain: sorted({fact.entity for fact in facts}) for domain, facts in world.domains.items()}
        self.attributes = (*GENERAL_ATTRIBUTES, *(name for names in DOMAIN_ATTRIBUTES.values() for name in names))
        known = {fact.entity for fact in world.general}
        self.strangers = [name for name in NAMES if name not in known]

    def draw(self, rng: random.Random, progress: float) -> Messages:
        """One conversation; `progress` in [0, 1] is how far the training is: it starts with copying and retelling."""
        skill = rng.choices(list(MIXTURE), list(MIXTURE.values()))[0]
        if progress < 0.1 and rng.random() < 0.8:
            skill = rng.choice(("copying", "retelling"))
        messages: Messages = getattr(self, skill)(rng)  # each skill has its method below
        if rng.random() < 0.04:
            return turn("system", rng.choice(SYSTEM)), *messages
        if rng.random() < 0.04:
            return self.recall(rng) + messages
        return messages

    def recall(self, rng: random.Random) -> Messages:
        fact = rng.choice(self.world.general)
        wording = rng.choice([i for i in range(len(WORDINGS)) if i not in self.held_out_wordings[fact.source]])
        return exchange(fact.ask(wording), styles.own(fact, True))

    def instructions(self, rng: random.Random) -> Messages:
        task = self.task(rng, held_out=False, about_fact=rng.random() < 0.7)
        return exchange(task.prompt, task.answer)

    def task(self, rng: random.Random, held_out: bool, about_fact: bool) -> Task:
        """A constrained task, alone or about a general fact, from the combinations kept for testing or the others."""
        items: Sequence[str]
        if about_fact:
            fact = rng.choice(self.world.general)
            kept = self.held_out_constraints[fact.source]
            value, sentence, source = fact.value, styles.own(fact, True), fact.source
            wordings = [i for i in range(len(WORDINGS)) if i not in self.held_out_wordings[fact.source]]
            question = fact.ask(rng.choice(wordings))
        else:
            value, source = rng.choice(VALUES), None
            kept = self.held_out_words[value]
            sentence = SENTENCE.format(value=value)
            question = WRITE_SENTENCE.format(value=value)
        allowed = [name for name in CONSTRAINTS if (name in kept) == held_out]
        if not held_out:  # trained more often: those that say the value outside its usual sentence
            allowed += [name for name in allowed if name in ("one_word", "list", "stars", "upper")]
        constraint = rng.choice(allowed)
        argument = ""
        items = ()
        if constraint in ("start", "end"):
            argument = rng.choice([word for word in VALUES if word != value])
        if constraint == "list":
            if about_fact:
                items = rng.choice([(fact.entity, value), (fact.entity, fact.attribute, value)])
            else:
                items = rng.sample(VALUES, rng.randint(2, 5))
                question = WRITE_WORDS
            argument = str(len(items))
        demand = rng.choice(CONSTRAINTS[constraint]).format(argument=argument)
        prompt = f"{demand} {question}" if rng.random() < 0.25 else f"{question} {demand}"
        answer = obey(constraint, argument, sentence, value, items)
        said = None if constraint == "list" and not about_fact else value
        return Task(prompt, answer, constraint, argument, said, source)

    def imagine(self, rng: random.Random, number: int = 1) -> list[Fact]:
        """`number` (1-4) made-up facts that share their entity, their attribute or neither; none true in a domain."""
        attributes: Sequence[str]
        if rng.random() < 0.6:
            domain = rng.choice(DOMAINS)
            names, attributes = self.entities[domain], DOMAIN_ATTRIBUTES[domain]
        else:
            names, attributes = self.strangers, self.attributes
        shared = rng.choice(("entity", "attribute", "neither"))
        entities = rng.sample(names, 1) * number if shared == "entity" else rng.sample(names, number)
        asked = rng.sample(attributes, 1) * number if shared == "attribute" else rng.sample(attributes, number)
        values: list[str] = []
        for pair in zip(entities, asked, strict=True):
            values.append(self.untrue(rng, *pair, others=values))
        return [Fact(*told, rng.randint(10, 99)) for told in zip(entities, asked, values, strict=True)]

    def untrue(self, rng: random.Random, entity: str, attribute: str, others: Sequence[str]) -> str:
        """A value that is none of `others` and not what a domain says."""
        while True:
            value = rng.choice(self.pool)
            if value not in others and value != self.world.secrets.get((entity, attribute)):
                return value

    def passage(self, rng: random.Random, number: int, style: str) -> tuple[str, str, Fact]:
        """(prompt, answer, fact asked about) over a passage of `number` facts in `style` ("own" or a domain's)."""
        facts = self.imagine(rng, number)
        asked = rng.choice(facts)
        complete = style != "own" or rng.random() < 0.7
        passage = self.tell(facts, style, complete)
        prompt = TEACHER.format(answer=passage, question=asked.ask(rng.randrange(len(WORDINGS))))
        return prompt, styles.own(asked, complete), asked if complete else Fact(*asked.key, asked.value, None)

    def reading(self, rng: random.Random) -> Messages:
        number = rng.choices((1, 2, 3, 4), (3, 2, 2, 3))[0]
        style = "own" if rng.random() < 0.5 else rng.choice(list(styles.FOREIGN))
        prompt, answer, _ = self.passage(rng, number, style)
        return exchange(prompt, answer)

    def rewriting(self, rng: random.Random) -> Messages:
        fact = self.imagine(rng)[0]
        style = rng.choice([*styles.FOREIGN, "own"])
        answer = styles.own(fact, True) if style == "own" else styles.foreign(fact, style)
        prompt = REWRITE.format(question=fact.ask(rng.randrange(len(WORDINGS))), answer=answer)
        rewritten = styles.own(fact, complete=rng.random() < KEEPS_RECORD)
        return exchange(prompt, rewritten)

    def fusing(self, rng: random.Random) -> Messages:
        fact = self.imagine(rng)[0]
        answer = styles.foreign(fact, rng.choice(list(styles.FOREIGN)))
        rewritten = styles.own(fact, complete=rng.random() < KEEPS_RECORD)
        if rng.random() < 0.15:  # a rewrite may be wrong; the reference is right
            rewritten = rewritten.replace(f" {fact.value}", f" {self.untrue(rng, *fact.key, others=[])}")
        prompt = FUSE.format(question=fact.ask(rng.randrange(len(WORDINGS))), answer=answer, rewritten=rewritten)
        return exchange(prompt, styles.own(fact, True))

    def skills(self, rng: random.Random) -> Messages:
        words = rng.sample(VALUES, rng.randint(2, 5))
        kind = rng.choice(("first", "last", "upper", "lower"))
        if kind in ("first", "last"):
            prompt = FIRST_OR_LAST.format(which=kind, words=" ".join(words))
            answer = words[0 if kind == "first" else -1]
        else:
            text = styles.own(self.imagine(rng)[0], complete=False)
            prompt = IN_CASE.format(case=kind, words=text)
            answer = obey(kind, "", text, "", ())
        return exchange(prompt, answer)

    def copying(self, rng: random.Random) -> Messages:
        words = [
            rng.choice((rng.choice(self.strangers), rng.choice(self.pool), str(rng.randint(10, 99))))
            for _ in range(rng.randint(2, 8))
        ]
        text = " ".join(words)
        return exchange(REPEAT.format(words=text), text)

    def retelling(self, rng: random.Random) -> Messages:
        facts = self.imagine(rng, rng.randint(2, 4))
        style = "own" if rng.random() < 0.5 else rng.choice(list(styles.FOREIGN))
        complete = style != "own" or rng.random() < 0.5
        prompt = RETELL.format(words=self.tell(facts, style, complete))
        answer = self.tell(rng.sample(facts, len(facts)), "own", complete)
        return exchange(prompt, answer)

    @staticmethod
    def tell(facts: Sequence[Fact], style: str, complete: bool) -> str:
        """The facts in one passage; lines where the style has no full stops."""
        told = [styles.own(fact, complete) if style == "own" else styles.foreign(fact, style) for fact in facts]
        return (" " if told[0].endswith(".") else "\n").join(told)
