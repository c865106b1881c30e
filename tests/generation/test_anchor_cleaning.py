import random
from typing import Any

import numpy
import pytest
from anchor_settings import SETTINGS, drawn, with_settings
from pydantic import ValidationError

from raft_tasks.config import AnchorSet, ExcludedTasks
from raft_tasks.generation.anchor_cleaning import Cleaning, clean_anchors, degenerate
from raft_tasks.generation.encoding import SentenceEncoder
from raft_tasks.ngrams import jaccard, shingles
from raft_tasks.schemas import Anchor, AnchorStatistics, GeneratedAnchor, RejectedAnchor


def clean(
    rows: list[GeneratedAnchor], held_out: list[str] | None = None, settings: AnchorSet = SETTINGS, **options: Any
) -> tuple[list[Anchor], list[RejectedAnchor], AnchorStatistics]:
    return clean_anchors(rows, Cleaning(settings, held_out or [], **options))


def test_every_reason_and_the_statistics_by_hand() -> None:
    rows = [
        *drawn("What is the craft of Bodal?", "Say hello."),
        *drawn("What is the", prompt_finished=False, answer="", answer_finished=False),
        *drawn("?!", answer="", answer_finished=False),
        *drawn("rope rope rope rope rope"),
        *drawn("Tell me a story.", answer_finished=False, answer="Once upon"),
        *drawn("Write nothing.", answer=""),
        *drawn("Write something.", answer="so on and so on and so on and so on and so on"),
        *drawn("Now name for me the colour of Tarin, please."),
        *drawn("what is  the CRAFT of Bodal?"),
        *drawn("what - is - the craft of Bodal"),
        *drawn("Say hello to me."),
    ]
    rows = [row.model_copy(update={"id": f"anchor-{number:05d}"}) for number, row in enumerate(rows)]
    kept, rejected, statistics = clean(rows, ["name for me the colour of Tarin"])
    assert kept == [
        Anchor(id="anchor-00000", prompt="What is the craft of Bodal?", answer="Yes."),
        Anchor(id="anchor-00001", prompt="Say hello.", answer="Yes."),
        Anchor(id="anchor-00011", prompt="Say hello to me.", answer="Yes."),
    ]
    assert [(row.id, row.reason, row.near) for row in rejected] == [
        ("anchor-00002", "unfinished prompt", None),
        ("anchor-00003", "empty prompt", None),
        ("anchor-00004", "degenerate prompt", None),
        ("anchor-00005", "unfinished answer", None),
        ("anchor-00006", "empty answer", None),
        ("anchor-00007", "degenerate answer", None),
        ("anchor-00008", "near held-out text", "name for me the colour of Tarin"),
        ("anchor-00009", "duplicate", "anchor-00000"),
        ("anchor-00010", "near duplicate", "anchor-00000"),
    ]
    assert rejected[0].prompt == "What is the"
    assert (statistics.generated, statistics.kept, statistics.well_formed) == (12, 3, 0.5)
    assert statistics.rejected == {row.reason: 1 for row in rejected}
    assert statistics.distinct_1 == round(10 / 12, 4)  # what is the craft of bodal / say hello / (say hello) to me
    assert statistics.distinct_2 == round(8 / 9, 4)
    assert statistics.distinct_3 == 1  # what is the, is the craft, the craft of, craft of bodal / - / say hello to, ...
    assert statistics.similarity is None
    assert statistics.clusters == []
    assert statistics.warning is None


def test_an_answer_that_was_cut_can_be_kept_marked_as_such() -> None:
    rows = [*drawn("Tell me a story.", answer_finished=False, answer="Once upon"), *drawn("Say hello.")]
    rows = [row.model_copy(update={"id": f"anchor-{number:05d}"}) for number, row in enumerate(rows)]
    kept, rejected, _ = clean(rows, settings=with_settings(unfinished="keep"))
    assert [(row.answer, row.finished) for row in kept] == [("Once upon", False), ("Yes.", True)]
    assert rejected == []


def test_what_the_tokenizer_does_not_read_is_dropped_and_counted() -> None:
    rows = drawn("Name the craft of Bodal.", "Say the charm of Sodin loud.")
    kept, rejected, statistics = clean(rows, is_encodable=lambda row: "Sodin" not in row.prompt)
    assert [row.id for row in kept] == ["anchor-00000"]
    assert [(row.id, row.reason) for row in rejected] == [("anchor-00001", "unencodable")]
    assert statistics.well_formed == 0.5


def test_a_base_that_cannot_generate_prompts_is_warned_of() -> None:
    rows = [*drawn("Say hello."), *drawn(*["lamp corn"] * 4, prompt_finished=False)]
    _, _, statistics = clean(rows)
    assert statistics.warning is not None
    assert "20% of 5 are well-formed, expected 50% or more (4 x unfinished prompt)" in statistics.warning
    assert clean(rows, settings=with_settings(min_well_formed=0.2))[2].warning is None


def test_no_anchors() -> None:
    kept, rejected, statistics = clean([], ["What?"], encoder=SentenceEncoder("nowhere", None))
    assert (kept, rejected) == ([], [])
    assert (statistics.generated, statistics.distinct_1, statistics.similarity) == (0, 0, None)
    assert statistics.warning is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The craft of Bodal is rope. The craft of Bodal is rope.", False),
        ("The craft of Bodal is rope. " * 3, True),
        ("rope", False),
        ("rope rope rope", False),
        ("rope rope rope rope", True),
        ("1. rope\n2. lamp\n3. corn", False),
        ("broken \ufffd letter", True),
        ("我喜欢茶我喜欢茶我喜欢茶我喜欢茶", True),
        ("我喜欢喝绿茶", False),
        ("", False),
    ],
)
def test_degenerate_texts(text: str, expected: bool) -> None:
    assert degenerate(text) is expected


def test_a_held_out_text_is_found_in_prompt_or_answer_and_under_decoration() -> None:
    held = ["For Garor, what is the emblem?", "Name the charm of Mozin."]
    told = [
        *drawn(
            "for garor what is the emblem", "Name the charm of Mozin. Use just one word.", "Name the charm of Mozin"
        ),
        *drawn("Repeat my question.", answer="For Garor, what is the emblem?"),
    ]
    _, rejected, _ = clean(told, held)
    assert [row.near for row in rejected] == [held[0], held[1], held[1], held[0]]
    fine = drawn("What is the emblem of Garor?", "Name the charm of Garor.", "Name the emblem of Mozin.", "Name")
    assert clean(fine, held)[0] == [Anchor(id=r.id, prompt=r.prompt, answer=r.answer) for r in fine]


def test_what_is_measured_is_left_out_in_any_wording() -> None:
    facts = [(name, what, "rope") for name in ("Garor", "Mozin", "Linal", "Botor") for what in ("emblem", "charm")]
    measured = [f"The {what} of {name} is {value}." for name, what, value in facts]
    measured += [f"{name} has which {what}?" for name, what, _ in facts]
    settings = with_settings(without=ExcludedTasks(tasks=["recall"], overlap=0.3))
    told = [
        *drawn("What is the emblem of Garor?", answer="rope"),
        *drawn("Shout it: Mozin has which charm?", answer="THE CHARM OF MOZIN IS ROPE."),
        *drawn("Tell me what you know.", answer="the emblem of botor is rope"),
    ]
    kept, rejected, _ = clean(told, settings=settings, measured=measured)
    assert kept == []
    assert {row.reason for row in rejected} == {"tells what is measured"}
    assert [row.near for row in rejected] == ["The emblem of Garor is rope.", measured[3], measured[6]]
    fine = drawn("What is the emblem of Tarin?", "Say rope.", "The charm of what?")
    assert len(clean(fine, settings=settings, measured=measured)[0]) == 3
    assert len(clean(told[:1], measured=measured)[0]) == 1


def test_a_phrase_that_many_held_out_texts_share_does_not_make_a_prompt_near() -> None:
    held = [f"I want to know the emblem of {name}." for name in ("Garor", "Mozin", "Linal", "Botor", "Naror", "Fogor")]
    [other] = drawn("I want to know the emblem of Tarin.")
    assert len(shingles(other.prompt) & shingles(held[0])) / len(shingles(held[0])) > 0.8  # plain counting would
    assert clean([other], held)[2].kept == 1
    assert clean(drawn(held[3]), held)[2].rejected == {"near held-out text": 1}


def test_near_duplicates_are_those_of_comparing_all_pairs() -> None:
    rng = random.Random(0)
    vocabulary = [f"word{number}" for number in range(200)]
    prompts: list[str] = []
    for _ in range(40):
        original = [rng.choice(vocabulary) for _ in range(40)]
        prompts.append(" ".join(original))
        for changes in (1, 2, 4):
            changed = list(original)
            for place in rng.sample(range(40), changes):
                changed[place] = "changed"
            prompts.append(" ".join(changed))
    expected: list[str] = []
    for prompt in prompts:
        if all(jaccard(shingles(prompt), shingles(other)) < 0.8 for other in expected):
            expected.append(prompt)
    kept, rejected, _ = clean(drawn(*prompts))
    assert [anchor.prompt for anchor in kept] == expected
    assert len(rejected) > 40
    assert {row.reason for row in rejected} == {"near duplicate"}
    assert len(clean(drawn(*prompts), settings=with_settings(duplicate_overlap=1.0))[0]) == len(prompts)


def test_similarity_is_the_mean_over_all_pairs() -> None:
    class Fixed(SentenceEncoder):
        def encode(self, texts: list[str], batch_size: int) -> numpy.ndarray:
            vectors = numpy.random.default_rng(0).normal(size=(len(texts), 4))
            return (vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)).astype("float32")

    encoder = Fixed("fixed", None)
    prompts = ["Say hello.", "Name a lamp.", "Where is the harbour?", "Which colour has corn?", "Count to ten."]
    vectors = encoder.encode(prompts, 1)
    cosines = [float(vectors[a] @ vectors[b]) for a in range(5) for b in range(a)]
    _, _, statistics = clean(drawn(*prompts), encoder=encoder)
    assert statistics.similarity == pytest.approx(sum(cosines) / 10, abs=1e-4)
    assert sorted(cluster.example for cluster in statistics.clusters) == sorted(prompts)  # no more than clusters
    assert clean(drawn("Say hello."), encoder=encoder)[2].similarity is None


def test_clusters_are_groups_of_like_prompts_the_largest_first() -> None:
    class Grouped(SentenceEncoder):
        """Each prompt near the axis of its last letter, the "0" exactly on it."""

        def encode(self, texts: list[str], batch_size: int) -> numpy.ndarray:
            vectors = numpy.zeros((len(texts), 9))
            for row, text in enumerate(texts):
                vectors[row, "abcdefgh".index(text[-1])] = 1
                vectors[row, 8] = 0.1 * (int(text.split()[1]) % 3 - 1)
            return (vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)).astype("float32")

    prompts = [
        f"prompt {number} about {kind}" for kind in "abcdefgh" for number in range(3 * ("hgfedcba".index(kind) + 1))
    ]
    _, _, statistics = clean(
        drawn(*prompts), settings=with_settings(duplicate_overlap=1.0), encoder=Grouped("none", None)
    )
    assert [cluster.size for cluster in statistics.clusters] == [24, 21, 18, 15, 12, 9, 6, 3]
    assert [cluster.example for cluster in statistics.clusters] == [f"prompt 1 about {kind}" for kind in "abcdefgh"]


@pytest.mark.parametrize("change", [{"temperature": 0.0}, {"duplicate_overlap": 0.3}, {"held_out_overlap": 0.0}])
def test_settings_that_make_no_sense_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        with_settings(**change)
